"""When checkpoints are saved, and which of them stay."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Sequence

from jaxllm.configs import NonNegativeInt, PositiveInt, configurable


@configurable
@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
    """The checkpoint schedule of a run: dense while capabilities emerge fast, then regular.

    The defaults with `every_steps=1000` are Pythia's: 0, 1, 2, 4, …, 512, 1000, 2000, … (Biderman
    et al. 2023, arXiv 2304.01373, §2.1).

    Attributes:
      early: first early checkpoint; the steps double up to the first regular one: 0, early,
        2·early, …. A tuple lists all early steps; None means none, not even step 0.
      every_steps: steps between regular checkpoints; None saves only the early ones and the last.
      extra_steps: further steps, such as those at which branches begin; these checkpoints stay.
      keep_last: number of newest checkpoints to keep, besides the extra ones; None keeps all.
    """

    early: PositiveInt | tuple[NonNegativeInt, ...] | None = 1
    every_steps: PositiveInt | None = 1000
    extra_steps: tuple[NonNegativeInt, ...] = ()
    keep_last: PositiveInt | None = None


def scheduled_steps(config: CheckpointConfig, steps: int, begin: int = 0) -> tuple[int, ...]:
    """All steps at which a run of `steps` steps is saved, ascending, with the last.

    Early: 0 and early · 2^k below the first regular step, k = 0, 1, …; or those listed. Regular:
    multiples of `every_steps`. Of a stage that begins after step `begin`: those beyond it.
    """
    every = config.every_steps
    regular = range(every, steps + 1, every) if every else ()
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
    return [step in staying for step in steps]
