"""The gin-bindable configuration of a suite."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from jaxllm.configs import PositiveInt, configurable
from jaxllm.errors import UserError
from jaxllm.io import location


@configurable
@dataclasses.dataclass(frozen=True)
class SuiteConfig:
    """A suite: what its runs share is in the rest of its gin file, what differs is here.

    Attributes:
      directory: where the runs live: a local path or gs://bucket/path.
      axes: gin name -> its values, or label -> value; the runs are their product. A tuple of such
        mappings is the union of several products, so a list of runs is possible, too. The names
        `params`, `tokens_per_param`, `tokens` and `flops` turn the dial of
        `jaxllm.suites.scale`: two of them give model, batch, learning rate and steps.
      name: of a run, with the axes in braces, such as '{params}_{SEED}'; None joins them all.
      sample: number of runs drawn at random from the axes; None takes all.
      cooldowns: shares of a run's steps at which a branch of it ends, decayed: (0.5,) shows what
        the run is worth at half. The branch begins a decay's length before.
      rule: law of learning rate and batch size: deepseek, step_law or olmo_ladder
        (`jaxllm.training.rules`), or the SUITE_DIR of an own sweep of ScheduleConfig.peak_lr.
      checkpoints: regular checkpoints of a run whose steps the dial gives; None leaves
        CheckpointConfig alone.
    """

    directory: str | None = None
    axes: Mapping[str, Any] | tuple[Mapping[str, Any], ...] = dataclasses.field(
        default_factory=dict
    )
    name: str | None = None
    sample: PositiveInt | None = None
    cooldowns: tuple[float, ...] = ()
    rule: str = "deepseek"
    checkpoints: PositiveInt | None = 12

    def __post_init__(self) -> None:
        if self.directory is not None:
            object.__setattr__(self, "directory", location(self.directory))
        bad = [share for share in self.cooldowns if not 0 < share <= 1]
        if bad:
            raise UserError(f"SuiteConfig.cooldowns = {self.cooldowns}: need shares up to 1")
