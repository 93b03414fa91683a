"""Leave out updates whose loss or gradient norm is not finite, or far above those before.

An outlier lies above a limit that the window's own outliers hardly move,

    median + k · max(1.4826 · median |x − median|, 0.001 · |median|)

of the last accepted values. What is rejected stays out of the window; after `longest` outliers in
a row the next one is accepted and the window begins with it, so that a shift of the level becomes
the new normal.

Data, step and learning rate go on; parameters, moments, their bias corrections and averages do not.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import ModuleType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxllm.models.batch import Array
from jaxllm.training.config import SkipConfig


class SkipState(NamedTuple):
    """What is carried from step to step."""

    accepted: Any  # float32 [2, window]: losses and gradient norms, newest last; NaN where none is
    rejected: Any  # int32 [], steps in a row

    @classmethod
    def empty(cls, window: int) -> SkipState:
        """The state before the first step."""
        return cls(jnp.full((2, window), jnp.nan, jnp.float32), jnp.int32(0))

    def to_json(self) -> dict[str, Any]:
        """As small JSON, of which `restored` is bitwise the same."""
        accepted = [[float(x) for x in row if np.isfinite(x)] for row in np.asarray(self.accepted)]
        return {"accepted": accepted, "rejected": int(self.rejected)}

    @classmethod
    def restored(cls, saved: Mapping[str, Any] | None, window: int) -> SkipState:
        """From `to_json`, in a window of any size; None is the `empty` state."""
        if saved is None:
            return cls.empty(window)
        newest = np.array(saved["accepted"], np.float32)[:, -window:]
        padding = ((0, 0), (window - newest.shape[1], 0))
        return cls(np.pad(newest, padding, constant_values=np.nan), np.int32(saved["rejected"]))


class Verdict(NamedTuple):
    """What was decided of a step."""

    normal: Array  # bool [], finite and no outlier
    applied: Array  # bool [], whether there was an update
    limits: Array  # float32 [2], of loss and gradient norm; infinite while too few are known
    rejected: Array  # int32 [], steps in a row until this one


def limit(accepted: Any, threshold: float, numbers: ModuleType = jnp) -> Any:
    """The limit of accepted values [..., window], of which half are needed; NaN stands for none."""
    middle = numbers.nanmedian(accepted, axis=-1)
    spread = numbers.nanmedian(numbers.abs(accepted - middle[..., None]), axis=-1)
    sigma = numbers.maximum(1.4826 * spread, 1e-3 * numbers.abs(middle))
    enough = numbers.sum(numbers.isfinite(accepted), axis=-1) >= accepted.shape[-1] / 2
    return numbers.where(enough, middle + threshold * sigma, numbers.inf)


def judge(
    config: SkipConfig, state: SkipState, loss: Array, grad_norm: Array
) -> tuple[Verdict, SkipState]:
    """Decide on a step by its loss and gradient norm before clipping, and update the window."""
    values = jnp.stack([loss, grad_norm]).astype(jnp.float32)
    limits, finite = limit(state.accepted, config.threshold), jnp.all(jnp.isfinite(values))
    over = values > limits
    outlier = over[1] if config.rule == "clip" else jnp.any(over)
    shifted = outlier & (state.rejected >= config.longest)
    normal = finite & (shifted | ~outlier)
    before = jnp.where(shifted, jnp.nan, state.accepted)
    accepted = jnp.concatenate([before[:, 1:], values[:, None]], axis=1)
    rejected = jnp.where(normal, 0, state.rejected + 1)
    new = SkipState(jnp.where(normal, accepted, state.accepted), rejected)
    applied = finite if config.rule == "clip" else normal
    return Verdict(normal, applied, limits, rejected), new


def clip(gradients: Any, grad_norm: Array, verdict: Verdict) -> Any:
    """Scale the gradients of an outlier to the limit of their norm."""
    scale = jnp.where(verdict.normal, 1.0, verdict.limits[1] / grad_norm)
    return jax.tree.map(lambda g: (g * scale).astype(g.dtype), gradients)


def pass_over(state: Any) -> Any:
    """The TrainState after a step without an update."""
    later = lambda x: jax.tree.map(lambda count: count + 1, x) if _is_schedule(x) else x
    opt_state = jax.tree.map(later, state.opt_state, is_leaf=_is_schedule)
    return state._replace(step=state.step + 1, opt_state=opt_state)


def _is_schedule(state: Any) -> bool:
    return isinstance(state, optax.ScaleByScheduleState)
