"""The wall time of a run by phase, over all its processes."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any


@dataclasses.dataclass(frozen=True)
class TimeBreakdown:
    """Seconds by phase; `steps` is the remainder."""

    wall: float = 0.0
    setup: float = 0.0  # from the start of a process to its first step
    compile: float = 0.0  # compilation of the step
    checkpoint: float = 0.0  # waiting for a save
    evaluation: float = 0.0  # scoring, with its own compilation
    data: float = 0.0  # waiting for a batch; a part of `steps`
    lost: float = 0.0  # to restarts: repeated work; setup and compilation of later processes

    @property
    def steps(self) -> float:
        """Seconds of training steps, with their waiting for data."""
        others = self.setup + self.compile + self.checkpoint + self.evaluation + self.lost
        return max(self.wall - others, 1e-9)

    def __sub__(self, before: TimeBreakdown) -> TimeBreakdown:
        """The time since `before`."""
        both = zip(dataclasses.astuple(self), dataclasses.astuple(before), strict=True)
        return TimeBreakdown(*(now - then for now, then in both))

    def shares(self) -> dict[str, float]:
        """Shares of the wall time, which sum to 1.

        `goodput` is the share of steps without waiting: of time that trains the model, as large
        clusters report it.
        """
        seconds = {
            "goodput": self.steps - self.data,
            "time/data": self.data,
            "time/checkpoint": self.checkpoint,
            "time/evaluation": self.evaluation,
            "time/compile": self.compile,
            "time/start": self.setup,
            "time/lost": self.lost,
        }
        return {name: value / max(self.wall, 1e-9) for name, value in seconds.items()}


PHASES = ("setup", "compile", "checkpoint", "evaluation", "data", "step")


class GoodputTimer:
    """A stopwatch for one process of a run, with one phase at a time."""

    def __init__(self, age: float = 0.0) -> None:
        """Start `age` seconds ago."""
        self.previous: TimeBreakdown | None = None  # time of the earlier processes
        self.phase = "setup"  # until `begin_steps`
        self._since = time.perf_counter() - age
        self._total = dict.fromkeys(PHASES, 0.0)

    def begin_steps(self) -> None:
        """Count the time outside other phases as steps from now on."""
        self._enter("step")

    @contextlib.contextmanager
    def measure(self, phase: str) -> Iterator[None]:
        """Count the time inside as `phase`, one of PHASES, and as no other."""
        around = self.phase
        self._enter(phase)
        try:
            yield
        finally:
            self._enter(around)

    def total(self) -> TimeBreakdown:
        """The time since this process began."""
        self._enter(self.phase)
        named = {phase: value for phase, value in self._total.items() if phase != "step"}
        return TimeBreakdown(sum(self._total.values()), **named)

    def run(self) -> TimeBreakdown:
        """The time of all processes of the run; setup and compile of later ones are lost."""
        now, previous = self.total(), self.previous
        if previous is None:
            return now
        now = dataclasses.replace(now, setup=0.0, compile=0.0, lost=now.setup + now.compile)
        both = zip(dataclasses.astuple(previous), dataclasses.astuple(now), strict=True)
        return TimeBreakdown(*(before + here for before, here in both))

    def _enter(self, phase: str) -> None:
        now = time.perf_counter()
        self._total[self.phase] += now - self._since
        self._since, self.phase = now, phase


def duration(seconds: float) -> str:
    """Seconds in the two largest units: "45 s", "4 min 32 s", "3 h 5 min", "12 d 4 h"."""
    whole, units = round(seconds), (("d", 86400), ("h", 3600), ("min", 60), ("s", 1))
    for (unit, size), (smaller, part) in pairwise(units):
        if whole >= size:
            return f"{whole // size} {unit} {whole % size // part} {smaller}"
    return f"{whole} s"


def before_restart(
    rows: Sequence[Mapping[str, Any]], step: int, saved: TimeBreakdown
) -> tuple[TimeBreakdown, float]:
    """The time of a run's earlier processes, and the seconds lost of it, after a checkpoint.

    What a process recorded after the checkpoint, since it ended in order there, is not lost.
    `rows` are those of metrics.jsonl and restarts.jsonl; the checkpoint of `step` was `saved` at
    this time of the run.
    """
    stops = [TimeBreakdown(**r["stopped"]) for r in rows if r["step"] == step and "stopped" in r]
    saved = max([saved, *stops], key=lambda spent: spent.wall)
    wall = max([saved.wall, *(row.get("wall_seconds", 0.0) for row in rows)])
    lost = wall - saved.wall
    return dataclasses.replace(saved, wall=wall, lost=saved.lost + lost), lost
