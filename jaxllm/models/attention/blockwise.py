"""Causal attention in blocks of queries, with a backward pass written by hand.

Autodiff of softmax attention passes over the scores more often than it needs to, and on CPUs it
transposes them. Here the exponentials are kept as they are and the outputs divided by their sums;
the backward pass takes sum_s p dp from the outputs (FlashAttention, Dao et al. 2022, section B.2),
and where a product needs the scores transposed, the small factor is transposed instead.

Where the scores of a whole layer would be large, the blocks go one after another against all keys,
and each block's scores are made again in the backward pass: twice the work, one block's memory.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxllm.models.partitioning import num_shards

MASKED = -1e30  # finite, so that a row with nothing to attend to is not NaN
KEPT_BYTES = 2**28  # of one layer's scores on one device, for the backward pass


class Distance(NamedTuple):
    """What makes scores depend on how many tokens back a key is.

    Attributes:
      queries: int32 [B, Q], positions of the queries.
      keys: int32 [B, S], positions of the keys.
      window: int32 [], only keys less than this far back are seen; None sees all.
      slopes: float32 [H], what a score of each head loses per token of distance (ALiBi), or None.
    """

    queries: jax.Array
    keys: jax.Array
    window: jax.Array | None
    slopes: jax.Array | None


def blockwise_attention(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    segment_ids: jax.Array,
    block: int,
    scale: float | None = None,
    distance: Distance | None = None,
    visible_until: jax.Array | None = None,
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
      scale: factor of the scores; None means K ** -0.5.
      distance: of the tokens, where it counts.
      visible_until: int32 [B, T], in place of segments: a token is seen by itself and by the
        tokens after it that lie before this index (`batch.TreeBatch`).

    Returns:
      [B, T, H, K] in query's dtype. Softmax is float32.
    """
    rows, length, heads, _ = query.shape

    def of_block(start: Any, size: int, end: int) -> jax.Array:
        """Of `size` queries from `start` on, all of which lie before `end`."""
        cut = partial(jax.lax.dynamic_slice_in_dim, start_index=start, slice_size=size, axis=1)
        places = start + jnp.arange(size)
        causal = jnp.arange(end)[None, :] <= places[:, None]
        if visible_until is None:
            same = cut(segment_ids)[:, :, None] == segment_ids[:, None, :end]
        else:
            same = places[None, :, None] < visible_until[:, None, :end]
        here = distance and distance._replace(
            queries=cut(distance.queries), keys=distance.keys[:, :end]
        )
        return attend(cut(query), key[:, :end], value[:, :end], causal[None] & same, scale, here)

    scores = rows * heads * length * length // 2 * query.dtype.itemsize
    scores //= num_shards("batch") * num_shards("heads")
    whole = length // block * block
    starts = range(0, length, block)
    outputs = []
    if scores > KEPT_BYTES and whole > block:
        one = jax.checkpoint(lambda start: of_block(start, block, whole))
        looped = jax.lax.map(one, jnp.arange(0, whole, block))  # [blocks, B, block, H, K]
        outputs = [jnp.moveaxis(looped, 0, 1).reshape(rows, whole, *query.shape[2:])]
        starts = range(whole, length, block)
    for start in starts:
        end = min(start + block, length)
        outputs.append(of_block(start, end - start, end))
    return outputs[0] if len(outputs) == 1 else jnp.concatenate(outputs, axis=1)


def attend(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    mask: jax.Array,
    scale: float | None = None,
    distance: Distance | None = None,
) -> jax.Array:
    """Softmax attention where `mask` (bool [B, Q, S]) allows it.

    Args:
      query: [B, Q, H, K].
      key: [B, S, G, K].
      value: [B, S, G, K].
      mask: bool [B, Q, S].
      scale: factor of the scores; None means K ** -0.5.
      distance: of the keys from the queries, where it counts.

    Returns:
      [B, Q, H, K] in query's dtype.
    """
    batch, queries, heads, width = query.shape
    groups = key.shape[2]
    bias = None
    if distance is not None:
        back = distance.queries[:, :, None] - distance.keys[:, None, :]  # [B, Q, S]
        if distance.window is not None:
            mask &= back < distance.window
        if distance.slopes is not None:
            slopes = distance.slopes.reshape(1, groups, heads // groups, 1, 1)
            bias = -slopes * back[:, None, None]  # [B, G, R, Q, S]
    query = (query * (scale or width**-0.5)).reshape(batch, queries, groups, heads // groups, width)
    mixed = _attend(
        query.transpose(0, 2, 3, 1, 4), key.swapaxes(1, 2), value.swapaxes(1, 2), mask, bias
    )  # [B, G, R, Q, K]
    return mixed.transpose(0, 3, 1, 2, 4).reshape(batch, queries, heads, width)


@jax.custom_vjp
def _attend(
    query: jax.Array, key: jax.Array, value: jax.Array, mask: jax.Array, bias: jax.Array | None
) -> jax.Array:
    """Scaled query [B, G, R, Q, K], key and value [B, G, S, K], mask [B, Q, S].

    The bias [B, G, R, Q, S] is added to the scores and gets no gradient.
    """
    return _attend_forward(query, key, value, mask, bias)[0]


def _attend_forward(
    query: jax.Array, key: jax.Array, value: jax.Array, mask: jax.Array, bias: jax.Array | None
) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    scores = jnp.einsum("bgrqk,bgsk->bgrqs", query, key, preferred_element_type=jnp.float32)
    if bias is not None:
        scores += bias
    scores = jnp.where(mask[:, None, None], scores, MASKED)
    exponentials = jnp.exp(scores - jnp.max(scores, axis=-1, keepdims=True))
    inverse = 1.0 / jnp.sum(exponentials, axis=-1, keepdims=True)  # [B, G, R, Q, 1]
    exponentials = exponentials.astype(value.dtype)
    mixed = jnp.einsum("bgrqs,bgsk->bgrqk", exponentials, value, preferred_element_type=jnp.float32)
    mixed = (mixed * inverse).astype(query.dtype)
    return mixed, (query, key, value, exponentials, inverse, mixed)


def _attend_backward(
    residuals: tuple[jax.Array, ...], gradient: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array, None, None]:
    query, key, value, exponentials, inverse, mixed = residuals
    wide = gradient.astype(jnp.float32) * inverse
    scaled = wide.astype(gradient.dtype)
    # sum_s p dp of each query, over its sum of exponentials
    shared = jnp.sum(wide * mixed.astype(jnp.float32), axis=-1, keepdims=True)
    products = jnp.einsum("bgrqk,bgsk->bgrqs", scaled, value, preferred_element_type=jnp.float32)
    score_gradient = (exponentials * (products - shared)).astype(query.dtype)
    query_gradient = jnp.einsum("bgrqs,bgsk->bgrqk", score_gradient, key)
    key_gradient = jnp.einsum("bgrqk,bgrqs->bgrks", query, score_gradient).sum(axis=2)
    value_gradient = jnp.einsum("bgrqk,bgrqs->bgrks", scaled, exponentials).sum(axis=2)
    return query_gradient, key_gradient.swapaxes(2, 3), value_gradient.swapaxes(2, 3), None, None


_attend.defvjp(_attend_forward, _attend_backward)
