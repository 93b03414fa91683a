"""A suite's directory: its runs, their states, and training them.

SUITE_DIR/suite.json     the runs with their settings, as they were begun
SUITE_DIR/<run>/         a run directory each
SUITE_DIR/stacks/        the flags of runs that train in one program
SUITE_DIR/logs/          what each run or stack printed
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence, Set
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
from jaxllm.suites.jobs import Job, jobs
from jaxllm.suites.launchers import Launcher

MISSES = 6  # looks at which a job that was submitted may not be there yet


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
        self._shares: dict[str, float] = {}  # of each run's steps that are done
        self._finished: set[str] = set()

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

    def flags(self, job: Job, due: Set[str] | None = None) -> list[str]:
        """The flags of the `jaxllm.train` that trains a job's runs, or those that are due."""
        own = [self._own_flags(one) for one in job.members if due is None or one.name in due]
        if len(own) == 1:
            return [*self._flags, *own[0]]
        file = self.layout.stacks / f"{job.name}.json"
        atomic_write(file, json.dumps(own, indent=1) + "\n")
        return [*self._flags, f"--stack={file}"]

    def _own_flags(self, member: Member) -> list[str]:
        own = [f"--gin.{name}={_gin(value)}" for name, value in member.bindings.items()]
        return [f"--gin.MODEL_DIR={self.layout.run(member.name)}", *own]

    def job_name(self, job: Job) -> str:
        """The name of a job where it trains: of its directories alone, and one that GKE takes."""
        paths = [os.fspath(self.layout.run(one.name)) for one in job.members]
        whole = [path if is_remote(path) else os.path.abspath(path) for path in paths]
        digest = hashlib.sha256("\n".join(whole).encode())
        readable = re.sub("[^a-z0-9]+", "-", job.name.lower())[:29].strip("-")
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

    def train(
        self, launcher: Launcher, at_once: int, stack: int, log: Callable[[str], None]
    ) -> list[str]:
        """Train what is not finished; a failure stops only its own branches.

        Args:
          at_once: jobs at a time.
          stack: runs of equal shapes in one job, at most.

        Returns:
          The names of the runs that failed or could not begin.
        """
        self.layout.logs.mkdir(parents=True, exist_ok=True)
        states = {one.name: self.progress(one) for one in self.members}
        self._shares = {name: state.share for name, state in states.items()}
        self._finished = {name for name, state in states.items() if state.finished}
        unfinished = set(states) - self._finished
        planned = [job for job in jobs(self.members, stack) if unfinished & job.runs]
        # of a suite command that was lost
        running = [job for job in planned if launcher.state(self.job_name(job)) == "running"]
        waiting = [job for job in planned if job not in running]
        failed: list[str] = []
        for job in running:
            log(f"{job.name}: goes on")
        seen, misses = set(running), Counter[Job]()
        with self._bar([one for one in self.members if one.name in unfinished]) as bar:
            try:
                while waiting or running:
                    for job in list(running):
                        state = launcher.state(self.job_name(job))
                        if state == "running":
                            seen.add(job)
                        elif state == "none" and self._may_appear(job, seen, misses[job]):
                            misses[job] += 1
                        else:
                            running.remove(job)
                            failed += self._ended(job, state, unfinished, log)
                    for job in list(waiting):
                        for one in job.members:
                            due = one.name in unfinished and one.name not in failed
                            if due and one.parent in failed:
                                failed.append(one.name)
                                log(f"{one.name}: not begun, as {one.parent} failed")
                        if not unfinished & job.runs - set(failed):
                            waiting.remove(job)
                        elif len(running) < at_once and not any(
                            job.parents & other.runs for other in [*waiting, *running]
                        ):
                            waiting.remove(job)
                            running.append(job)
                            try:
                                self._submit(launcher, job, unfinished - set(failed))
                            except UserError as error:
                                if not seen:  # not even the first: an option is wrong
                                    raise
                                log(f"{job.name}: not submitted ({error})")
                                misses[job] += 1
                                if misses[job] < MISSES:
                                    running.remove(job)
                                    waiting.append(job)
                    self._show(bar, running)
                    if running or waiting:
                        time.sleep(launcher.poll_seconds)
            except BaseException as error:
                if launcher.here or isinstance(error, KeyboardInterrupt):
                    self._stop(launcher, running, log)
                raise
        return failed

    def _submit(self, launcher: Launcher, job: Job, due: Set[str]) -> None:
        """Submit a job, unless a suite command beside this one has."""
        if launcher.state(self.job_name(job)) != "running":
            launcher.submit(self.job_name(job), self.flags(job, due), self._log(job))

    def _may_appear(self, job: Job, seen: Set[Job], misses: int) -> bool:
        """Whether a job that is not there is too new: a queue may show it late."""
        done = all(self.progress(one).finished for one in job.members)
        return job not in seen and misses < MISSES and not done

    def _stop(self, launcher: Launcher, running: Sequence[Job], log: Callable[[str], None]) -> None:
        """Let jobs save and end; wait for those here."""
        names = [self.job_name(job) for job in running]
        for job, name in zip(running, names, strict=True):
            log(f"{job.name}: saves and ends")
            try:
                launcher.cancel(name)
            except UserError as error:
                log(f"{job.name}: may go on ({error})")
        while launcher.here and any(launcher.state(name) == "running" for name in names):
            time.sleep(launcher.poll_seconds)

    def _ended(
        self, job: Job, state: str, unfinished: Set[str], log: Callable[[str], None]
    ) -> list[str]:
        """Say how each run of a job has ended; returns those that failed.

        A stack fails as one where a single run of it has diverged.
        """
        failed = []
        for one in (one for one in job.members if one.name in unfinished):
            progress = self.progress(one)
            self._shares[one.name] = progress.share
            if progress.finished and (state != "failed" or len(job.members) > 1):
                self._finished.add(one.name)
                log(f"{one.name}: finished")
            else:
                failed.append(one.name)
                log(f"{one.name}: failed ({self._last_words(job, one)})")
        return failed

    def _log(self, job: Job) -> Path:
        return Path(self.layout.logs / f"{job.name}.log")

    def _last_words(self, job: Job, member: Member) -> str:
        """The error in a run's log, its own if there is one, or the last line."""
        log = self._log(job)
        text = log.read_text(errors="replace") if log.exists() else ""
        lines = [line for line in text.splitlines() if line]
        errors = [line for line in lines if line.startswith("error:")]
        own = f"error: {self.layout.run(member.name)}:"
        errors = [line for line in errors if line.startswith(own)] or errors
        return f"{(errors or lines or ['no output'])[-1]}; its output is in {log}"

    def _bar(self, waiting: Sequence[Member]) -> tqdm:
        """A bar of the suite's FLOPs, and its time left by them."""
        return tqdm(
            total=sum(one.flops for one in waiting), unit="FLOP", unit_scale=True,
            bar_format="{percentage:3.0f}%|{bar}| {elapsed}, {remaining} left  {postfix}",
        )  # fmt: skip

    def _show(self, bar: tqdm, running: Sequence[Job]) -> None:
        """Update the bar; a stack's runs are at one step, and nobody rereads what has ended."""
        now = {job.name: self.progress(job.members[-1]).share for job in running}
        for job in running:
            self._shares |= dict.fromkeys(job.runs, now[job.name])
        done = sum(one.flops * self._shares[one.name] for one in self.members)
        bar.n = max(bar.n, done - (sum(one.flops for one in self.members) - bar.total))
        ended = sum(one.name in self._finished for one in self.members)
        at = ", ".join(f"{name} {share:.0%}" for name, share in now.items())
        bar.set_postfix_str(f"{ended} of {len(self.members)} runs; {at}")


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
