"""Greedy continuation with a cache of keys and values."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxllm.models.config import ModelConfig
from jaxllm.models.decoder import Decoder, Params, head_kernel
from jaxllm.models.layers import LayerCache


class Cache(NamedTuple):
    """Keys and values of the tokens read so far. S slots.

    Attributes:
      layers: keys and values [L, B, S, G, K] in the compute dtype.
      segment_ids: int32 [B, S], 1 where a slot holds a token, 0 where it is empty or padding.
      slot: int32, the next free slot, the same for every row.
      lengths: int32 [B], tokens read of each row, which is the position of the next one.
    """

    layers: LayerCache
    segment_ids: jax.Array
    slot: jax.Array
    lengths: jax.Array


def init_cache(config: ModelConfig, batch: int, length: int) -> Cache:
    """An empty cache for `batch` rows of up to `length` tokens."""
    shape = (config.num_layers, batch, length, config.kv_heads, config.head_width)
    empty = jnp.zeros(shape, config.dtype)
    return Cache(
        LayerCache(empty, empty),
        jnp.zeros((batch, length), jnp.int32),
        jnp.zeros((), jnp.int32),
        jnp.zeros((batch,), jnp.int32),
    )


def prefill(
    config: ModelConfig, params: Params, cache: Cache, prompts: jax.Array, lengths: jax.Array
) -> tuple[Cache, jax.Array]:
    """Reads prompts into the cache.

    Args:
      config: the model.
      params: its parameters.
      cache: with at least P free slots.
      prompts: int32 [B, P], padded on the right with anything.
      lengths: int32 [B], tokens of each prompt, at least 1.

    Returns:
      The new cache, and the logits after each prompt's last token, float32 [B, V].
    """
    rows, width = prompts.shape
    valid = (jnp.arange(width) < lengths[:, None]).astype(jnp.int32)
    segment_ids = jax.lax.dynamic_update_slice(cache.segment_ids, valid, (0, cache.slot))
    hidden, layers = Decoder(config).apply(
        {"params": params},
        prompts,
        cache.lengths[:, None] + jnp.arange(width),
        valid,
        cache=cache.layers,
        cache_segment_ids=segment_ids,
        slot=cache.slot,
    )
    last = hidden[jnp.arange(rows), lengths - 1]  # [B, D]
    logits = jnp.dot(last, head_kernel(config, params), preferred_element_type=jnp.float32)
    return Cache(
        LayerCache(*layers), segment_ids, cache.slot + width, cache.lengths + lengths
    ), logits


def decode_step(
    config: ModelConfig, params: Params, cache: Cache, tokens: jax.Array
) -> tuple[Cache, jax.Array]:
    """Reads one token of each row (int32 [B]): the new cache, and the logits after it [B, V]."""
    return prefill(config, params, cache, tokens[:, None], jnp.ones_like(tokens))


def generate(
    config: ModelConfig,
    params: Params,
    prompts: jax.Array,
    lengths: jax.Array,
    max_new_tokens: int,
    stop_ids: Sequence[int] = (),
) -> jax.Array:
    """The most likely continuation, one token at a time.

    Args:
      config: the model.
      params: its parameters.
      prompts: int32 [B, P], padded on the right; what the padding holds does not matter.
      lengths: int32 [B], tokens of each prompt, at least 1.
      max_new_tokens: tokens to make, at most; static under `jax.jit`.
      stop_ids: a row ends with the first of these; static under `jax.jit`.

    Returns:
      int32 [B, max_new_tokens]: the new tokens, with the one that ended the row, then zeros.
      The loop ends when every row has.
    """
    rows, width = prompts.shape
    stops = jnp.asarray(tuple(stop_ids), jnp.int32)
    cache, logits = prefill(
        config, params, init_cache(config, rows, width + max_new_tokens), prompts, lengths
    )

    State = tuple[jax.Array, Cache, jax.Array, jax.Array, jax.Array]

    def unfinished(state: State) -> jax.Array:
        step, _, _, done, _ = state
        return (step < max_new_tokens) & ~jnp.all(done)

    def advance(state: State) -> State:
        step, cache, logits, done, output = state
        token = jnp.where(done, 0, jnp.argmax(logits, axis=-1).astype(jnp.int32))
        output = jax.lax.dynamic_update_slice(output, token[:, None], (0, step))
        done |= jnp.any(token[:, None] == stops, axis=-1)
        cache, logits = decode_step(config, params, cache, token)
        return step + 1, cache, logits, done, output

    output = jnp.zeros((rows, max_new_tokens), jnp.int32)
    start = (jnp.zeros((), jnp.int32), cache, logits, jnp.zeros(rows, bool), output)
    return jax.lax.while_loop(unfinished, advance, start)[-1]
