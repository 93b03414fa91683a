"""Decoding through the cache gives what the uncached forward gives."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from jaxllm.models.decoder import logits
from jaxllm.models.generation import decode_step, generate, init_cache, prefill
from tests.models.helpers import TINY, one_document_rows, random_params


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
