"""Wall time by phase: steps, and everything else."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

from jaxllm.run.times import TimeBreakdown, added

NON_STEP_PHASES = ("setup", "compile", "checkpoint", "evaluation")
PHASES = (*NON_STEP_PHASES, "data", "step")


class GoodputTimer:
    """A stopwatch for one process of a run, from its start, with one phase at a time.

    Attributes:
      previous: time of the earlier processes; None in a run's first.
      phase: the current phase; `setup` until `begin_steps`.
    """

    def __init__(self) -> None:
        self.previous: TimeBreakdown | None = None
        self.phase = "setup"
        self._since = time.perf_counter()
        self._total = dict.fromkeys(PHASES, 0.0)
        self._last_lap = dict(self._total)

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

    def lap(self) -> TimeBreakdown:
        """Start a new lap, and return the time of the last one."""
        self._enter(self.phase)
        spent = {phase: self._total[phase] - self._last_lap[phase] for phase in PHASES}
        self._last_lap = dict(self._total)
        return _breakdown(spent)

    def total(self) -> TimeBreakdown:
        """The time since this process began."""
        self._enter(self.phase)
        return _breakdown(self._total)

    def run(self) -> TimeBreakdown:
        """The time of all processes of the run."""
        return added(self.previous, self.total())

    def _enter(self, phase: str) -> None:
        now = time.perf_counter()
        self._total[self.phase] += now - self._since
        self._since, self.phase = now, phase


def _breakdown(seconds: dict[str, float]) -> TimeBreakdown:
    named = {phase: value for phase, value in seconds.items() if phase != "step"}
    return TimeBreakdown(sum(seconds.values()), **named)
