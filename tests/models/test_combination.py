"""Models combined: NumPy's statements of the rules, and generation through caches of all."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxllm.errors import UserError
from jaxllm.models.combination import Combination, CombinedModel
from jaxllm.models.decoder import logits, unstack_layers
from jaxllm.models.generation import decode_n, start_decoding
from jaxllm.models.sampling import GREEDY, Sampling
from tests.models.helpers import TINY, generate, one_document_rows, random_params

SMALL = dataclasses.replace(TINY, num_layers=1)
LENGTHS = jnp.array([6, 3])
PROMPTS = jnp.asarray(np.random.default_rng(3).integers(1, TINY.vocab_size, (2, 6)), jnp.int32)


def softmax(values: np.ndarray) -> np.ndarray:
    e = np.exp(values - values.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def difference(small: np.ndarray, large: np.ndarray) -> np.ndarray:
    mixed = softmax(small) - softmax(large)
    return np.where(mixed > 0, mixed, 0) / np.where(mixed > 0, mixed, 0).sum(-1, keepdims=True)


def contrastive(large: np.ndarray, small: np.ndarray) -> np.ndarray:
    p = softmax(large)
    plausible = p >= 0.2 * p.max(-1, keepdims=True)
    ratio = np.where(plausible, p / softmax(small) ** 0.7, 0)
    return ratio / ratio.sum(-1, keepdims=True)


def emulated(base: np.ndarray, tuned: np.ndarray, small: np.ndarray) -> np.ndarray:
    p = softmax(base) * (softmax(tuned) / softmax(small)) ** 0.5
    return p / p.sum(-1, keepdims=True)


STATED = {
    "probabilities:1,-1": difference,
    "probabilities:0.5,1": lambda a, b: (0.5 * softmax(a) + softmax(b)) / 1.5,
    "logits:0.3,0.6": lambda a, b: softmax(0.3 * a + 0.6 * b),
    "contrastive:0.7,0.2": contrastive,
    "emulated:0.5": emulated,
    "value": lambda base, value: softmax(base + value),
}


@pytest.mark.parametrize("rule", STATED)
def test_rules_are_their_equations(rule: str) -> None:
    state = STATED[rule]
    models = 3 if rule.startswith("emulated") else 2
    values = np.random.default_rng(0).normal(0, 3, (models, 5, 40))
    combined = Combination.parse(rule, models)([jnp.asarray(v, jnp.float32) for v in values])
    np.testing.assert_allclose(softmax(np.asarray(combined)), state(*values), atol=2e-6)
    assert (np.isneginf(combined) == (state(*values) == 0)).all()


def test_a_padded_head_does_not_count() -> None:
    short, long = np.random.default_rng(1).normal(size=(2, 3, 9))
    padded = np.pad(long, ((0, 0), (0, 4)), constant_values=50.0)
    combine = Combination.parse("probabilities:1,1", 2)
    np.testing.assert_array_equal(combine([short, padded]), combine([short, long]))


def made(model, params, sampling: Sampling = GREEDY) -> np.ndarray:
    keys = jax.random.split(jax.random.key(5), 2)
    run = jax.jit(partial(generate, model, max_new_tokens=8, sampling=sampling))
    return np.asarray(run(params, PROMPTS, LENGTHS, keys=keys))


@pytest.fixture(scope="module")
def pair() -> list:
    return [unstack_layers(random_params(SMALL, seed=1)), unstack_layers(random_params(TINY))]


def test_cached_generation_is_a_loop_over_whole_forwards(pair: list) -> None:
    combine = Combination.parse("probabilities:1,-1", 2)
    tokens = made(CombinedModel((SMALL, TINY), combine), tuple(pair))
    models = (SMALL, TINY)
    forward = [jax.jit(partial(logits, model)) for model in models]
    for row, (prompt, length) in enumerate(zip(np.asarray(PROMPTS), LENGTHS.tolist(), strict=True)):
        sequence = [*prompt[:length], *tokens[row]]
        batch = one_document_rows(np.asarray([sequence], np.int32))
        both = [f(p, batch)[0, length - 1 :] for f, p in zip(forward, pair, strict=True)]
        expected = difference(*(np.asarray(one, np.float64) for one in both)).argmax(-1)
        np.testing.assert_array_equal(tokens[row], expected)


@pytest.mark.parametrize("sampling", [GREEDY, Sampling(temperature=1.0, top_p=0.9)])
def test_a_model_with_the_only_weight_generates_as_alone(pair: list, sampling: Sampling) -> None:
    alone = made(TINY, pair[1], sampling)
    for rule, models, params in (
        ("probabilities:0,1", (SMALL, TINY), pair),
        ("emulated:0", (TINY, SMALL, SMALL), (pair[1], pair[0], pair[0])),
    ):
        model = CombinedModel(models, Combination.parse(rule, len(models)))
        np.testing.assert_array_equal(made(model, tuple(params), sampling), alone)
    assert (made(SMALL, pair[0], sampling) != alone).any()


def test_a_sequence_without_a_possible_token_is_marked(pair: list) -> None:
    state = start_decoding(SMALL, pair[0], PROMPTS, LENGTHS, 3)
    state = state._replace(logits=state.logits.at[1].set(-jnp.inf))
    state, _ = decode_n(SMALL, pair[0], state, 3)
    np.testing.assert_array_equal(state.invalid, [False, True])
    assert np.isfinite(state.logits).all()  # the next ones are: it is not seen at the end


@pytest.mark.parametrize(
    ("rule", "models", "named"),
    [
        ("probability:1,1", 2, "no rule probability; did you mean probabilities"),
        ("probabilities:1,x", 2, "write probabilities:NUMBER"),
        ("probabilities:1,-2", 2, "a sum below 0"),
        ("probabilities", 2, "not all 0"),
        ("logits:1,nan", 2, "finite"),
        ("contrastive:1,2", 2, "plausibility 2.0"),
        ("emulated:1,2", 3, "at most 1 number"),
        ("emulated:1", 2, "combines 3 models, and there are 2"),
    ],
)
def test_mistakes_are_named(rule: str, models: int, named: str) -> None:
    with pytest.raises(UserError, match=named):
        Combination.parse(rule, models)
