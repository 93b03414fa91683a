"""When checkpoints are saved, and which of them stay."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Sequence

from jaxllm.configs import NonNegativeInt, PositiveFloat, PositiveInt, configurable
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
      extra_steps: further steps, such as those at which branches begin; these checkpoints stay.
      keep_last: number of newest checkpoints to keep, besides the milestones; None keeps all.
      milestone_steps: with keep_last, checkpoints at multiples of this step stay forever.
    """

    early: PositiveInt | tuple[NonNegativeInt, ...] | None = 1
    every_steps: PositiveInt | None = 1000
    every_tokens: PositiveFloat | None = None
    extra_steps: tuple[NonNegativeInt, ...] = ()
    keep_last: PositiveInt | None = None
    milestone_steps: PositiveInt | None = None

    def __post_init__(self) -> None:
        if self.every_steps is not None and self.every_tokens is not None:
            raise UserError(
                "CheckpointConfig.every_steps and CheckpointConfig.every_tokens are both set;"
                " set one of them to None"
            )


def scheduled_steps(
    config: CheckpointConfig, steps: int, tokens_per_step: int, start: tuple[int, int] = (0, 0)
) -> tuple[int, ...]:
    """All steps in [0, steps] at which a run of `steps` steps is saved, ascending, with the last.

    Early: 0 and early · 2^k below the first regular step, k = 0, 1, …; or those listed. Regular:
    multiples of `every_steps`, or the first step whose tokens reach each multiple of
    `every_tokens`. `start`: step and tokens after which these `tokens_per_step` begin.
    """
    begin, tokens = start
    regular: Sequence[int] = ()
    if config.every_steps is not None:
        regular = range(config.every_steps, steps + 1, config.every_steps)
    elif (every := config.every_tokens) is not None:
        reached = math.floor((tokens + (steps - begin) * tokens_per_step) / every)
        multiples = range(math.floor(tokens / every) + 1, reached + 1)
        regular = [begin + math.ceil((k * every - tokens) / tokens_per_step) for k in multiples]
        if tokens >= every:  # the first regular step is behind
            regular = [begin, *regular]
    if isinstance(config.early, int):
        before = regular[0] if regular else steps + 1
        early = [s for s in (0, *(config.early << k for k in range(64))) if s < before]
    else:
        early = [step for step in config.early or () if step <= steps]
    extra = [step for step in config.extra_steps if step <= steps]
    return tuple(sorted(s for s in {*early, *regular, *extra, steps} if s > begin or not begin))


def preserved(
    config: CheckpointConfig,
    steps: Sequence[int],
    preempted: Collection[int],
    spikes: Collection[int] = (),
) -> list[bool]:
    """Whether to keep each existing checkpoint (`steps`, ascending) once the newest is saved.

    A preemption checkpoint only serves to resume: a newer one replaces it, so that an interrupted
    run leaves the same checkpoints as an uninterrupted one. Besides, as many stay from outside of
    `spikes`, since a rollback goes to none of these.
    """
    scheduled, last = [step for step in steps if step not in preempted], config.keep_last or 0
    good = [step for step in scheduled if step not in spikes]
    staying = {*scheduled[-last:], *good[-last:], *steps[-1:], *config.extra_steps}
    if config.milestone_steps:
        staying.update(step for step in scheduled if step % config.milestone_steps == 0)
    return [step in staying for step in steps]
