"""Optax's AdamW as the configs say."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
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
    if config.moments_dtype == "bfloat16":
        adamw = kept_in_bfloat16(adamw)
    if config.clip is None:
        return adamw
    return optax.chain(optax.clip_by_global_norm(config.clip), adamw)


def kept_in_bfloat16(inner: optax.GradientTransformation) -> optax.GradientTransformation:
    """`inner`, computed in float32, with the float32 arrays of its state kept in bfloat16.

    The state is rounded up or down at random, so that it is right on average. The nearest
    bfloat16, which has 8 bits, would lose every change of a mean below 1/512 of it: with
    b2 = 0.999 the second mean would never fall. The randomness is a function of the state's own
    step count and of the array's place in it, so that a resumed run is bitwise the same.
    """

    def init(params: optax.Params) -> Any:
        return _cast(inner.init(params), jnp.float32, jnp.bfloat16)

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        wide = _cast(state, jnp.bfloat16, jnp.float32)
        updates, new = inner.update(updates, wide, params)
        key = jax.random.key(optax.tree.get_all_with_path(state, "count")[0][1])
        leaves, tree = jax.tree.flatten(new)
        kept = [
            _round_at_random(x, jax.random.fold_in(key, i)) if x.dtype == jnp.float32 else x
            for i, x in enumerate(leaves)
        ]
        return updates, jax.tree.unflatten(tree, kept)

    return optax.GradientTransformation(init, update)


def _cast(tree: Any, old: Any, new: Any) -> Any:
    return jax.tree.map(lambda x: x.astype(new) if x.dtype == old else x, tree)


def _round_at_random(x: jax.Array, key: jax.Array) -> jax.Array:
    """float32 to one of the two bfloat16 beside it, which is `x` on average.

    bfloat16 is the upper half of a float32: a random lower half is added and then cut off. What is
    not finite stays so, as the largest float32 below infinity may not.
    """
    bits = jax.lax.bitcast_convert_type(x, jnp.uint32)
    noise = jax.random.bits(key, x.shape, jnp.uint16).astype(jnp.uint32)
    upper = ((bits + noise) >> 16).astype(jnp.uint16)
    rounded = jax.lax.bitcast_convert_type(upper, jnp.bfloat16)
    return jnp.where(jnp.isfinite(x), rounded, x.astype(jnp.bfloat16))


def decay_mask(boxed_params: Any) -> Any:
    """True for matrices, False for vectors such as norms and biases: what weight decay acts on.

    It is the logical axes that count, not `ndim`: layers are stacked, and heads and head_dim are
    one axis of a matrix.
    """

    def is_matrix(box: nn.LogicallyPartitioned) -> bool:
        return len([name for name in box.names if name not in ("layers", "head_dim")]) >= 2

    boxed = lambda leaf: isinstance(leaf, nn.LogicallyPartitioned)
    return jax.tree.map(is_matrix, boxed_params, is_leaf=boxed)
