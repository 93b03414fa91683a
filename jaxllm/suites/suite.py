"""A suite's directory: its runs, their states, and training them.

SUITE_DIR/suite.json     the runs with their settings, as they were begun
SUITE_DIR/<run>/         a run directory each
SUITE_DIR/logs/<run>.log what each printed
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from jaxllm.analysis.finding import amount
from jaxllm.errors import UserError
from jaxllm.io import atomic_write, is_remote
from jaxllm.run.run import Run
from jaxllm.run.suite_layout import SuiteLayout
from jaxllm.run.times import duration
from jaxllm.suites.cost import Cost
from jaxllm.suites.design import Member
from jaxllm.suites.launchers import Launcher


@dataclasses.dataclass(frozen=True)
class Progress:
    """How far a run is, by its directory."""

    step: int
    steps: int
    finished: bool

    @property
    def share(self) -> float:
        """Of its steps that are done."""
        return 1.0 if self.finished else self.step / self.steps

    def __str__(self) -> str:
        if self.finished:
            return "finished"
        return f"step {self.step} of {self.steps}" if self.step else "not begun"


class Suite:
    """Runs that are trained as one."""

    def __init__(
        self, directory: str, members: Sequence[Member], flags: Sequence[str], rule: str = ""
    ) -> None:
        """A suite.

        Args:
          flags: of the command line that all runs share: gin files and bindings.
          rule: SuiteConfig.rule.
        """
        self.layout, self._rule = SuiteLayout(directory), rule
        self.members, self._flags = list(members), list(flags)

    def begin(self) -> None:
        """Write suite.json.

        Raises:
          UserError: a run of the suite began with other settings.
        """
        settings = {one.name: _jsonable(one.bindings) for one in self.members}
        path = self.layout.runs_file
        before = json.loads(path.read_text())["runs"] if path.exists() else {}
        for name, now in settings.items():
            then = before.get(name, now)
            for key in sorted(then.keys() | now.keys()):
                if then.get(key) != now.get(key) and Run(self.layout.run(name)).entries():
                    raise UserError(
                        f"run {name} of {self.layout.root} began with {key} = {then.get(key)!r}, "
                        f"and the suite says {now.get(key)!r}: runs may be added, and TRAIN_STEPS "
                        "be given to a branch, but what has begun stays; take another SUITE_DIR"
                    )
        self.layout.root.mkdir(parents=True, exist_ok=True)
        atomic_write(
            path, json.dumps({"rule": self._rule, "runs": before | settings}, indent=1) + "\n"
        )

    def flags(self, member: Member) -> list[str]:
        """The flags of a run's `jaxllm.train`."""
        own = [f"--gin.{name}={_gin(value)}" for name, value in member.bindings.items()]
        return [*self._flags, f"--gin.MODEL_DIR={self.layout.run(member.name)}", *own]

    def job(self, member: Member) -> str:
        """The name of a run where it trains: of its directory alone, and one that GKE takes."""
        path = os.fspath(self.layout.run(member.name))
        digest = hashlib.sha256((path if is_remote(path) else os.path.abspath(path)).encode())
        readable = re.sub("[^a-z0-9]+", "-", member.name.lower())[:29].strip("-")
        return f"r-{readable}-{digest.hexdigest()[:8]}"

    def progress(self, member: Member) -> Progress:
        """How far a run is."""
        run = Run(self.layout.run(member.name))
        if not run.path.exists():
            return Progress(0, member.steps, False)
        ends = [entry for entry in run.available() if entry.kind == "final"]
        finished = bool(ends) and ends[-1].step >= member.steps
        rows, _ = run.metrics_lines.read()
        step = max((row["step"] for row in rows), default=0)
        return Progress(step, member.steps, finished)

    def train(self, launcher: Launcher, jobs: int, log: Callable[[str], None]) -> list[str]:
        """Train what is not finished, `jobs` at a time; a failure stops only its own branches.

        Returns:
          The names of the runs that failed or could not begin.
        """
        self.layout.logs.mkdir(parents=True, exist_ok=True)
        unfinished = [one for one in self.members if not self.progress(one).finished]
        # of a suite command that was lost
        running = [one for one in unfinished if launcher.state(self.job(one)) == "running"]
        waiting = [one for one in unfinished if one not in running]
        failed: list[str] = []
        for one in running:
            log(f"{one.name}: goes on")
        with self._bar(unfinished) as bar:
            try:
                while waiting or running:
                    states = {one.name: launcher.state(self.job(one)) for one in running}
                    for one in [m for m in running if states[m.name] != "running"]:
                        running.remove(one)
                        if states[one.name] != "failed" and self.progress(one).finished:
                            log(f"{one.name}: finished")
                        else:
                            failed.append(one.name)
                            log(f"{one.name}: failed ({self._last_words(one)})")
                    for one in list(waiting):
                        if one.parent in failed:
                            waiting.remove(one)
                            failed.append(one.name)
                            log(f"{one.name}: not begun, as {one.parent} failed")
                        elif len(running) < jobs and self._may_begin(one, [*waiting, *running]):
                            waiting.remove(one)
                            running.append(one)
                            launcher.submit(self.job(one), self.flags(one), self._log(one))
                    self._show(bar, running)
                    if running:
                        time.sleep(launcher.poll_seconds)
            except BaseException as error:
                if launcher.here or isinstance(error, KeyboardInterrupt):
                    for one in running:
                        launcher.cancel(self.job(one))
                raise
        return failed

    def _may_begin(self, member: Member, unfinished: Sequence[Member]) -> bool:
        return all(one.name != member.parent for one in unfinished)

    def _log(self, member: Member) -> Path:
        return Path(self.layout.logs / f"{member.name}.log")

    def _last_words(self, member: Member) -> str:
        """The error in a run's log, or its last line."""
        log = self._log(member)
        text = log.read_text(errors="replace") if log.exists() else ""
        lines = [line for line in text.splitlines() if line]
        errors = [line for line in lines if line.startswith("error:")]
        return f"{(errors or lines or ['no output'])[-1]}; its output is in {log}"

    def _bar(self, waiting: Sequence[Member]) -> tqdm:
        """A bar of the suite's FLOPs, and its time left by them."""
        return tqdm(
            total=sum(one.flops for one in waiting), unit="FLOP", unit_scale=True,
            bar_format="{percentage:3.0f}%|{bar}| {elapsed}, {remaining} left  {postfix}",
        )  # fmt: skip

    def _show(self, bar: tqdm, running: Sequence[Member]) -> None:
        states = {one.name: self.progress(one) for one in self.members}
        done = sum(one.flops * states[one.name].share for one in self.members)
        bar.n = max(bar.n, done - (sum(one.flops for one in self.members) - bar.total))
        ended = sum(state.finished for state in states.values())
        names = ", ".join(f"{m.name} {states[m.name].share:.0%}" for m in running)
        bar.set_postfix_str(f"{ended} of {len(states)} runs; {names}")


