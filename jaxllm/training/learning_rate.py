"""The learning rate: its settings and its schedule."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Literal

from jaxllm.configs import (
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    configurable,
)
from jaxllm.errors import UserError

if TYPE_CHECKING:
    import jax
    import numpy as np
    import optax


@configurable
@dataclasses.dataclass(frozen=True)
class ScheduleConfig:
    """The learning-rate schedule; `make_schedule` has the formulas.

    Attributes:
      kind: 'cosine'; 'wsd': warmup, stable, decay (arXiv 2404.06395, §4.2); or 'constant'.
      peak_lr: learning rate at the end of the warmup.
      end_lr: learning rate at the end of the decay (not for 'constant').
      warmup_steps: steps of linear warmup from 0; the first update has a rate above 0.
      decay_steps: length of the decay of 'wsd'; None: a tenth of the steps until its end.
      begin_step: step after which the warmup begins: of a branch that warms up again.
      decay_end_step: step at which `end_lr` is reached; None: the run's last step. Set it for a run
        that stops early on the schedule of a longer one.
    """

    kind: Literal["cosine", "wsd", "constant"] = "cosine"
    peak_lr: PositiveFloat = 3e-4
    end_lr: NonNegativeFloat = 3e-5
    warmup_steps: NonNegativeInt = 100
    decay_steps: PositiveInt | None = None
    begin_step: NonNegativeInt = 0
    decay_end_step: PositiveInt | None = None


def make_schedule(config: ScheduleConfig, steps: int) -> optax.Schedule:
    """The learning rate as a function of the updates done before (Optax's count).

    Update s = count + 1 and decay_end_step h, both counted from begin_step, and w warmup steps:

        warmup    s < w        peak · s / w
        cosine    w <= s <= h  end + (peak - end) · (1 + cos(π (s - w) / (h - w))) / 2
        wsd       w <= s       peak until h - d, then linear to end at h
        constant  w <= s       peak

    Beyond h the rate stays at end_lr. UserError if warmup and decay do not fit into the steps.
    """
    import jax.numpy as jnp
    import optax

    end = (config.decay_end_step or steps) - config.begin_step
    warmup = config.warmup_steps
    decay = config.decay_steps or max(1, end // 10)
    needed = warmup + (decay if config.kind == "wsd" else 0)
    if config.kind != "constant" and needed > end:
        raise UserError(
            f"ScheduleConfig: {needed} steps of warmup and decay do not fit into {end} steps"
        )
    if config.kind == "constant":
        after = optax.constant_schedule(config.peak_lr)
    elif config.kind == "wsd":
        linear = optax.linear_schedule(
            config.peak_lr, config.end_lr, decay, transition_begin=end - decay - warmup
        )
        after = lambda count: jnp.maximum(linear(count), config.end_lr)  # never an ulp below end_lr
    else:
        after = optax.cosine_decay_schedule(
            config.peak_lr, max(1, end - warmup), alpha=config.end_lr / config.peak_lr
        )

    def schedule(count: int) -> jax.Array:
        update = jnp.asarray(count, jnp.int32) + 1 - config.begin_step
        rising = config.peak_lr * jnp.maximum(update, 0) / max(1, warmup)
        return jnp.where(update < warmup, rising, after(jnp.maximum(update - warmup, 0)))

    return schedule


def planned_rates(config: ScheduleConfig, steps: int) -> np.ndarray:
    """The learning rate of updates 1 to `steps`, as `make_schedule` has it, without JAX."""
    import numpy as np

    end = (config.decay_end_step or steps) - config.begin_step
    update = np.arange(1, steps + 1) - config.begin_step
    if config.kind == "constant":
        after = np.full(steps, config.peak_lr)
    else:
        length = end - config.warmup_steps
        if config.kind == "wsd":
            length = config.decay_steps or max(1, end // 10)
        done = np.clip((update - end + length) / max(1, length), 0, 1)
        left = (1 + np.cos(np.pi * done)) / 2 if config.kind == "cosine" else 1 - done
        after = config.end_lr + (config.peak_lr - config.end_lr) * left
    rising = config.peak_lr * np.maximum(update, 0) / max(1, config.warmup_steps)
    return np.where(update < config.warmup_steps, rising, after)
