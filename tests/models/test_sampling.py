"""Tokens are cut as Transformers cuts them, and drawn as often as the distribution says."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxllm.errors import UserError
from jaxllm.models.sampling import Sampling, greedy, sample, top_p_filter

VOCABULARY = 50


def logits(seed: int, rows: int = 3, spread: float = 3.0) -> np.ndarray:
    return (np.random.default_rng(seed).normal(size=(rows, VOCABULARY)) * spread).astype(np.float32)


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 10**6), st.floats(0.01, 0.999), st.floats(0.1, 8))
def test_the_nucleus_is_that_of_transformers(seed: int, top_p: float, spread: float) -> None:
    torch, process = pytest.importorskip("torch"), pytest.importorskip("transformers.generation")
    values = logits(seed, spread=spread)
    # skip sums that rounding decides
    ordered = -np.sort(-values.astype(np.float64), axis=-1)
    exact = np.exp(ordered - ordered.max(-1, keepdims=True))
    sums = np.cumsum(exact / exact.sum(-1, keepdims=True), axis=-1)
    if np.abs(sums - top_p).min() < 1e-5:
        return
    theirs = process.TopPLogitsWarper(top_p)(None, torch.tensor(values)).numpy()
    np.testing.assert_array_equal(top_p_filter(jnp.asarray(values), top_p), theirs)


@pytest.mark.parametrize("sampling", [
    Sampling(0.7), Sampling(1.0, top_k=5), Sampling(1.3, top_p=0.8), Sampling(0.9, 8, 0.7)
])  # fmt: skip
def test_tokens_are_drawn_from_the_distribution_of_transformers(sampling: Sampling) -> None:
    torch, process = pytest.importorskip("torch"), pytest.importorskip("transformers.generation")
    values = logits(1, rows=1, spread=1.5)
    warped = process.TemperatureLogitsWarper(sampling.temperature)(None, torch.tensor(values))
    if sampling.top_k:
        warped = process.TopKLogitsWarper(sampling.top_k)(None, warped)
    if sampling.top_p < 1:
        warped = process.TopPLogitsWarper(sampling.top_p)(None, warped)
    expected = torch.softmax(warped, -1).numpy()[0]
    draws = 20_000
    keys = jax.random.split(jax.random.key(0), draws)
    rows = jnp.broadcast_to(jnp.asarray(values), (draws, VOCABULARY))
    tokens = np.asarray(jax.jit(lambda rows, keys: sample(sampling, rows, keys))(rows, keys))
    counts = np.bincount(tokens, minlength=VOCABULARY) / draws
    assert not counts[expected == 0].any()
    error = np.sqrt(expected * (1 - expected) / draws)
    assert (np.abs(counts - expected) <= 5 * error + 1e-9).all()


def test_temperature_zero_is_greedy_and_takes_the_first_of_equals() -> None:
    values = logits(2)
    values[1, [7, 30]] = values.max() + 1
    keys = jax.random.split(jax.random.key(0), 3)
    for tokens in (greedy(values), sample(Sampling(), jnp.asarray(values), keys)):
        np.testing.assert_array_equal(tokens, values.argmax(-1))


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"temperature": -1}, "temperature -1"),
        ({"top_p": 0}, "top_p 0"),
        ({"top_k": -2}, "top_k -2"),
    ],
)
def test_impossible_settings_are_named(wrong: dict, named: str) -> None:
    with pytest.raises(UserError, match=named):
        Sampling(**wrong)
