"""The steps at which a run is saved, and the checkpoints that are kept."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence

from jaxllm.run.config import CheckpointConfig


def scheduled_steps(config: CheckpointConfig, steps: int, tokens_per_step: int) -> tuple[int, ...]:
    """All steps in [0, steps] at which a run of `steps` steps is saved, ascending.

    Early: 0 and early · 2^k below the first regular step, k = 0, 1, …; or those listed. Regular:
    multiples of `every_steps`, or the first step whose tokens reach each multiple of
    `every_tokens`. The last step is always included.
    """
    regular = _regular_steps(config, steps, tokens_per_step)
    before = regular[0] if regular else steps + 1
    if isinstance(config.early, int):
        early = [0, *(config.early << k for k in range(64))]
        early = [step for step in early if step < before]
    else:
        early = [step for step in config.early or () if step <= steps]
    return tuple(sorted({*early, *regular, steps}))


def _regular_steps(config: CheckpointConfig, steps: int, tokens_per_step: int) -> list[int]:
    if config.every_steps is not None:
        return list(range(config.every_steps, steps + 1, config.every_steps))
    if config.every_tokens is None:
        return []
    multiples = math.floor(steps * tokens_per_step / config.every_tokens)
    return sorted(
        {math.ceil(k * config.every_tokens / tokens_per_step) for k in range(1, multiples + 1)}
    )


def preserved(
    config: CheckpointConfig, steps: Sequence[int], preempted: Collection[int]
) -> list[bool]:
    """Whether to keep each existing checkpoint (`steps`, ascending) once the newest is saved.

    A preemption checkpoint only serves to resume: a newer one replaces it, so that an interrupted
    run leaves the same checkpoints as an uninterrupted one.
    """
    scheduled = [step for step in steps if step not in preempted]
    if config.keep_last is None:
        staying = set(scheduled)
    else:
        staying = set(scheduled[-config.keep_last :])
        if config.milestone_steps:
            staying.update(step for step in scheduled if step % config.milestone_steps == 0)
    staying.update(steps[-1:])
    return [step in staying for step in steps]
