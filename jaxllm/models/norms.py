"""Norms over the last axis, in float32."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxllm.models.config import ModelConfig


class Norm(nn.Module):
    """The norm that the config names.

    `rms` is x / sqrt(mean(x^2) + eps) * scale (Zhang & Sennrich 2019). `layer` is
    (x - mean(x)) / sqrt(var(x) + eps) * scale + bias (Ba et al. 2016), `layer_plain` the same
    without scale and bias.
    """

    config: ModelConfig

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """x [..., D] -> [..., D] in x's dtype."""
        wide = x.astype(jnp.float32)
        if self.config.norm != "rms":
            wide = wide - jnp.mean(wide, axis=-1, keepdims=True)
        inverse = jax.lax.rsqrt(
            jnp.mean(jnp.square(wide), axis=-1, keepdims=True) + self.config.norm_eps
        )
        normed = wide * inverse
        if self.config.norm != "layer_plain":
            normed = normed * self._vector("scale", nn.initializers.ones, x.shape[-1])
        if self.config.norm == "layer":
            normed = normed + self._vector("bias", nn.initializers.zeros, x.shape[-1])
        return normed.astype(x.dtype)

    def _vector(self, name: str, start: nn.initializers.Initializer, width: int) -> jax.Array:
        initializer = nn.with_logical_partitioning(start, ("norm",))
        values = self.param(name, initializer, (width,), jnp.dtype(self.config.param_dtype))
        return jnp.asarray(values, jnp.float32)
