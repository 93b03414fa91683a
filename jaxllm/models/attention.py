"""Causal attention in blocks of queries."""

from __future__ import annotations

import jax
import jax.numpy as jnp

MASKED = -1e30  # finite, so that a row with nothing to attend to is not NaN


def causal_attention(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    segment_ids: jax.Array,
    block: int,
) -> jax.Array:
    """Attention of every token to the tokens of its own segment up to itself.

    Each block of queries meets only the keys before the block's end, so that about half of the
    score matrix is never computed.

    Args:
      query: [B, T, H, K].
      key: [B, T, G, K], where G divides H; query head h reads key head h // (H / G).
      value: [B, T, G, K].
      segment_ids: int32 [B, T].
      block: queries per block.

    Returns:
      [B, T, H, K] in query's dtype. Softmax is float32.
    """
    length = query.shape[1]
    outputs = []
    for start in range(0, length, block):
        end = min(start + block, length)
        causal = jnp.arange(end)[None, :] <= jnp.arange(start, end)[:, None]
        same = segment_ids[:, start:end, None] == segment_ids[:, None, :end]
        outputs.append(
            attend(query[:, start:end], key[:, :end], value[:, :end], causal[None] & same)
        )
    return outputs[0] if len(outputs) == 1 else jnp.concatenate(outputs, axis=1)


def attend(query: jax.Array, key: jax.Array, value: jax.Array, mask: jax.Array) -> jax.Array:
    """Softmax attention where `mask` (bool [B, Q, S]) allows it.

    Args:
      query: [B, Q, H, K].
      key: [B, S, G, K].
      value: [B, S, G, K].
      mask: bool [B, Q, S].

    Returns:
      [B, Q, H, K] in query's dtype.
    """
    batch, queries, heads, width = query.shape
    groups = key.shape[2]
    query = query.reshape(batch, queries, groups, heads // groups, width)
    scores = jnp.einsum("bqgrk,bsgk->bgrqs", query, key, preferred_element_type=jnp.float32)
    scores = jnp.where(mask[:, None, None], scores * width**-0.5, MASKED)
    weights = jax.nn.softmax(scores, axis=-1).astype(value.dtype)
    context = jnp.einsum("bgrqs,bsgk->bqgrk", weights, value)
    return context.reshape(batch, queries, heads, width)
