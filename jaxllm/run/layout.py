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
    """The paths of one run directory."""

    def __init__(self, model_dir: epath.PathLike) -> None:
        root = self.root = epath.Path(model_dir)
        self.config = root / "config.gin"  # the operative config of the newest start
        self.manifest = root / "checkpoints.jsonl"  # a line per checkpoint
        self.metrics = root / "metrics.jsonl"  # a line per logged step
        self.restarts = root / "restarts.jsonl"  # a line per restart and per stop in order
        self.writer = root / "writer.json"  # the process that trains it (`jaxllm.run.lease`)
        self.alarms = root / "alarms.jsonl"  # a line per alarm (`jaxllm.report.alarms`)
        self.skipped = root / "skipped.jsonl"  # a line per outlier that was skipped or clipped
        self.rollbacks = root / "rollbacks.jsonl"  # a line per stretch of steps without updates
        self.data = root / "data.json"  # identity of the training sequences
        self.parent = root / "parent"  # a run directory, where it begins at hf:DIR
        self.domain_weights = root / "domain_weights.gin"  # the answer of a run with DoReMi
        self.trajectory = root / "trajectory"  # a directory per step with each task's records
        self.token_losses = root / "token_losses"  # a directory per token set
        self.abandoned = root / "abandoned_records"  # records of steps that were trained again
        self.tensorboard = root / "tensorboard"  # event files and profiles
        self.report = root / "report"  # the HTML report, index.html
        # Orbax needs absolute paths.
        absolute = root if is_remote(root) else epath.Path(os.path.abspath(root))
        self.checkpoints = absolute / "checkpoints"  # Orbax's directory per step
        self.damaged = absolute / "damaged_checkpoints"  # those that could not be read

    def config_until(self, step: int) -> epath.Path:
        """The config in force before the start at `step` that changed it."""
        return self.root / f"config_until_{step}.gin"

    def checkpoint(self, step: int) -> epath.Path:
        """The directory of a checkpoint, with the items MODEL and TRAINING."""
        return self.checkpoints / str(step)

    def similarity(self, name: str) -> epath.Path:
        """The path of a comparison of layers, without the endings of its CSV and its picture."""
        return self.root / "similarity" / name

    def tokenizer_file(self, name: str) -> epath.Path:
        """The path of a saved tokenizer file."""
        return self.root / name

    def check_name(self) -> None:
        """Raise UserError for a path that Orbax would treat as a glob pattern."""
        path = str(self.checkpoints.parent)
        if patterns := [character for character in "[]*?" if character in path]:
            raise UserError(
                f"MODEL_DIR {path}: its path holds {patterns[0]!r}, with which no checkpoint could "
                "be read: name it without [ ] * ?"
            )
