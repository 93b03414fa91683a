"""The learning rate of each update."""

from __future__ import annotations

import jax.numpy as jnp
import optax

from jaxllm.errors import UserError
from jaxllm.training.config import ScheduleConfig


def make_schedule(config: ScheduleConfig, steps: int) -> optax.Schedule:
    """The learning rate as a function of the updates done before (Optax's count).

    Update s = count + 1, with w warmup steps and the horizon h (s and h in steps):

      warmup    s < w        peak · s / w
      cosine    w <= s <= h  final + (peak - final) · (1 + cos(π (s - w) / (h - w))) / 2
      wsd       w <= s       peak until h - d, then linear to final at h
      constant  w <= s       peak

    Beyond the horizon the rate stays at final. The first update already learns, unlike with a
    schedule that begins at 0; at s = w and s = h both conventions agree.

    Raises:
      UserError: warmup and decay do not fit into the horizon.
    """
    horizon = config.horizon or steps
    warmup = config.warmup_steps
    decay = config.decay_steps or max(1, horizon // 10)
    needed = warmup + (decay if config.kind == "wsd" else 0)
    if config.kind != "constant" and needed > horizon:
        raise UserError(
            f"ScheduleConfig: {needed} steps of warmup and decay do not fit into {horizon} steps"
        )
    if config.kind == "constant":
        after = optax.constant_schedule(config.peak)
    elif config.kind == "wsd":
        stable = horizon - decay - warmup
        after = optax.linear_schedule(config.peak, config.final, decay, transition_begin=stable)
    else:
        after = optax.cosine_decay_schedule(
            config.peak, max(1, horizon - warmup), alpha=config.final / config.peak
        )

    def schedule(count: int) -> jnp.ndarray:
        update = jnp.asarray(count, jnp.int32) + 1
        rising = config.peak * update / max(1, warmup)
        return jnp.where(update < warmup, rising, after(jnp.maximum(update - warmup, 0)))

    return schedule
