"""Attention over packed sequences, dispatched to the kernel for the platform and shape."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from jaxllm.models.attention.blockwise import PositionBias, attend, blockwise_attention
from jaxllm.models.attention.splash import ATTENTION_RESIDUALS, LANES, splash_attention
from jaxllm.models.partitioning import device_kind, num_shards

__all__ = ["ATTENTION_RESIDUALS", "PositionBias", "attend", "causal_attention", "implementation"]

BLOCK_SIZE = 256  # queries per block of `blockwise_attention`


def causal_attention(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    segment_ids: jax.Array,
    *,
    scale: float | None = None,
    window: int | None = None,
    position_bias: PositionBias | None = None,
    visible_until: jax.Array | None = None,
) -> jax.Array:
    """Causal attention within segments, [B, T, H, K] in query's dtype. Softmax is float32.

    Args:
      query: [B, T, H, K].
      key, value: [B, T, G, K], where G divides H; query head h reads key head h // (H / G).
      segment_ids: int32 [B, T].
      scale: scale of the scores; None means K ** -0.5.
      window: sliding window as a Python int, where all layers share it and there is no ALiBi.
      position_bias: with sliding windows or ALiBi.
      visible_until: int32 [B, T], replaces segments (`batch.TreeBatch`).
    """
    plain = visible_until is None and (position_bias is None or window is not None)
    chosen = implementation(query, plain)
    if chosen == "splash":
        return splash_attention(query, key, value, segment_ids, scale=scale, window=window)
    if chosen == "cudnn":
        attn_out = cudnn_attention(query, key, value, segment_ids, scale=scale, window=window)
    else:
        attn_out = blockwise_attention(
            query, key, value, segment_ids, BLOCK_SIZE, scale, position_bias, visible_until
        )
    return checkpoint_name(attn_out, ATTENTION_RESIDUALS)


def implementation(query: jax.Array, plain: bool = True) -> str:
    """Choose the implementation for query [B, T, H, K]: 'splash', 'cudnn' or 'blockwise'.

    The kernels support `plain` attention only: no ALiBi, windows that differ between layers, or
    token trees.
    """
    platform, _ = device_kind()
    if platform == "tpu" and plain and query.shape[1] % (LANES * num_shards("length")) == 0:
        return "splash"
    half, head_dim = query.dtype in (jnp.bfloat16, jnp.float16), query.shape[-1]
    if platform in ("gpu", "cuda") and plain and half and head_dim % 8 == 0 and head_dim <= 128:
        return "cudnn"
    return "blockwise"


def cudnn_attention(
    query: jax.Array, key: jax.Array, value: jax.Array, segment_ids: jax.Array, *,
    scale: float | None = None, window: int | None = None,
) -> jax.Array:  # fmt: skip
    """`causal_attention` by cuDNN's flash attention: bfloat16 or float16, K = 8, 16, …, 128.

    It has causal masks and windows, but no segments: these become a mask [B, 1, T, T], without
    which documents packed into one sequence would attend to each other.
    """
    same = segment_ids[:, None, :, None] == segment_ids[:, None, None, :]
    around = None if window is None else (window - 1, 0)
    return jax.nn.dot_product_attention(
        query, key, value, mask=jnp.asarray(same), scale=scale, is_causal=True,
        local_window_size=around, implementation="cudnn",
    )  # fmt: skip