def table(suite: Suite, costs: Mapping[str, Cost] | None = None) -> str:
    """The runs with what they cost, or without `costs` with how far they are."""
    known = ("time", "memory") if costs else ("state",)
    rows: list[tuple[str, ...]] = [("run", "parameters", "tokens", "FLOPs", *known)]
    seconds = 0.0
    for one in suite.members:
        params = amount(one.experiment.model.num_params)
        row = (one.name, params, amount(one.tokens), f"{one.flops:.2e}")
        if costs is None:
            rows.append((*row, str(suite.progress(one))))
            continue
        cost, own = costs[one.name], (one.steps - one.begin) * costs[one.name].seconds
        seconds += own
        rows.append((*row, duration(own), f"{cost.peak / 2**20:,.0f} MiB"))
    flops = f"{sum(one.flops for one in suite.members):.2e}"
    last = (duration(seconds), "") if costs else ("",)
    rows.append((f"{len(suite.members)} runs", "", "", flops, *last))
    first, *others = (max(map(len, column)) for column in zip(*rows, strict=True))
    aligned = (
        [name.ljust(first), *(text.rjust(width) for text, width in zip(row, others, strict=True))]
        for name, *row in rows
    )
    return "\n".join("  ".join(row).rstrip() for row in aligned)


def _gin(value: Any) -> str:
    """A value as gin reads it."""
    return repr(dict(value)) if isinstance(value, Mapping) else repr(value)


def _jsonable(bindings: Mapping[str, Any]) -> dict[str, Any]:
    return json.loads(json.dumps({name: _gin(value) for name, value in bindings.items()}))
