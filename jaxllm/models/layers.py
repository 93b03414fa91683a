"""Attention, MLP and the transformer block."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from jaxllm.models.attention import PositionBias, attend, causal_attention
from jaxllm.models.config import ModelConfig
from jaxllm.models.norms import Norm
from jaxllm.models.partitioning import param, saveable, with_logical_constraint
from jaxllm.models.positions import apply_rope
from jaxllm.models.quantization import quantized_linear


class BlockInputs(NamedTuple):
    """Inputs that all blocks share."""

    segment_ids: jax.Array  # int32 [B, T] of the tokens
    rope: tuple[jax.Array, jax.Array] | None = None  # `rope_cos_sin`, with RoPE
    position_bias: PositionBias | None = None  # with windows, which each layer adds, or ALiBi
    cache_segment_ids: jax.Array | None = None  # int32 [B, S] of the cache
    cache_index: jax.Array | None = None  # int32, index of the first token in the cache
    visible_until: jax.Array | None = None  # int32 [B, T], replaces segments (`batch.TreeBatch`)


class LayerCache(NamedTuple):
    """Keys and values [B, G, S, K] of one layer (or [L, B, G, S, K] of all).

    The tokens of a head are contiguous, as attention reads them: no step transposes the cache.
    """

    key: jax.Array
    value: jax.Array


@jax.custom_vjp
def linear(x: jax.Array, weights: jax.Array) -> jax.Array:
    """Matmul x [..., D] @ weights [D, F] -> [..., F].

    The gradients are written as plain matmuls: autodiff transposes the weight gradient, which
    makes XLA on CPUs transpose the larger activations.
    """
    return jnp.einsum("...d,df->...f", x, weights)


def _linear_backward(
    residuals: tuple[jax.Array, jax.Array], gradient: jax.Array
) -> tuple[jax.Array, jax.Array]:
    x, weights = residuals
    summed = tuple(range(x.ndim - 1))
    # XLA transposes the left operand, so the smaller one goes there
    if x.shape[-1] > gradient.shape[-1]:
        weights_gradient = jax.lax.dot_general(gradient, x, ((summed, summed), ((), ()))).T
    else:
        weights_gradient = jax.lax.dot_general(x, gradient, ((summed, summed), ((), ())))
    return jnp.einsum("...f,df->...d", gradient, weights), weights_gradient


linear.defvjp(lambda x, weights: (linear(x, weights), (x, weights)), _linear_backward)


def matmul(config: ModelConfig, x: jax.Array, weights: jax.Array) -> jax.Array:
    """Matmul x [..., D] @ weights [D, F] -> [..., F], quantized as in `config.quantization`."""
    if config.quantization == "none":
        return linear(x, weights)
    return quantized_linear(config.quantization, x, weights)


class Attention(nn.Module):
    """Grouped-query attention."""

    config: ModelConfig

    @nn.compact
    def __call__(
        self, x: jax.Array, inputs: BlockInputs, cache: LayerCache | None, window: jax.Array | None
    ) -> tuple[jax.Array, LayerCache | None]:
        """x [B, T, D] -> [B, T, D], and the cache with the new keys and values."""
        config = self.config
        embed, heads, head_dim = config.embed_dim, config.num_heads, config.head_size

        def project(name: str, count: int, axis: str) -> jax.Array:
            shape, axes = (count, head_dim), (axis, "head_dim")
            weights = param(self, name, (embed, *shape), ("embed", *axes))
            out = matmul(config, x, weights.reshape(embed, count * head_dim))
            out = out.reshape(*x.shape[:2], *shape)
            if "qkv" in config.use_bias:
                out += param(self, f"{name}_bias", shape, axes, nn.initializers.zeros)
            if config.quirks.clip_qkv is not None:
                out = jnp.clip(out, -config.quirks.clip_qkv, config.quirks.clip_qkv)
            return saveable(out, name, "batch", "length", *axes)

        query = project("query", heads, "heads")
        key = project("key", config.kv_heads, "kv_heads")
        value = project("value", config.kv_heads, "kv_heads")
        if config.qk_norm == "all_heads":
            query = self._norm_flat(query, "query_norm")
            key = self._norm_flat(key, "key_norm")
        elif config.qk_norm == "per_head":
            query = Norm(config, name="query_norm")(query)
            key = Norm(config, name="key_norm")(key)
        if inputs.rope is not None:
            query = apply_rope(query, *inputs.rope)
            key = apply_rope(key, *inputs.rope)
        position_bias = inputs.position_bias and inputs.position_bias._replace(window=window)
        scale = config.quirks.attention_scale
        if self.is_mutable_collection("monitors"):  # see `jaxllm.training.monitors`
            largest = lambda x: jnp.linalg.norm(x.astype(jnp.float32), axis=-1).max(axis=(0, 1))
            bounds = largest(query) * jnp.repeat(largest(key), heads // config.kv_heads)
            self.sow("monitors", "qk_logit_bound", (scale or head_dim**-0.5) * bounds.max())
        if cache is None:
            attn_out = causal_attention(
                query, key, value, inputs.segment_ids, scale=scale, position_bias=position_bias,
                window=config.uniform_window, visible_until=inputs.visible_until,
            )  # fmt: skip
        else:
            mask, cache = _write_cache(key, value, inputs, cache)
            keys, values = cache.key.swapaxes(1, 2), cache.value.swapaxes(1, 2)
            attn_out = attend(query, keys, values, mask, scale, position_bias)
        attn_out = with_logical_constraint(attn_out, "batch", "length", "heads", "head_dim")
        output = param(self, "output", (heads, head_dim, embed), ("heads", "head_dim", "embed"))
        flat = attn_out.reshape(*x.shape[:2], heads * head_dim)
        attn_out = matmul(config, flat, output.reshape(heads * head_dim, embed))
        if "attention_output" in config.use_bias:
            attn_out += param(self, "output_bias", (embed,), ("norm",), nn.initializers.zeros)
        return attn_out, cache

    def _norm_flat(self, x: jax.Array, name: str) -> jax.Array:
        """Normalize x [B, T, H, K] over H and K together (OLMo 2)."""
        return Norm(self.config, name=name)(x.reshape(*x.shape[:2], -1)).reshape(x.shape)


def _write_cache(
    key: jax.Array, value: jax.Array, inputs: BlockInputs, cache: LayerCache
) -> tuple[jax.Array, LayerCache]:
    """Write keys and values at `inputs.cache_index`; return the mask [B, T, S] and new cache."""
    assert inputs.cache_index is not None and inputs.cache_segment_ids is not None
    start = (0, 0, inputs.cache_index, 0)
    write = lambda old, new: jax.lax.dynamic_update_slice(
        old, new.swapaxes(1, 2).astype(old.dtype), start
    )
    cache = LayerCache(write(cache.key, key), write(cache.value, value))
    indices = inputs.cache_index + jnp.arange(key.shape[1])
    causal = jnp.arange(cache.key.shape[2])[None, :] <= indices[:, None]
    same = inputs.segment_ids[:, :, None] == inputs.cache_segment_ids[:, None, :]
    return causal[None] & same, cache


class MLP(nn.Module):
    """act(x W_up) W_down, or gated (act(x W_gate) * x W_up) W_down (SwiGLU, Shazeer 2020)."""

    config: ModelConfig

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """x [B, T, D] -> [B, T, D]."""
        config = self.config
        embed, mlp_dim = config.embed_dim, config.mlp_dim

        def project(name: str) -> jax.Array:
            out = matmul(config, x, param(self, name, (embed, mlp_dim), ("embed", "mlp")))
            if "mlp" in config.use_bias:
                out += param(self, f"{name}_bias", (mlp_dim,), ("mlp",), nn.initializers.zeros)
            return saveable(out, name, "batch", "length", "mlp")

        gate = project("gate") if config.mlp_type == "gated" else None
        up = project("up")
        down = param(self, "down", (mlp_dim, embed), ("mlp", "embed"))
        activation = _ACTIVATIONS[config.activation]
        hidden = activation(up) if gate is None else gated(config.activation, gate, up)
        out = matmul(config, hidden, down)
        if "mlp" in config.use_bias:
            out += param(self, "down_bias", (embed,), ("norm",), nn.initializers.zeros)
        return out


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def gated(activation: str, gate: jax.Array, up: jax.Array) -> jax.Array:
    """act(gate) * up.

    Its gradients are materialized: otherwise XLA on TPUs recomputes them from three arrays inside
    each of the four matmuls that read them.
    """
    return _ACTIVATIONS[activation](gate) * up


def _gated_backward(
    activation: str, residuals: tuple[jax.Array, jax.Array], gradient: jax.Array
) -> tuple[jax.Array, jax.Array]:
    gate, up = residuals
    activated, back = jax.vjp(_ACTIVATIONS[activation], gate)
    (gate_gradient,) = back(gradient * up)
    return jax.lax.optimization_barrier((gate_gradient, gradient * activated))


gated.defvjp(lambda name, gate, up: (gated(name, gate, up), (gate, up)), _gated_backward)

_ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "silu": nn.silu,
    "gelu": partial(nn.gelu, approximate=False),
    "gelu_tanh": nn.gelu,
    "relu": nn.relu,
}


class Block(nn.Module):
    """One transformer block, with the signature of a scan body."""

    config: ModelConfig

    @nn.compact
    def __call__(
        self, x: jax.Array, cache: LayerCache | None, window: jax.Array | None, inputs: BlockInputs
    ) -> tuple[jax.Array, LayerCache | None]:
        """x [B, T, D] -> [B, T, D], and the layer's new cache.

        The window, int32 [], is this layer's; None where no layer has one.
        """
        config = self.config
        attention = Attention(config, name="attention")
        mlp = MLP(config, name="mlp")
        attention_norm = Norm(config, name="attention_norm")
        mlp_norm = Norm(config, name="mlp_norm")

        def attend(x: jax.Array) -> jax.Array:
            nonlocal cache
            attended, cache = attention(x, inputs, cache, window)
            return checkpoint_name(attended, "attention_output")

        apply_mlp = lambda x: checkpoint_name(mlp(x), "mlp_output")
        x = with_logical_constraint(x, "batch", "length", "embed_activation")
        if self.is_mutable_collection("monitors"):
            rms = jnp.sqrt(jnp.mean(jnp.square(x.astype(jnp.float32))))
            self.sow("monitors", "activation_rms", rms)
        if config.block_type == "parallel":
            x = x + attend(attention_norm(x)) + apply_mlp(mlp_norm(x))
        else:
            x = _residual(config.block_type, x, attention_norm, attend)
            x = _residual(config.block_type, x, mlp_norm, apply_mlp)
        return with_logical_constraint(x, "batch", "length", "embed_activation"), cache


_Function = Callable[[jax.Array], jax.Array]


def _residual(block_type: str, x: jax.Array, norm: _Function, sublayer: _Function) -> jax.Array:
    if block_type == "pre_norm":
        return x + sublayer(norm(x))
    if block_type == "post_norm":
        return norm(x + sublayer(x))
    return x + norm(sublayer(x))
