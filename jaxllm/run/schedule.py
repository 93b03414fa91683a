"""The steps at which a run is saved, and the checkpoints that stay."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence

from jaxllm.run.config import CheckpointConfig


def scheduled_steps(config: CheckpointConfig, steps: int, tokens_per_step: int) -> tuple[int, ...]:
    """All steps in [0, steps] at which a run of `steps` steps is saved, ascending.

    Early: round(early_first · 2^(k / early_per_doubling)), k = 0, 1, …, below the first regular
    step or up to `early_until`. Regular: multiples of `every_steps`, or the first step whose
    tokens reach each multiple of `every_tokens`. The last step is always one of them.
    """
    chosen = {steps}
    if config.initial:
        chosen.add(0)
    regular = _regular_steps(config, steps, tokens_per_step)
    chosen.update(regular)
    if config.early_first is not None:
        until = config.early_until
        if until is None:
            until = (regular[0] if regular else steps + 1) - 1
        chosen.update(_early_steps(config, min(until, steps)))
    return tuple(sorted(chosen))


def _regular_steps(config: CheckpointConfig, steps: int, tokens_per_step: int) -> list[int]:
    if config.every_steps is not None:
        return list(range(config.every_steps, steps + 1, config.every_steps))
    if config.every_tokens is None:
        return []
    multiples = math.floor(steps * tokens_per_step / config.every_tokens)
    return sorted(
        {math.ceil(k * config.every_tokens / tokens_per_step) for k in range(1, multiples + 1)}
    )


def _early_steps(config: CheckpointConfig, until: int) -> list[int]:
    assert config.early_first is not None
    found: list[int] = []
    k = 0
    while (step := round(config.early_first * 2 ** (k / config.early_per_doubling))) <= until:
        found.append(step)
        k += 1
    return found


def preserved(
    config: CheckpointConfig, steps: Sequence[int], preempted: Collection[int]
) -> list[bool]:
    """Which of the existing checkpoints (`steps`, ascending) stay once the newest is saved.

    A checkpoint that a preemption forced is only there to resume from: a newer one replaces it,
    so that a run that was killed leaves the same checkpoints as one that was not.
    """
    scheduled = [step for step in steps if step not in preempted]
    if config.keep == "all":
        kept = set(scheduled)
    else:
        kept = set(scheduled[-config.keep_last :])
        if config.milestone_steps:
            kept.update(step for step in scheduled if step % config.milestone_steps == 0)
    kept.update(steps[-1:])
    return [step in kept for step in steps]
