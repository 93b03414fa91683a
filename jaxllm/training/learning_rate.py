"""The learning rate: its settings and its schedule."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from types import ModuleType
from typing import Any, Literal

from jaxllm.configs import (
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    configurable,
)
from jaxllm.errors import UserError


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


def make_schedule(
    config: ScheduleConfig, steps: int, numbers: ModuleType | None = None
) -> Callable[[Any], Any]:
    """The learning rate as a function of the updates done before (Optax's count).

    Update s = count + 1 and decay_end_step h, both counted from begin_step, and w warmup steps:

        warmup    s < w        peak · s / w
        cosine    w <= s <= h  end + (peak - end) · (1 + cos(π (s - w) / (h - w))) / 2
        wsd       w <= s       peak until h - d, then linear to end at h
        constant  w <= s       peak

    Beyond h the rate stays at end_lr. It is computed by `numbers`, JAX's NumPy or, where JAX is not
    wanted, NumPy itself. UserError if warmup and decay do not fit into the steps.
    """
    if numbers is None:
        import jax.numpy

        numbers = jax.numpy
    peak, low, warmup = config.peak_lr, config.end_lr, config.warmup_steps
    end = (config.decay_end_step or steps) - config.begin_step
    decay = config.decay_steps or max(1, end // 10)
    needed = warmup + (decay if config.kind == "wsd" else 0)
    if config.kind != "constant" and needed > end:
        raise UserError(
            f"ScheduleConfig: warmup_steps and decay_steps, {needed}, do not fit into {end} steps"
        )

    def after_warmup(count: Any) -> Any:
        if config.kind == "constant":
            return peak
        if config.kind == "wsd":
            done = numbers.clip(count - (end - decay - warmup), 0, decay)
            # never an ulp below the end
            return numbers.maximum((peak - low) * (1 - done / decay) + low, low)
        length, share = float(max(1, end - warmup)), low / peak
        cosine = 0.5 * (1 + numbers.cos(numbers.pi * numbers.minimum(count, length) / length))
        return peak * ((1 - share) * cosine + share)

    def schedule(count: Any) -> Any:
        update = numbers.asarray(count, numbers.int32) + 1 - config.begin_step
        rising = peak * numbers.maximum(update, 0) / max(1, warmup)
        after = after_warmup(numbers.maximum(update - warmup, 0))
        return numbers.where(update < warmup, rising, after)

    return schedule
