"""Decoding through the cache gives what the uncached forward gives."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from jaxllm.models.decoder import logits, unstack_layers
from jaxllm.models.generation import (
    decode_n,
    decode_step,
    init_cache,
    prefill,
    start_decoding,
)
from jaxllm.models.sampling import Sampling
from tests.models.helpers import TINY, generate, one_document_rows, random_params


def test_cached_logits_equal_the_forward_of_the_whole_row() -> None:
    params = random_params(TINY)
    tokens = np.random.default_rng(0).integers(0, TINY.vocab_size, (3, 21)).astype(np.int32)
    lengths = np.array([8, 5, 1])
    whole = np.asarray(jax.jit(lambda p: logits(TINY, p, one_document_rows(tokens)))(params))

    cache = init_cache(TINY, 3, 32)
    read = jax.jit(partial(prefill, TINY))
    cache, values = read(params, cache, jnp.asarray(tokens[:, :8]), jnp.asarray(lengths))
    rows = np.arange(3)
    np.testing.assert_allclose(values, whole[rows, lengths - 1], atol=1e-5)
    step = jax.jit(lambda cache, tokens: decode_step(TINY, params, cache, tokens))
    for _ in range(12):
        cache, values = step(cache, jnp.asarray(tokens[rows, lengths]))
        lengths += 1
        np.testing.assert_allclose(values, whole[rows, lengths - 1], atol=1e-5)
    np.testing.assert_array_equal(cache.lengths, lengths)


def test_prompts_can_be_read_in_pieces() -> None:
    params = random_params(TINY)
    tokens = np.random.default_rng(2).integers(0, TINY.vocab_size, (2, 13)).astype(np.int32)
    cache = init_cache(TINY, 2, 20)
    for piece in (tokens[:, :7], tokens[:, 7:12]):
        full = jnp.full(2, piece.shape[1])
        cache, values = jax.jit(partial(prefill, TINY))(params, cache, jnp.asarray(piece), full)
    whole = logits(TINY, params, one_document_rows(tokens))
    np.testing.assert_allclose(values, whole[:, -1], atol=1e-5)


def test_generation_stops_row_by_row_and_ignores_padding() -> None:
    params = random_params(TINY)
    prompts = np.random.default_rng(3).integers(1, TINY.vocab_size, (3, 6)).astype(np.int32)
    lengths = jnp.array([6, 3, 1])
    greedy = jax.jit(partial(generate, TINY, max_new_tokens=10), static_argnames="stop_ids")
    free = np.asarray(greedy(params, jnp.asarray(prompts), lengths))
    padded = np.where(np.arange(6) < np.asarray(lengths)[:, None], prompts, 55)
    np.testing.assert_array_equal(greedy(params, jnp.asarray(padded), lengths), free)

    stop = int(free[1, 2])
    stopped = np.asarray(greedy(params, jnp.asarray(prompts), lengths, stop_ids=(stop,)))
    for with_stop, without in zip(stopped, free, strict=True):
        end = [*without, stop].index(stop) + 1
        np.testing.assert_array_equal(with_stop[:end], without[:end])
        assert not with_stop[end:].any()


def test_unstacked_layers_and_pieces_make_the_same_tokens() -> None:
    """One loop over stacked layers, layers one by one, and a few tokens at a time."""
    config = dataclasses.replace(TINY, sliding_window_pattern=(0, 4), position_embedding="alibi")
    prompts = jnp.asarray(np.random.default_rng(5).integers(1, 97, (3, 6)), jnp.int32)
    lengths = jnp.array([6, 3, 1])
    for sampling in (Sampling(), Sampling(temperature=0.8, top_k=20, top_p=0.9)):
        params = random_params(config)
        keys = jax.random.split(jax.random.key(7), 3)
        whole = jax.jit(partial(generate, config, max_new_tokens=9, sampling=sampling))
        stacked = np.asarray(whole(params, prompts, lengths, keys=keys))
        params = unstack_layers(params)
        assert "layers" not in params
        np.testing.assert_array_equal(whole(params, prompts, lengths, keys=keys), stacked)
        state = jax.jit(partial(start_decoding, config, max_new_tokens=9))(params, prompts, lengths)
        step = jax.jit(partial(decode_n, config, count=3, sampling=sampling))
        pieces = []
        for _ in range(3):
            state, tokens = step(params, state, keys=keys)
            pieces.append(tokens)
        np.testing.assert_array_equal(np.concatenate(pieces, axis=1), stacked)


def test_a_row_is_drawn_alike_in_any_batch() -> None:
    params = random_params(TINY)
    prompts = jnp.asarray(np.random.default_rng(6).integers(1, 97, (4, 6)), jnp.int32)
    lengths, keys = jnp.array([6, 3, 1, 5]), jax.random.split(jax.random.key(3), 4)
    draw = jax.jit(partial(generate, TINY, max_new_tokens=8, sampling=Sampling(temperature=1.0)))
    together = np.asarray(draw(params, prompts, lengths, keys=keys))
    for rows in (slice(0, 1), slice(1, 4)):
        alone = draw(params, prompts[rows], lengths[rows], keys=keys[rows])
        np.testing.assert_array_equal(alone, together[rows])
    assert len({tuple(row) for row in together}) == 4
    again = draw(params, prompts, lengths, keys=jax.random.split(jax.random.key(4), 4))
    assert (np.asarray(again) != together).any()
