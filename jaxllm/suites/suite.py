"""A suite's directory (`jaxllm.run.suite_layout`): its runs, and how far they are."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
from collections.abc import Callable, Mapping, Sequence, Set
from pathlib import Path
from typing import Any

import gin
import pandas as pd

from jaxllm.analysis.finding import amount
from jaxllm.configs import saved_bindings
from jaxllm.data.config import DataConfig
from jaxllm.errors import UserError, first_line
from jaxllm.io import atomic_write, is_remote
from jaxllm.run.run import Run
from jaxllm.run.suite_layout import Declared, SuiteLayout
from jaxllm.run.times import duration
from jaxllm.suites.config import SuiteConfig
from jaxllm.suites.cost import Cost
from jaxllm.suites.design import Member, members
from jaxllm.suites.jobs import Job
from jaxllm.training.experiment import Experiment
from jaxllm.training.sweep import rule_of


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
        """`flags` are those of the command line that all runs share: gin files and bindings."""
        self.layout, self.rule = SuiteLayout(directory), rule
        self.members, self._flags = list(members), list(flags)

    @classmethod
    def configured(cls, load: Callable[[], None], flags: Sequence[str]) -> Suite:
        """The suite that gin defines; UserError if SUITE_DIR is not set, or as `members`.

        `load` binds what its runs share, and `flags` do so for `jaxllm.train`.
        """
        gin.clear_config()
        load()
        restore, config = saved_bindings(), SuiteConfig()
        if not config.directory:
            raise UserError("SUITE_DIR is not set: give --gin.SUITE_DIR=<directory>")

        def configure(bindings: Mapping[str, Any]) -> Experiment:
            restore()
            bind(bindings)
            return Experiment.configured().with_vocabulary()

        runs = members(config, rule_of(config.rule), DataConfig().sequence_length, configure)
        return cls(config.directory, runs, flags, config.rule)

    def begin(self) -> None:
        """Write suite.json; UserError if it is damaged, or a run began with other settings."""
        settings = {one.name: _in_gin(one.bindings) for one in self.members}
        suite = self.layout.declared()
        before = suite.runs if suite else {}
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
        declared = Declared(before | settings, self.rule)
        atomic_write(self.layout.runs_file, json.dumps(declared._asdict(), indent=1) + "\n")

    def flags(self, job: Job, due: Set[str] | None = None) -> list[str]:
        """The flags of the `jaxllm.train` that trains a job's runs, or those that are due."""
        own = [
            [f"--gin.MODEL_DIR={self.layout.run(one.name)}"]
            + [f"--gin.{name}={value}" for name, value in _in_gin(one.bindings).items()]
            for one in job.members
            if due is None or one.name in due
        ]
        if len(own) == 1:
            return [*self._flags, *own[0]]
        file = self.layout.stacks / f"{job.name}.json"
        atomic_write(file, json.dumps(own, indent=1) + "\n")
        return [*self._flags, f"--stack={file}"]

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

    def log(self, job: Job) -> Path:
        """What a job prints."""
        return Path(self.layout.logs / f"{job.name}.log")

    def last_words(self, job: Job, member: Member) -> str:
        """The error in a run's log, its own if there is one, or the last line."""
        log = self.log(job)
        text = log.read_text(errors="replace") if log.exists() else ""
        lines = [line for line in text.splitlines() if line]
        errors = [line for line in lines if line.startswith("error:")]
        own = f"error: {self.layout.run(member.name)}:"
        errors = [line for line in errors if line.startswith(own)] or errors
        return f"{(errors or lines or ['no output'])[-1]}; its output is in {log}"


def bind(bindings: Mapping[str, Any]) -> None:
    """Bind gin parameters and macros; UserError if a name is unknown."""
    for name, value in bindings.items():
        try:
            gin.bind_parameter(name if "." in name else f"{name}/gin.macro.value", value)
        except (ValueError, AttributeError) as error:
            raise UserError(f"SuiteConfig.axes: {name}: {first_line(error)}") from error


def table(suite: Suite, costs: Mapping[str, Cost] | None = None) -> str:
    """The runs with what they cost, or without `costs` with how far they are."""
    rows = [{
        "run": one.name, "parameters": amount(one.experiment.model.num_params),
        "tokens": amount(one.tokens), "FLOPs": f"{one.flops:.2e}",
    } for one in suite.members]  # fmt: skip
    whole = {"run": f"{len(rows)} runs", "FLOPs": f"{sum(one.flops for one in suite.members):.2e}"}
    if costs is None:
        for row, one in zip(rows, suite.members, strict=True):
            row["state"] = str(suite.progress(one))
    else:
        seconds = [(one.steps - one.begin) * costs[one.name].seconds for one in suite.members]
        for row, own in zip(rows, seconds, strict=True):
            row |= {"time": duration(own), "memory": f"{costs[row['run']].peak / 2**20:,.0f} MiB"}
        whole["time"] = duration(sum(seconds))
    frame = pd.DataFrame([*rows, whole]).fillna("").set_index("run")
    text = frame.rename_axis(index=None, columns="run").to_string()
    return "\n".join(line.rstrip() for line in text.splitlines())


def _in_gin(bindings: Mapping[str, Any]) -> dict[str, str]:
    plain = lambda value: dict(value) if isinstance(value, Mapping) else value
    return {name: repr(plain(value)) for name, value in bindings.items()}
