"""The parts of a decoder block."""

from __future__ import annotations

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from jaxllm.models.attention import attend, causal_attention
from jaxllm.models.config import ModelConfig
from jaxllm.models.partitioning import constrain


class Context(NamedTuple):
    """What every layer needs to know of the tokens.

    Attributes:
      cosine, sine: float32 [B, T, 1, head_dim / 2], the rotations of the tokens' positions.
      segment_ids: int32 [B, T] of the tokens.
      cache_segment_ids: int32 [B, S] of the cache's slots, or None without a cache.
      slot: int32, the cache slot of the first token, or None.
    """

    cosine: jax.Array
    sine: jax.Array
    segment_ids: jax.Array
    cache_segment_ids: jax.Array | None = None
    slot: jax.Array | None = None


class LayerCache(NamedTuple):
    """Keys and values [B, S, G, K] of one layer (or [L, B, S, G, K] of all)."""

    key: jax.Array
    value: jax.Array


def rotations(config: ModelConfig, positions: jax.Array) -> tuple[jax.Array, jax.Array]:
    """cos and sin of position x frequency, float32 [B, T, 1, head_dim / 2] (Su et al. 2021)."""
    half = config.head_width // 2
    frequencies = config.rope_theta ** (-jnp.arange(half, dtype=jnp.float32) / half)
    angles = positions[..., None, None].astype(jnp.float32) * frequencies
    return jnp.cos(angles), jnp.sin(angles)


def rotate(x: jax.Array, cosine: jax.Array, sine: jax.Array) -> jax.Array:
    """Rotates the pairs (i, i + K/2) of x [B, T, H, K]: the layout of LLaMA in Transformers."""
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    rotated = jnp.concatenate(
        [first * cosine - second * sine, second * cosine + first * sine], axis=-1
    )
    return rotated.astype(x.dtype)


def matrix(
    module: nn.Module, name: str, shape: tuple[int, ...], axes: tuple[str, ...]
) -> jax.Array:
    """A weight matrix of `module`, initialised from N(0, init_stddev), in the compute dtype."""
    config: ModelConfig = module.config
    initializer = nn.with_logical_partitioning(nn.initializers.normal(config.init_stddev), axes)
    weights = module.param(name, initializer, shape, jnp.dtype(config.param_dtype))
    return jnp.asarray(weights, config.dtype)


@jax.custom_vjp
def linear(x: jax.Array, weights: jax.Array) -> jax.Array:
    """x [..., D] times weights [D, F] -> [..., F].

    The gradients are stated as plain products: autodiff gives the weights' transposed, which makes
    XLA on CPUs transpose the wide activations.
    """
    return jnp.einsum("...d,df->...f", x, weights)


def _linear_forward(
    x: jax.Array, weights: jax.Array
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return linear(x, weights), (x, weights)


def _linear_backward(
    residuals: tuple[jax.Array, jax.Array], gradient: jax.Array
) -> tuple[jax.Array, jax.Array]:
    x, weights = residuals
    rows = tuple(range(x.ndim - 1))
    # the product's left side is what gets transposed: let it be the narrow one
    if x.shape[-1] > gradient.shape[-1]:
        weights_gradient = jax.lax.dot_general(gradient, x, ((rows, rows), ((), ()))).T
    else:
        weights_gradient = jax.lax.dot_general(x, gradient, ((rows, rows), ((), ())))
    return jnp.einsum("...f,df->...d", gradient, weights), weights_gradient


linear.defvjp(_linear_forward, _linear_backward)


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) * scale, in float32 (Zhang & Sennrich 2019)."""

    config: ModelConfig

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """x [..., D] -> [..., D] in x's dtype."""
        ones = nn.with_logical_partitioning(nn.initializers.ones, ("norm",))
        scale = self.param("scale", ones, x.shape[-1:], jnp.dtype(self.config.param_dtype))
        wide = x.astype(jnp.float32)
        inverse = jax.lax.rsqrt(
            jnp.mean(jnp.square(wide), axis=-1, keepdims=True) + self.config.norm_eps
        )
        return (wide * inverse * jnp.asarray(scale, jnp.float32)).astype(x.dtype)


