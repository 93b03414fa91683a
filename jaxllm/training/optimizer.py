"""Optax's AdamW as the configs say."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import optax

from jaxllm.training.config import OptimizerConfig


def make_optimizer(
    config: OptimizerConfig, schedule: optax.Schedule, boxed_params: Any
) -> optax.GradientTransformation:
    """Clipping by global norm, then AdamW.

    Args:
      config: its numbers.
      schedule: learning rate by updates done.
      boxed_params: (abstract) parameters with their logical axis names, which say what a matrix is.
    """
    mask = decay_mask(boxed_params) if config.decay == "matrices" else None
    adamw = optax.adamw(
        schedule, config.b1, config.b2, config.eps, weight_decay=config.weight_decay, mask=mask
    )
    if config.clip is None:
        return adamw
    return optax.chain(optax.clip_by_global_norm(config.clip), adamw)


def decay_mask(boxed_params: Any) -> Any:
    """True for matrices, False for vectors such as norms and biases: what weight decay acts on.

    It is the logical axes that count, not `ndim`: layers are stacked, and heads and head_dim are
    one axis of a matrix.
    """

    def is_matrix(box: nn.LogicallyPartitioned) -> bool:
        return len([name for name in box.names if name not in ("layers", "head_dim")]) >= 2

    boxed = lambda leaf: isinstance(leaf, nn.LogicallyPartitioned)
    return jax.tree.map(is_matrix, boxed_params, is_leaf=boxed)
