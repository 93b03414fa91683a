"""Norms over the last axis, in float32."""

from __future__ import annotations

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxllm.models.config import ModelConfig


class Norm(nn.Module):
    """The norm of `config.norm`.

    `rms` is x / sqrt(mean(x^2) + eps) * scale (Zhang & Sennrich 2019). `layer` is
    (x - mean(x)) / sqrt(var(x) + eps) * scale + bias (Ba et al. 2016), `layer_plain` the same
    without scale and bias.
    """

    config: ModelConfig

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """x [..., D] -> [..., D] in x's dtype."""
        scale = bias = None
        if self.config.norm != "layer_plain":
            scale = self._vector("scale", nn.initializers.ones, x.shape[-1])
        if self.config.norm == "layer":
            bias = self._vector("bias", nn.initializers.zeros, x.shape[-1])
        return _normed(self.config.norm != "rms", self.config.norm_eps, x, scale, bias)

    def _vector(self, name: str, start: nn.initializers.Initializer, width: int) -> jax.Array:
        initializer = nn.with_logical_partitioning(start, ("norm",))
        values = self.param(name, initializer, (width,), jnp.dtype(self.config.param_dtype))
        return jnp.asarray(values, jnp.float32)


# Rematerialized from x in the backward pass: the three float32 intermediates are twice as large.
@partial(jax.checkpoint, static_argnums=(0, 1), prevent_cse=False)
def _normed(
    centred: bool, eps: float, x: jax.Array, scale: jax.Array | None, bias: jax.Array | None
) -> jax.Array:
    wide = x.astype(jnp.float32)
    if centred:
        wide = wide - jnp.mean(wide, axis=-1, keepdims=True)
    normed = wide * jax.lax.rsqrt(jnp.mean(jnp.square(wide), axis=-1, keepdims=True) + eps)
    if scale is not None:
        normed = normed * scale
    if bias is not None:
        normed = normed + bias
    return normed.astype(x.dtype)
