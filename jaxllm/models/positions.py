"""RoPE, its scaling, and ALiBi slopes."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np

from jaxllm.models.config import ModelConfig, RopeScaling
from jaxllm.models.partitioning import device_kind


def rope_cos_sin(config: ModelConfig, positions: jax.Array) -> tuple[jax.Array, jax.Array]:
    """cos and sin of position x frequency, float32 [B, T, 1, rotary_dim / 2] (Su et al. 2021)."""
    half = config.rotary_dim // 2
    frequencies = config.rope_theta ** (-jnp.arange(half, dtype=jnp.float32) / half)
    magnitude = 1.0
    if scaling := config.quirks.rope_scaling:
        frequencies = frequencies * _scaled_share(scaling, config.rope_theta, half)
        if scaling.kind == "yarn":
            magnitude = scaling.attention_factor or 0.1 * math.log(scaling.factor) + 1.0
    angles = positions[..., None, None].astype(jnp.float32) * frequencies
    return jnp.cos(angles) * magnitude, jnp.sin(angles) * magnitude


def _scaled_share(scaling: RopeScaling, theta: float, half: int) -> np.ndarray:
    """Multipliers of the RoPE frequencies [half], from 1 / factor to 1 (`RopeScaling`)."""
    if scaling.kind == "linear":
        return np.full(half, 1.0 / scaling.factor)
    rotations = scaling.original_length / (2 * np.pi) * theta ** (-np.arange(half) / half)
    if scaling.kind == "llama3":
        low, high = scaling.low_freq_factor, scaling.high_freq_factor
        unscaled = np.clip((rotations - low) / (high - low), 0.0, 1.0)
    else:
        # linear in the index, between the frequencies of beta_fast and beta_slow rotations
        index = lambda rotations: (
            half * math.log(scaling.original_length / (2 * math.pi * rotations)) / math.log(theta)
        )
        first = max(math.floor(index(scaling.beta_fast)), 0)
        last = min(math.ceil(index(scaling.beta_slow)), 2 * half - 1)
        unscaled = 1.0 - np.clip((np.arange(half) - first) / max(last - first, 1e-3), 0.0, 1.0)
    return unscaled + (1.0 - unscaled) / scaling.factor


@jax.custom_vjp
def apply_rope(x: jax.Array, cosine: jax.Array, sine: jax.Array) -> jax.Array:
    """Rotate the pairs (i, i + R/2) of the first R dimensions of x [B, T, H, K].

    R is twice the last dimension of cosine and sine. The layout is that of LLaMA and GPT-NeoX in
    Transformers. The gradient of x is rotated back; cosine and sine get none.
    """
    half = cosine.shape[-1]
    rotary, rest = x[..., : 2 * half], x[..., 2 * half :]
    if device_kind()[0] == "tpu":
        # Swap each pair by a matmul with a permutation: it fuses into one pass over x, where
        # slices of half a head take several passes with half of the lanes idle. It is exact in
        # bfloat16; float32 needs all passes of the MXU.
        other = jnp.einsum(
            "...i,ij->...j", rotary, jnp.asarray(np.roll(np.eye(2 * half), half, 1), x.dtype),
            preferred_element_type=jnp.float32,
            precision=None if x.dtype == jnp.bfloat16 else jax.lax.Precision.HIGHEST,
        )  # fmt: skip
        rotated = rotary * jnp.concatenate([cosine, cosine], axis=-1)
        rotated += other * jnp.concatenate([-sine, sine], axis=-1)
    else:
        first, second = jnp.split(rotary.astype(jnp.float32), 2, axis=-1)
        rotated = jnp.concatenate(
            [first * cosine - second * sine, second * cosine + first * sine], axis=-1
        )
    rotated = rotated.astype(x.dtype)
    return jnp.concatenate([rotated, rest], axis=-1) if rest.shape[-1] else rotated


apply_rope.defvjp(
    lambda x, cosine, sine: (apply_rope(x, cosine, sine), (cosine, sine)),
    lambda angles, gradient: (apply_rope(gradient, angles[0], -angles[1]), None, None),
)


def alibi_slopes(heads: int) -> np.ndarray:
    """float32 [heads]: decrease of a head's scores per token of distance (Press et al. 2022).

    2^(-8 i / n), i = 1 ... n, for a power of two n; otherwise the slopes of the power of two below,
    then every other slope of the power of two above, as in the paper's code.
    """
    below = 2 ** int(np.log2(heads))
    first = 2.0 ** (-8.0 / below * np.arange(1, below + 1))
    between = 2.0 ** (-4.0 / below * np.arange(1, 2 * below + 1, 2))
    return np.concatenate([first, between])[:heads].astype(np.float32)