class Attention(nn.Module):
    """Grouped-query attention with rotary positions."""

    config: ModelConfig

    @nn.compact
    def __call__(
        self, x: jax.Array, context: Context, cache: LayerCache | None
    ) -> tuple[jax.Array, LayerCache | None]:
        """x [B, T, D] -> [B, T, D], and the cache with these tokens' keys and values."""
        config = self.config
        embed, heads, groups, width = (
            config.embed_dim, config.num_heads, config.kv_heads, config.head_width
        )  # fmt: skip

        def project(name: str, count: int, axis: str) -> jax.Array:
            weights = matrix(self, name, (embed, count, width), ("embed", axis, "head_dim"))
            flat = linear(x, weights.reshape(embed, count * width))
            return flat.reshape(*x.shape[:2], count, width)

        query = project("query", heads, "heads")
        key = project("key", groups, "kv_heads")
        value = project("value", groups, "kv_heads")
        query = checkpoint_name(constrain(query, "batch", "length", "heads", "head_dim"), "query")
        key = checkpoint_name(constrain(key, "batch", "length", "kv_heads", "head_dim"), "key")
        value = checkpoint_name(
            constrain(value, "batch", "length", "kv_heads", "head_dim"), "value"
        )
        query = rotate(query, context.cosine, context.sine)
        key = rotate(key, context.cosine, context.sine)
        if cache is None:
            mixed = causal_attention(query, key, value, context.segment_ids, config.attention_block)
        else:
            mixed, cache = _cached_attention(query, key, value, context, cache)
        mixed = checkpoint_name(constrain(mixed, "batch", "length", "heads", "head_dim"), "context")
        output = matrix(self, "output", (heads, width, embed), ("heads", "head_dim", "embed"))
        flat = mixed.reshape(*x.shape[:2], heads * width)
        return linear(flat, output.reshape(heads * width, embed)), cache


def _cached_attention(
    query: jax.Array, key: jax.Array, value: jax.Array, context: Context, cache: LayerCache
) -> tuple[jax.Array, LayerCache]:
    """Writes the keys and values at `context.slot` and attends over the cache."""
    assert context.slot is not None and context.cache_segment_ids is not None
    start = (0, context.slot, 0, 0)
    cache = LayerCache(
        jax.lax.dynamic_update_slice(cache.key, key.astype(cache.key.dtype), start),
        jax.lax.dynamic_update_slice(cache.value, value.astype(cache.value.dtype), start),
    )
    slots = context.slot + jnp.arange(query.shape[1])
    causal = jnp.arange(cache.key.shape[1])[None, :] <= slots[:, None]
    same = context.segment_ids[:, :, None] == context.cache_segment_ids[:, None, :]
    return attend(query, cache.key, cache.value, causal[None] & same), cache


class GatedMLP(nn.Module):
    """SwiGLU: (silu(x W_gate) * x W_up) W_down (Shazeer 2020)."""

    config: ModelConfig

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """x [B, T, D] -> [B, T, D]."""
        embed, hidden = self.config.embed_dim, self.config.mlp_dim
        gate = linear(x, matrix(self, "gate", (embed, hidden), ("embed", "mlp")))
        up = linear(x, matrix(self, "up", (embed, hidden), ("embed", "mlp")))
        gate = checkpoint_name(constrain(gate, "batch", "length", "mlp"), "gate")
        up = checkpoint_name(constrain(up, "batch", "length", "mlp"), "up")
        down = matrix(self, "down", (hidden, embed), ("mlp", "embed"))
        return linear(nn.silu(gate) * up, down)


class Block(nn.Module):
    """One pre-norm transformer block, shaped as the body of a scan over layers."""

    config: ModelConfig

    @nn.compact
    def __call__(
        self, x: jax.Array, cache: LayerCache | None, context: Context
    ) -> tuple[jax.Array, LayerCache | None]:
        """x [B, T, D] -> [B, T, D], and the layer's new cache."""
        x = constrain(x, "batch", "length", "embed_activation")
        normed = RMSNorm(self.config, name="attention_norm")(x)
        attended, cache = Attention(self.config, name="attention")(normed, context, cache)
        x = x + checkpoint_name(attended, "attention_output")
        normed = RMSNorm(self.config, name="mlp_norm")(x)
        x = x + checkpoint_name(GatedMLP(self.config, name="mlp")(normed), "mlp_output")
        return constrain(x, "batch", "length", "embed_activation"), cache
