"""Shared parts of the optimizers: clipping, state dtype, and what the parameters' axes decide."""

from __future__ import annotations

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax


def clipped(
    inner: optax.GradientTransformation, max_grad_norm: float | None, state_dtype: str
) -> optax.GradientTransformation:
    """Clipping by global norm, if any, then `inner` with its state in `state_dtype`."""
    inner = in_float32(inner)
    if state_dtype == "bfloat16":
        inner = with_bf16_state(inner)
    if max_grad_norm is None:
        return inner
    return optax.chain(optax.clip_by_global_norm(max_grad_norm), inner)


def in_float32(inner: optax.GradientTransformation) -> optax.GradientTransformation:
    """`inner` on float32 copies of gradients and parameters, so that its state is float32.

    Optax creates moments in the parameters' dtype; in bfloat16, rounded to nearest, the second
    moment would never fall (see `with_bf16_state`). float32 parameters are not copied.
    """
    widen = lambda tree: _cast(tree, jnp.bfloat16, jnp.float32)

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        return inner.update(widen(updates), state, widen(params))

    return optax.GradientTransformation(lambda params: inner.init(widen(params)), update)


class EmaState(NamedTuple):
    """The state of `with_ema`; `jaxllm.run.averages` finds the average by its name."""

    count: Any  # int32 [], updates done
    inner: Any
    ema: Any  # tree of parameters


def with_ema(
    inner: optax.GradientTransformation, decay: float, dtype: str
) -> optax.GradientTransformation:
    """`inner`, with a moving average of the updated parameters: a = decay · a + (1 - decay) · p.

    It begins at the initial parameters. In bfloat16 it is rounded stochastically, as it would
    otherwise stand still where (1 - decay) · |p - a| is below the last bit.
    """

    def init(params: Any) -> EmaState:
        ema = jax.tree.map(lambda p: p.astype(dtype), params)
        return EmaState(jnp.zeros((), jnp.int32), inner.init(params), ema)

    def update(updates: Any, state: EmaState, params: Any = None) -> tuple[Any, EmaState]:
        updates, own = inner.update(updates, state.inner, params)
        wide = lambda x: x.astype(jnp.float32)
        mean = lambda a, p: decay * wide(a) + (1 - decay) * wide(p)
        ema = jax.tree.map(mean, state.ema, optax.apply_updates(params, updates))
        ema = _in_bfloat16(ema, state.count) if dtype == "bfloat16" else ema
        return updates, EmaState(state.count + 1, own, ema)

    return optax.GradientTransformation(init, update)


def with_bf16_state(inner: optax.GradientTransformation) -> optax.GradientTransformation:
    """`inner`, computed in float32, with the float32 arrays of its state stored in bfloat16.

    Rounding to nearest, with bfloat16's 8 bits, would lose every change of a moment below 1/512 of
    it: with b2 = 0.999 the second moment would never fall. The random key of the stochastic
    rounding is a function of the step and the array, so that a resumed run is bitwise the same.
    """

    def init(params: optax.Params) -> Any:
        return _cast(inner.init(params), jnp.float32, jnp.bfloat16)

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        wide = _cast(state, jnp.bfloat16, jnp.float32)
        updates, new = inner.update(updates, wide, params)
        return updates, _in_bfloat16(new, optax.tree.get_all_with_path(state, "count")[0][1])

    return optax.GradientTransformation(init, update)


def _cast(tree: Any, old: Any, new: Any) -> Any:
    return jax.tree.map(lambda x: x.astype(new) if x.dtype == old else x, tree)


def _in_bfloat16(tree: Any, count: Any) -> Any:
    """Round the float32 arrays of a tree stochastically, with keys by `count` and array."""
    key, (leaves, structure) = jax.random.key(count), jax.tree.flatten(tree)
    rounded = [
        _stochastic_round(x, jax.random.fold_in(key, i)) if x.dtype == jnp.float32 else x
        for i, x in enumerate(leaves)
    ]
    return jax.tree.unflatten(structure, rounded)


def _stochastic_round(x: jax.Array, key: jax.Array) -> jax.Array:
    """Round float32 to one of the two adjacent bfloat16 values, with `x` as the expectation.

    bfloat16 is the upper half of a float32: a random lower half is added, then truncated.
    Non-finite values stay so; the largest finite ones may overflow.
    """
    bits = jax.lax.bitcast_convert_type(x, jnp.uint32)
    noise = jax.random.bits(key, x.shape, jnp.uint16).astype(jnp.uint32)
    upper = ((bits + noise) >> 16).astype(jnp.uint16)
    rounded = jax.lax.bitcast_convert_type(upper, jnp.bfloat16)
    return jnp.where(jnp.isfinite(x), rounded, x.astype(jnp.bfloat16))


def weight_decay_mask(boxed_params: Any) -> Any:
    """True for matrices, False for vectors such as norms and biases, by their logical axes.

    Layers are stacked, and heads and head_dim are one axis of a matrix.
    """
    is_matrix = lambda box: len([n for n in box.names if n not in ("layers", "head_dim")]) >= 2
    return jax.tree.map(is_matrix, boxed_params, is_leaf=_is_boxed)


def muon_dimensions(boxed_params: Any) -> Any:
    """The input and output axes of the blocks' matrices; None for what AdamW updates."""

    def axes(box: nn.LogicallyPartitioned) -> optax.contrib.MuonDimensionNumbers | None:
        if "embed" not in box.names or "vocab" in box.names:
            return None
        embed = (box.names.index("embed"),)
        others = tuple(i for i, n in enumerate(box.names) if n not in ("layers", "embed"))
        both = (others, embed) if box.names[-1] == "embed" else (embed, others)
        return optax.contrib.MuonDimensionNumbers(*both)

    return jax.tree.map(axes, boxed_params, is_leaf=_is_boxed)


def _is_boxed(leaf: Any) -> bool:
    return isinstance(leaf, nn.LogicallyPartitioned)
