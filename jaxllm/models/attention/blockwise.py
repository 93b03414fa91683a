"""Causal attention in blocks of queries, with a hand-written backward pass.

Autodiff of softmax attention makes more passes over the scores than necessary, and on CPUs it
transposes them. Here the unnormalized exponentials are saved and the outputs divided by their sums;
the backward pass takes sum_s p dp from the outputs (FlashAttention, Dao et al. 2022, section B.2),
and where a matmul needs transposed scores, the smaller operand is transposed instead.

Where the scores of a whole layer would be large, blocks run one after another against all keys, and
the backward pass recomputes each block's scores: twice the work, the memory of one block.
"""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxllm.models.partitioning import num_shards

MASKED = -1e30  # finite, so that a query with no visible key is not NaN
MAX_SAVED_SCORE_BYTES = 2**28  # scores per layer and device, saved for the backward pass


class PositionBias(NamedTuple):
    """Dependence of the scores on distance: a sliding window or ALiBi."""

    queries: jax.Array  # int32 [B, Q], positions of the queries
    keys: jax.Array  # int32 [B, S], positions of the keys
    window: jax.Array | None  # int32 [], visible keys, the query's own included; None means all
    slopes: jax.Array | None  # float32 [H], decrease of a head's scores per token (ALiBi)


def blockwise_attention(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    segment_ids: jax.Array,
    block: int,
    scale: float | None = None,
    position_bias: PositionBias | None = None,
    visible_until: jax.Array | None = None,
) -> jax.Array:
    """`causal_attention` in blocks of `block` queries.

    Each block attends only to keys before the block's end, so that about half of the score matrix
    is never computed.
    """
    batch, length, heads, _ = query.shape

    def attend_block(start: Any, size: int, end: int) -> jax.Array:
        """Attention of `size` queries from `start` on, all of them before `end`."""
        of_block = partial(jax.lax.dynamic_slice_in_dim, start_index=start, slice_size=size, axis=1)
        indices = start + jnp.arange(size)
        causal = jnp.arange(end)[None, :] <= indices[:, None]
        if visible_until is None:
            visible = of_block(segment_ids)[:, :, None] == segment_ids[:, None, :end]
        else:
            visible = indices[None, :, None] < visible_until[:, None, :end]
        bias = position_bias and position_bias._replace(
            queries=of_block(position_bias.queries), keys=position_bias.keys[:, :end]
        )
        mask = causal[None] & visible
        return attend(of_block(query), key[:, :end], value[:, :end], mask, scale, bias)

    score_bytes = batch * heads * length * length // 2 * query.dtype.itemsize
    score_bytes //= num_shards("batch") * num_shards("heads")
    full = length // block * block  # tokens in full blocks
    starts = range(0, length, block)
    outputs = []
    if score_bytes > MAX_SAVED_SCORE_BYTES and full > block:
        one = jax.checkpoint(lambda start: attend_block(start, block, full))
        looped = jax.lax.map(one, jnp.arange(0, full, block))  # [blocks, B, block, H, K]
        outputs = [jnp.moveaxis(looped, 0, 1).reshape(batch, full, *query.shape[2:])]
        starts = range(full, length, block)
    for start in starts:
        end = min(start + block, length)
        outputs.append(attend_block(start, end - start, end))
    return outputs[0] if len(outputs) == 1 else jnp.concatenate(outputs, axis=1)


def attend(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    mask: jax.Array,
    scale: float | None = None,
    position_bias: PositionBias | None = None,
) -> jax.Array:
    """Softmax attention of query [B, Q, H, K], key and value [B, S, G, K] -> [B, Q, H, K].

    The mask, bool [B, Q, S], is True where a query attends to a key.
    """
    batch, queries, heads, head_dim = query.shape
    num_kv_heads = key.shape[2]
    bias = None
    if position_bias is not None:
        back = position_bias.queries[:, :, None] - position_bias.keys[:, None, :]  # [B, Q, S]
        if position_bias.window is not None:
            mask &= back < position_bias.window
        if position_bias.slopes is not None:
            slopes = position_bias.slopes.reshape(1, num_kv_heads, heads // num_kv_heads, 1, 1)
            bias = -slopes * back[:, None, None]  # [B, G, R, Q, S]
    query = (query * (scale or head_dim**-0.5)).reshape(
        batch, queries, num_kv_heads, heads // num_kv_heads, head_dim
    )
    attn_out = _attend(
        query.transpose(0, 2, 3, 1, 4), key.swapaxes(1, 2), value.swapaxes(1, 2), mask, bias
    )  # [B, G, R, Q, K]
    return attn_out.transpose(0, 3, 1, 2, 4).reshape(batch, queries, heads, head_dim)


@jax.custom_vjp
def _attend(
    query: jax.Array, key: jax.Array, value: jax.Array, mask: jax.Array, bias: jax.Array | None
) -> jax.Array:
    """Attention of scaled query [B, G, R, Q, K], key and value [B, G, S, K], mask [B, Q, S].

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
    attn_out = jnp.einsum(
        "bgrqs,bgsk->bgrqk", exponentials, value, preferred_element_type=jnp.float32
    )
    attn_out = (attn_out * inverse).astype(query.dtype)
    return attn_out, (query, key, value, exponentials, inverse, attn_out)


def _attend_backward(
    residuals: tuple[jax.Array, ...], gradient: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array, None, None]:
    query, key, value, exponentials, inverse, attn_out = residuals
    scaled_f32 = gradient.astype(jnp.float32) * inverse
    scaled = scaled_f32.astype(gradient.dtype)
    # sum_s p dp of each query, over its sum of exponentials
    shared = jnp.sum(scaled_f32 * attn_out.astype(jnp.float32), axis=-1, keepdims=True)
    prob_gradient = jnp.einsum(
        "bgrqk,bgsk->bgrqs", scaled, value, preferred_element_type=jnp.float32
    )
    score_gradient = (exponentials * (prob_gradient - shared)).astype(query.dtype)
    query_gradient = jnp.einsum("bgrqs,bgsk->bgrqk", score_gradient, key)
    key_gradient = jnp.einsum("bgrqk,bgrqs->bgrks", query, score_gradient).sum(axis=2)
    value_gradient = jnp.einsum("bgrqk,bgrqs->bgrks", scaled, exponentials).sum(axis=2)
    return query_gradient, key_gradient.swapaxes(2, 3), value_gradient.swapaxes(2, 3), None, None


_attend.defvjp(_attend_forward, _attend_backward)
