"""Generation with a KV cache.

`start_decoding` prefills the prompts, `decode_n` generates tokens. To stream, call `decode_n` for a
few tokens at a time. Decoding is faster with parameters from `decoder.unstack_layers`. For a
`CombinedModel`, parameters and caches are tuples of those of its models.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxllm.models.combination import CombinedModel
from jaxllm.models.config import ModelConfig
from jaxllm.models.decoder import Decoder, LayerCaches, Params, head_kernel
from jaxllm.models.layers import LayerCache
from jaxllm.models.sampling import GREEDY, Sampling, sample

Model = ModelConfig | CombinedModel


class Cache(NamedTuple):
    """KV cache of the tokens so far, with room for S, in the compute dtype."""

    layers: LayerCaches  # [L, B, G, S, K], or [B, G, S, K] of each layer of unstacked parameters
    segment_ids: jax.Array  # int32 [B, S], 1 at tokens, 0 where empty or padding
    cache_index: jax.Array  # int32, next free index, the same for every sequence
    lengths: jax.Array  # int32 [B], tokens of each sequence so far, the position of its next one


Caches = Any  # a Cache, or a tuple of them


def init_cache(config: ModelConfig, batch: int, length: int, stacked: bool = True) -> Cache:
    """An empty cache for `batch` sequences of up to `length` tokens."""
    shape = (batch, config.kv_heads, length, config.head_size)

    def empty(*layers: int) -> LayerCache:
        return LayerCache(*(jnp.zeros((*layers, *shape), config.dtype) for _ in range(2)))

    return Cache(
        empty(config.num_layers) if stacked else tuple(empty() for _ in range(config.num_layers)),
        jnp.zeros((batch, length), jnp.int32),
        jnp.zeros((), jnp.int32),
        jnp.zeros((batch,), jnp.int32),
    )


def prefill(
    config: ModelConfig, params: Params, cache: Cache, prompts: jax.Array, lengths: jax.Array
) -> tuple[Cache, jax.Array]:
    """Append prompts, int32 [B, P] padded on the right, of `lengths`, int32 [B], at least 1.

    Returns the new cache, which has room for them, and the logits after each, float32 [B, V].
    """
    batch, width = prompts.shape
    valid = (jnp.arange(width) < lengths[:, None]).astype(jnp.int32)
    segment_ids = jax.lax.dynamic_update_slice(cache.segment_ids, valid, (0, cache.cache_index))
    output: Any = Decoder(config).apply(
        {"params": params}, prompts, cache.lengths[:, None] + jnp.arange(width), valid,
        cache=cache.layers, cache_segment_ids=segment_ids, cache_index=cache.cache_index,
    )  # fmt: skip
    hidden, layers = output
    last = hidden[jnp.arange(batch), lengths - 1]  # [B, D]
    logits = jnp.dot(last, head_kernel(config, params), preferred_element_type=jnp.float32)
    return Cache(layers, segment_ids, cache.cache_index + width, cache.lengths + lengths), logits


def decode_step(
    config: Model, params: Params, cache: Caches, tokens: jax.Array
) -> tuple[Caches, jax.Array]:
    """Append one token per sequence (int32 [B]); return the new cache and next logits [B, V]."""
    if isinstance(config, CombinedModel):
        every = zip(config.models, params, cache, strict=True)
        caches, logits = zip(*(decode_step(*one, tokens) for one in every), strict=True)
        return caches, config.combination(logits)
    return prefill(config, params, cache, tokens[:, None], jnp.ones_like(tokens))


class DecodeState(NamedTuple):
    """State of a batch during decoding."""

    cache: Caches
    logits: jax.Array  # float32 [B, V], of the next token
    done: jax.Array  # bool [B], whether the sequence has ended
    invalid: jax.Array  # bool [B], whether its logits were NaN, or left no token
    step: jax.Array  # int32, tokens generated so far


def start_decoding(
    config: Model, params: Params, prompts: jax.Array, lengths: jax.Array, max_new_tokens: int
) -> DecodeState:
    """Prefill a new cache with room for `max_new_tokens` more; see `prefill`."""
    if isinstance(config, CombinedModel):
        states = [
            start_decoding(model, own, prompts, lengths, max_new_tokens)
            for model, own in zip(config.models, params, strict=True)
        ]
        logits = config.combination([state.logits for state in states])
        return states[0]._replace(cache=tuple(state.cache for state in states), logits=logits)
    batch, width = prompts.shape
    cache = init_cache(config, batch, width + max_new_tokens, stacked="layers" in params)
    cache, logits = prefill(config, params, cache, prompts, lengths)
    done, invalid = (jnp.zeros(batch, bool) for _ in range(2))  # apart, to be donated
    return DecodeState(cache, logits, done, invalid, jnp.zeros((), jnp.int32))


def decode_n(
    config: Model,
    params: Params,
    state: DecodeState,
    count: int,
    stop_ids: Sequence[int] = (),
    sampling: Sampling = GREEDY,
    keys: jax.Array | None = None,
) -> tuple[DecodeState, jax.Array]:
    """Generate up to `count` tokens per sequence, for which the cache has room.

    `count`, the `stop_ids` and the sampling are static. Token n of a sequence depends on its key in
    `keys` [B] (unused by greedy decoding) and n, not on the rest of the batch. Returns the new
    state, and the new tokens, int32 [B, count], a sequence's stop token included and zeros after
    it. Decoding ends early once every sequence has.
    """
    batch = state.done.shape[0]
    stops = jnp.asarray(tuple(stop_ids), jnp.int32)
    keys = jax.random.split(jax.random.key(0), batch) if keys is None else keys
    first = state.step

    def unfinished(carry: tuple[DecodeState, jax.Array]) -> jax.Array:
        return (carry[0].step < first + count) & ~jnp.all(carry[0].done)

    def decode_one(carry: tuple[DecodeState, jax.Array]) -> tuple[DecodeState, jax.Array]:
        (cache, logits, done, invalid, step), output = carry
        invalid |= ~done & ~(jnp.max(logits, axis=-1) > -jnp.inf)
        drawn = sample(sampling, logits, jax.vmap(jax.random.fold_in, (0, None))(keys, step))
        token = jnp.where(done, 0, drawn)
        output = jax.lax.dynamic_update_slice(output, token[:, None], (0, step - first))
        done |= jnp.any(token[:, None] == stops, axis=-1)
        cache, logits = decode_step(config, params, cache, token)
        return DecodeState(cache, logits, done, invalid, step + 1), output

    output = jnp.zeros((batch, count), jnp.int32)
    return jax.lax.while_loop(unfinished, decode_one, (state, output))
