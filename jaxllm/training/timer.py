"""Where the wall time goes: steps, and what is not a step."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Iterator

ASIDE = ("setup", "compile", "checkpoint", "evaluation")  # not a part of step time
PURPOSES = (*ASIDE, "data")


@dataclasses.dataclass(frozen=True)
class Lap:
    """Seconds by purpose; `steps` is all that is not set aside.

    Attributes:
      wall: all of them.
      setup: opening and reading, from the begin of a process to its first step.
      compile: of the step.
      checkpoint: the loop waited for a save.
      evaluation: scoring, with its own compilation.
      data: the loop waited for a batch; a part of `steps`.
      lost: to restarts: work that was done again, and the setup and compile of later processes.
    """

    wall: float = 0.0
    setup: float = 0.0
    compile: float = 0.0
    checkpoint: float = 0.0
    evaluation: float = 0.0
    data: float = 0.0
    lost: float = 0.0

    @property
    def steps(self) -> float:
        """Seconds of training steps, with the waiting for data that they contain."""
        aside = self.setup + self.compile + self.checkpoint + self.evaluation + self.lost
        return max(self.wall - aside, 1e-9)

    def shares(self) -> dict[str, float]:
        """The parts of the wall time, which sum to 1; `goodput` is that of steps without waiting.

        The word is from large clusters: what part of the time trains the model.
        """
        parts = {
            "goodput": self.steps - self.data,
            "time/data": self.data,
            "time/checkpoint": self.checkpoint,
            "time/evaluation": self.evaluation,
            "time/compile": self.compile,
            "time/start": self.setup,
            "time/lost": self.lost,
        }
        return {name: seconds / max(self.wall, 1e-9) for name, seconds in parts.items()}


class Clock:
    """A stopwatch for one process of a run.

    Attributes:
      before: what the processes before spent; None in a run's first.
      doing: the purpose that is being measured, or `step`.
    """

    def __init__(self) -> None:
        self.before: Lap | None = None
        self.doing = "step"
        self._began = self._lap_began = time.perf_counter()
        self._total = dict.fromkeys(PURPOSES, 0.0)
        self._lap = dict.fromkeys(PURPOSES, 0.0)

    @contextlib.contextmanager
    def measure(self, purpose: str) -> Iterator[None]:
        """Counts the time inside as `purpose`, one of PURPOSES."""
        began, around, self.doing = time.perf_counter(), self.doing, purpose
        try:
            yield
        finally:
            self.doing = around
            spent = time.perf_counter() - began
            self._lap[purpose] += spent
            self._total[purpose] += spent

    def lap(self) -> Lap:
        """What happened since the last lap; starts a new one."""
        now = time.perf_counter()
        lap = Lap(now - self._lap_began, **self._lap)
        self._lap_began = now
        self._lap = dict.fromkeys(PURPOSES, 0.0)
        return lap

    def total(self) -> Lap:
        """What happened since this process began."""
        return Lap(time.perf_counter() - self._began, **self._total)

    def run(self) -> Lap:
        """What happened in all processes of the run."""
        now = self.total()
        if self.before is None:
            return now
        now = dataclasses.replace(now, setup=0.0, compile=0.0, lost=now.setup + now.compile)
        both = zip(dataclasses.astuple(self.before), dataclasses.astuple(now), strict=True)
        return Lap(*(before + here for before, here in both))
