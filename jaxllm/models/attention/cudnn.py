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
    """Attention of every token to the tokens of its own segment up to itself.

    cuDNN knows causal masks and windows, not segments: they go in as a mask [B, 1, T, T], without
    which documents of one row would see each other.

    Args:
      query: [B, T, H, K] in bfloat16 or float16, K a multiple of 8 up to 128.
      key: [B, T, G, K], where G divides H.
      value: [B, T, G, K].
      segment_ids: int32 [B, T].
      scale: factor of the scores; None means K ** -0.5.
      window: only keys less than this far back are seen; None sees all.

    Returns:
      [B, T, H, K] in query's dtype.
    """
    same = segment_ids[:, None, :, None] == segment_ids[:, None, None, :]
    return jax.nn.dot_product_attention(
        query,
        key,
        value,
        mask=jnp.asarray(same),
        scale=scale,
        is_causal=True,
        local_window_size=None if window is None else (window - 1, 0),
        implementation="cudnn",
    )


def fits(query: jax.Array) -> bool:
    """Whether cuDNN has a kernel for heads of this width and type."""
    half = query.dtype in (jnp.bfloat16, jnp.float16)
    return half and query.shape[-1] % 8 == 0 and query.shape[-1] <= 128
