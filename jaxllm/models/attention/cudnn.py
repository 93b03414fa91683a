"""Causal attention on NVIDIA GPUs: cuDNN's flash attention, through JAX."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def cudnn_attention(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    segment_ids: jax.Array,
    *,
    scale: float | None = None,
    window: int | None = None,
) -> jax.Array:
    """`causal_attention` in bfloat16 or float16, K a multiple of 8 up to 128.

    cuDNN supports causal masks and windows, but no segments: these become a mask [B, 1, T, T],
    without which documents packed into one sequence would attend to each other.
    """
    same = segment_ids[:, None, :, None] == segment_ids[:, None, None, :]
    around = None if window is None else (window - 1, 0)
    return jax.nn.dot_product_attention(
        query, key, value, mask=jnp.asarray(same), scale=scale, is_causal=True,
        local_window_size=around, implementation="cudnn",
    )  # fmt: skip


def fits(query: jax.Array) -> bool:
    """Whether cuDNN has a kernel for this head dimension and dtype."""
    half = query.dtype in (jnp.bfloat16, jnp.float16)
    return half and query.shape[-1] % 8 == 0 and query.shape[-1] <= 128
