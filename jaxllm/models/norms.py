"""Norms over the last axis, in float32."""

from __future__ import annotations

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxllm.models.config import ModelConfig
from jaxllm.models.partitioning import param


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
        vector = partial(param, self, shape=x.shape[-1:], axes=("norm",), dtype=jnp.float32)
        scale = bias = None
        if self.config.norm != "layer_plain":
            scale = vector("scale", initializer=nn.initializers.ones)
        if self.config.norm == "layer":
            bias = vector("bias", initializer=nn.initializers.zeros)
        return _normed(self.config.norm != "rms", self.config.norm_eps, x, scale, bias)


# Rematerialized from x in the backward pass: the three float32 intermediates are twice as large.
@partial(jax.checkpoint, static_argnums=(0, 1), prevent_cse=False)
def _normed(
    centered: bool, eps: float, x: jax.Array, scale: jax.Array | None, bias: jax.Array | None
) -> jax.Array:
    y = x.astype(jnp.float32)
    if centered:
        y = y - jnp.mean(y, axis=-1, keepdims=True)
    y = y * jax.lax.rsqrt(jnp.mean(jnp.square(y), axis=-1, keepdims=True) + eps)
    if scale is not None:
        y = y * scale
    if bias is not None:
        y = y + bias
    return y.astype(x.dtype)
