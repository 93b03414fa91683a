"""When checkpoints are saved and which of them stay."""

from __future__ import annotations

import dataclasses

from jaxllm.configs import configurable
from jaxllm.errors import UserError


@configurable
@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
    """The checkpoint schedule of a run: dense while capabilities emerge fast, then regular.

    The defaults with `every_steps=1000` are Pythia's: 0, 1, 2, 4, …, 512, 1000, 2000, … (Biderman
    et al. 2023, arXiv 2304.01373, §2.1).

    Attributes:
      early: first early checkpoint; the steps double up to the first regular one: 0, early,
        2·early, …. A tuple lists all early steps; None means none, not even step 0.
      every_steps: steps between regular checkpoints.
      every_tokens: the same in tokens: the first step at or beyond each multiple. Set at most one
        of the two; with neither, only the early checkpoints and the last step are saved.
      keep_last: number of newest checkpoints to keep, besides the milestones; None keeps all.
      milestone_steps: with keep_last, checkpoints at multiples of this step stay forever.
    """

    early: int | tuple[int, ...] | None = 1
    every_steps: int | None = 1000
    every_tokens: float | None = None
    keep_last: int | None = None
    milestone_steps: int | None = None

    def __post_init__(self) -> None:
        if self.every_steps is not None and self.every_tokens is not None:
            raise UserError(
                "CheckpointConfig.every_steps and CheckpointConfig.every_tokens are both set;"
                " set one of them to None"
            )
        for name in ("early", "every_steps", "every_tokens", "keep_last", "milestone_steps"):
            value = getattr(self, name)
            if not isinstance(value, tuple | None) and value <= 0:
                raise UserError(f"CheckpointConfig.{name} = {value}: it must be positive")
        if isinstance(self.early, tuple) and any(step < 0 for step in self.early):
            raise UserError(f"CheckpointConfig.early = {self.early}: no step is negative")
