"""When checkpoints are saved and which of them are kept."""

from __future__ import annotations

import dataclasses

from jaxllm.configs import configurable
from jaxllm.errors import UserError


@configurable
@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
    """The cadence of a run's checkpoints: dense while capabilities emerge fast, then regular.

    The defaults with `every_steps=1000` are Pythia's: 0, 1, 2, 4, …, 512, 1000, 2000, …
    (Biderman et al. 2023, arXiv 2304.01373, §2.1).

    Attributes:
      initial: whether step 0, the untrained model, is saved (and scored) as well.
      early_first: first step of the log-spaced early series; None for no such series.
      early_per_doubling: how many early checkpoints fall into each doubling of the step.
      early_until: no early checkpoint beyond this step (None: up to the first regular one).
      every_steps: a checkpoint at every multiple of this many steps.
      every_tokens: the same in tokens: the first step at or beyond each multiple. Set at most
        one of the two; with neither only the early ones and the last step are saved.
      keep: 'all', or 'last': the newest `keep_last` and the milestones.
      keep_last: how many of the newest are kept with keep='last'.
      milestone_steps: with keep='last', multiples of this step are kept for ever.
    """

    initial: bool = True
    early_first: int | None = 1
    early_per_doubling: int = 1
    early_until: int | None = None
    every_steps: int | None = 1000
    every_tokens: float | None = None
    keep: str = "all"
    keep_last: int = 3
    milestone_steps: int | None = None

    def __post_init__(self) -> None:
        if self.every_steps is not None and self.every_tokens is not None:
            raise UserError(
                "CheckpointConfig.every_steps and CheckpointConfig.every_tokens are both set;"
                " set one of them to None"
            )
        for name in ("early_first", "early_per_doubling", "every_steps", "every_tokens",
                     "keep_last", "milestone_steps"):  # fmt: skip
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise UserError(f"CheckpointConfig.{name} = {value}: it must be positive")
        if self.keep not in ("all", "last"):
            raise UserError(f"CheckpointConfig.keep = {self.keep!r}: choose 'all' or 'last'")
