"""Where the wall time goes: steps, and what is not a step."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Iterator

from jaxllm.run.times import TimeBreakdown

ASIDE = ("setup", "compile", "checkpoint", "evaluation")  # not a part of step time
PURPOSES = (*ASIDE, "data")


class Clock:
    """A stopwatch for one process of a run.

    Attributes:
      before: what the processes before spent; None in a run's first.
      doing: the purpose that is being measured, or `step`.
    """

    def __init__(self) -> None:
        self.before: TimeBreakdown | None = None
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

    def lap(self) -> TimeBreakdown:
        """What happened since the last lap; starts a new one."""
        now = time.perf_counter()
        lap = TimeBreakdown(now - self._lap_began, **self._lap)
        self._lap_began = now
        self._lap = dict.fromkeys(PURPOSES, 0.0)
        return lap

    def total(self) -> TimeBreakdown:
        """What happened since this process began."""
        return TimeBreakdown(time.perf_counter() - self._began, **self._total)

    def run(self) -> TimeBreakdown:
        """What happened in all processes of the run."""
        now = self.total()
        if self.before is None:
            return now
        now = dataclasses.replace(now, setup=0.0, compile=0.0, lost=now.setup + now.compile)
        both = zip(dataclasses.astuple(self.before), dataclasses.astuple(now), strict=True)
        return TimeBreakdown(*(before + here for before, here in both))
