"""Where the wall time goes: steps, and what is not a step."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Iterator

ASIDE = ("setup", "checkpoint", "evaluation")  # not a part of step time
PURPOSES = (*ASIDE, "data")


@dataclasses.dataclass(frozen=True)
class Lap:
    """Seconds since the lap before, by purpose; `steps` is all that is not set aside."""

    wall: float
    setup: float
    checkpoint: float
    evaluation: float
    data: float

    @property
    def steps(self) -> float:
        """Seconds of training steps, with the waiting for data that they contain."""
        return max(self.wall - self.setup - self.checkpoint - self.evaluation, 1e-9)


class Clock:
    """A stopwatch for one process; `before` are the seconds of the processes that it continues."""

    def __init__(self) -> None:
        self.before = 0.0
        self._began = self._lap_began = time.perf_counter()
        self._total = dict.fromkeys(PURPOSES, 0.0)
        self._lap = dict.fromkeys(PURPOSES, 0.0)

    @contextlib.contextmanager
    def measure(self, purpose: str) -> Iterator[None]:
        """Counts the time inside as `purpose`, one of PURPOSES."""
        began = time.perf_counter()
        try:
            yield
        finally:
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

    @property
    def wall_seconds(self) -> float:
        """Seconds that were spent on the run, with those of the processes before."""
        return self.before + time.perf_counter() - self._began
