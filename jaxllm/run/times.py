"""Where the wall time of a run goes, over all its processes."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from typing import Any

from jaxllm.io import JsonLines


@dataclasses.dataclass(frozen=True)
class TimeBreakdown:
    """Seconds by phase; `steps` is all that is no phase of its own.

    Attributes:
      wall: all of them.
      setup: from the begin of a process to its first step.
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
        others = self.setup + self.compile + self.checkpoint + self.evaluation + self.lost
        return max(self.wall - others, 1e-9)

    def shares(self) -> dict[str, float]:
        """Shares of the wall time, which sum to 1; `goodput` is that of steps without waiting.

        Goodput is the share of the time that trains the model, as large clusters report it.
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
    """The time of a run's earlier processes and of this one, whose setup and compile are lost."""
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
      step: of the checkpoint.
      restarts: how often the run has been resumed, with this time.
      previous: what the run's earlier processes have spent, with what they lost.
      lost_seconds: what they spent after the checkpoint, as far as a file tells.
    """

    step: int
    restarts: int
    previous: TimeBreakdown
    lost_seconds: float

    def line(self) -> dict[str, Any]:
        """Its line of restarts.jsonl, which the next restart reads."""
        return {
            "step": self.step,
            "restarts": self.restarts,
            "wall_seconds": self.previous.wall,
            "lost_seconds": self.lost_seconds,
            "wall_time": time.time(),
        }


def restart(files: Sequence[JsonLines], step: int, restarts: int, saved: TimeBreakdown) -> Restart:
    """A restart at a checkpoint that says `restarts` and `saved`, by what came after it.

    Args:
      files: the metrics and the restarts of the run.
      step: of the checkpoint.
      restarts: resumptions before the checkpoint.
      saved: what the run had spent when the checkpoint was saved.
    """
    rows = [row for file in files for row in file.read()[0]]
    # A process that ended in order has told what it spent after the checkpoint: nothing is lost.
    stops = [TimeBreakdown(**r["stopped"]) for r in rows if r["step"] == step and "stopped" in r]
    saved = max([saved, *stops], key=lambda spent: spent.wall)
    restarts = max([restarts, *(row.get("restarts", 0) for row in rows)]) + 1
    wall = max([saved.wall, *(row.get("wall_seconds", 0.0) for row in rows)])
    lost = wall - saved.wall
    previous = dataclasses.replace(saved, wall=wall, lost=saved.lost + lost)
    return Restart(step, restarts, previous, lost)
