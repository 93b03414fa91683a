"""The wall time of a run by phase, over all its processes."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from typing import Any

from jaxllm.io import JsonLines


@dataclasses.dataclass(frozen=True)
class TimeBreakdown:
    """Seconds by phase; `steps` is the remainder.

    Attributes:
      wall: total.
      setup: from the start of a process to its first step.
      compile: compilation of the step.
      checkpoint: waiting for a save.
      evaluation: scoring, with its own compilation.
      data: waiting for a batch; a part of `steps`.
      lost: lost to restarts: repeated work, and the setup and compilation of later processes.
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
        """Seconds of training steps, with their waiting for data."""
        others = self.setup + self.compile + self.checkpoint + self.evaluation + self.lost
        return max(self.wall - others, 1e-9)

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


def added(previous: TimeBreakdown | None, now: TimeBreakdown) -> TimeBreakdown:
    """The time of a run's earlier processes and this one, whose setup and compile are lost."""
    if previous is None:
        return now
    now = dataclasses.replace(now, setup=0.0, compile=0.0, lost=now.setup + now.compile)
    both = zip(dataclasses.astuple(previous), dataclasses.astuple(now), strict=True)
    return TimeBreakdown(*(before + here for before, here in both))


def stop_line(step: int, spent: TimeBreakdown) -> dict[str, Any]:
    """The line of restarts.jsonl of a process that ends in order at the checkpoint of `step`."""
    return {"step": step, "stopped": dataclasses.asdict(spent), "wall_seconds": spent.wall}


@dataclasses.dataclass(frozen=True)
class Restart:
    """A start of a process at a checkpoint.

    Attributes:
      step: step of the checkpoint.
      restarts: number of restarts, this one included.
      previous: time of the run's earlier processes, lost time included.
      lost_seconds: time spent after the checkpoint, as far as recorded.
    """

    step: int
    restarts: int
    previous: TimeBreakdown
    lost_seconds: float

    def line(self) -> dict[str, Any]:
        """Its line of restarts.jsonl, for the next restart."""
        return {
            "step": self.step,
            "restarts": self.restarts,
            "wall_seconds": self.previous.wall,
            "lost_seconds": self.lost_seconds,
            "wall_time": time.time(),
        }


def restart(files: Sequence[JsonLines], step: int, restarts: int, saved: TimeBreakdown) -> Restart:
    """The restart at a checkpoint, with the time lost after it.

    Args:
      files: the metrics and the restarts of the run.
      step: step of the checkpoint.
      restarts: number of restarts before the checkpoint.
      saved: time of the run when the checkpoint was saved.
    """
    rows = [row for file in files for row in file.read()[0]]
    # A process that ended in order has recorded its time after the checkpoint: nothing is lost.
    stops = [TimeBreakdown(**r["stopped"]) for r in rows if r["step"] == step and "stopped" in r]
    saved = max([saved, *stops], key=lambda spent: spent.wall)
    restarts = max([restarts, *(row.get("restarts", 0) for row in rows)]) + 1
    wall = max([saved.wall, *(row.get("wall_seconds", 0.0) for row in rows)])
    lost = wall - saved.wall
    previous = dataclasses.replace(saved, wall=wall, lost=saved.lost + lost)
    return Restart(step, restarts, previous, lost)
