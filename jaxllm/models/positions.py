"""Where a token is: rotations of queries and keys, and ALiBi's slopes."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from jaxllm.models.config import ModelConfig


def rotations(config: ModelConfig, positions: jax.Array) -> tuple[jax.Array, jax.Array]:
    """cos and sin of position x frequency, float32 [B, T, 1, rotary_width / 2] (Su et al. 2021)."""
    half = config.rotary_width // 2
    frequencies = config.rope_theta ** (-jnp.arange(half, dtype=jnp.float32) / half)
    angles = positions[..., None, None].astype(jnp.float32) * frequencies
    return jnp.cos(angles), jnp.sin(angles)


def rotate(x: jax.Array, cosine: jax.Array, sine: jax.Array) -> jax.Array:
    """Rotates the pairs (i, i + R/2) of the first R of x [B, T, H, K], R twice cosine's width.

    The layout of LLaMA and GPT-NeoX in Transformers.
    """
    width = 2 * cosine.shape[-1]
    turned, rest = x[..., :width].astype(jnp.float32), x[..., width:]
    first, second = jnp.split(turned, 2, axis=-1)
    rotated = jnp.concatenate(
        [first * cosine - second * sine, second * cosine + first * sine], axis=-1
    ).astype(x.dtype)
    return jnp.concatenate([rotated, rest], axis=-1) if rest.shape[-1] else rotated


def alibi_slopes(heads: int) -> np.ndarray:
    """float32 [heads]: how much a head's score falls per token of distance (Press et al. 2022).

    For a power of two n, 2^(-8 i / n) for i = 1 ... n; otherwise those of the power of two below,
    and then every other one of the power of two above, as the paper's code has it.
    """
    below = 2 ** int(np.log2(heads))
    first = 2.0 ** (-8.0 / below * np.arange(1, below + 1))
    between = 2.0 ** (-4.0 / below * np.arange(1, 2 * below + 1, 2))
    return np.concatenate([first, between])[:heads].astype(np.float32)
