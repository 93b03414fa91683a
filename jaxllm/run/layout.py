"""The layout of a run directory, on a disk or at `gs://bucket/path`.

No other module joins a path below MODEL_DIR.
"""

from __future__ import annotations

import os

from etils import epath

from jaxllm.errors import UserError
from jaxllm.io import is_remote

MODEL, TRAINING = "model", "training"  # the two items of a checkpoint
TOKENIZERS = ("tokenizer.model", "tokenizer.json")  # a run has at most one of them


class Layout:
    """The paths of one run directory.

    Attributes:
      root: MODEL_DIR.
      config: the operative gin config of the newest start.
      manifest: a line per checkpoint (`jaxllm.run.manifest`).
      metrics: a line per logged step.
      restarts: a line per start after the first.
      alarms: a line per alarm (`jaxllm.report.alarms`).
      data: the fingerprint of the training sequences.
      checkpoints: Orbax's directory per step.
      damaged: checkpoints that could not be read.
      trajectory: a directory per step with the records of each task.
      abandoned: records of steps that were trained again.
      tensorboard: event files and profiles.
      report: the directory of the HTML report, index.html.
    """

    def __init__(self, model_dir: epath.PathLike) -> None:
        root = self.root = epath.Path(model_dir)
        self.config = root / "config.gin"
        self.manifest = root / "checkpoints.jsonl"
        self.metrics = root / "metrics.jsonl"
        self.restarts = root / "restarts.jsonl"
        self.alarms = root / "alarms.jsonl"
        self.data = root / "data.json"
        # Orbax needs absolute paths.
        absolute = root if is_remote(root) else epath.Path(os.path.abspath(root))
        self.checkpoints = absolute / "checkpoints"
        self.damaged = absolute / "damaged_checkpoints"
        self.trajectory = root / "trajectory"
        self.abandoned = root / "abandoned_records"
        self.tensorboard = root / "tensorboard"
        self.report = root / "report"

    def config_until(self, step: int) -> epath.Path:
        """The config in force before the start at `step` that changed it."""
        return self.root / f"config_until_{step}.gin"

    def check_name(self) -> None:
        """Reject a path that Orbax would treat as a glob pattern.

        Raises:
          UserError: the absolute path contains one of `[ ] * ?`.
        """
        path = str(self.checkpoints.parent)
        for character in "[]*?":
            if character in path:
                raise UserError(
                    f"MODEL_DIR {path}: its path holds {character!r}, with which no checkpoint "
                    "could be read: name it without [ ] * ?"
                )

    def checkpoint(self, step: int) -> epath.Path:
        """The directory of a checkpoint, with the items MODEL and TRAINING."""
        return self.checkpoints / str(step)

    def tokenizer_file(self, name: str) -> epath.Path:
        """The path of a saved tokenizer file."""
        return self.root / name
