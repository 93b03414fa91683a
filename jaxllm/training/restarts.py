"""MODEL_DIR/restarts.jsonl: a line for every time that a run was taken up again."""

from __future__ import annotations

import dataclasses
import time

from etils import epath

from jaxllm.run import jsonl
from jaxllm.training.timer import Lap
from jaxllm.training.writers import FILE_NAME as METRICS

FILE_NAME = "restarts.jsonl"


@dataclasses.dataclass(frozen=True)
class Restart:
    """A run that is taken up at a checkpoint.

    Attributes:
      step: of the checkpoint.
      restarts: how often the run has been taken up, with this time.
      before: what the run's processes have spent, with what they lost.
      lost_seconds: what they spent after the checkpoint, as far as a file tells: up to the last
        line of metrics.jsonl.
    """

    step: int
    restarts: int
    before: Lap
    lost_seconds: float

    def note(self, model_dir: epath.PathLike) -> None:
        """Adds its line, which the next restart reads."""
        line = {
            "step": self.step,
            "restarts": self.restarts,
            "wall_seconds": self.before.wall,
            "lost_seconds": self.lost_seconds,
            "wall_time": time.time(),
        }
        jsonl.append(epath.Path(model_dir) / FILE_NAME, line)


def restart(model_dir: epath.PathLike, step: int, restarts: int, saved: Lap) -> Restart:
    """A restart at a checkpoint that says `restarts` and `saved`; reads what came after it."""
    root = epath.Path(model_dir)
    rows = [row for name in (METRICS, FILE_NAME) for row in jsonl.read(root / name)[0]]
    restarts = max([restarts, *(row.get("restarts", 0) for row in rows)]) + 1
    lived = max([saved.wall, *(row.get("wall_seconds", 0.0) for row in rows)])
    lost = lived - saved.wall
    before = dataclasses.replace(saved, wall=lived, lost=saved.lost + lost)
    return Restart(step, restarts, before, lost)
