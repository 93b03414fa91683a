"""Chunked scores and losses equal the plain formulas, and never hold all logits."""

import dataclasses
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxllm.models import scoring
from jaxllm.models.batch import Batch
from jaxllm.models.config import ModelConfig
from jaxllm.models.decoder import abstract_params, logits
from jaxllm.models.scoring import score_tokens, token_loss
from tests.models.helpers import TINY, random_batch, random_params


def plain_loss(config: ModelConfig, params: Any, batch: Batch, z_loss: float) -> jax.Array:
    """The textbook formula over all logits at once."""
    values = logits(config, params, batch)
    log_z = jnp.log(jnp.exp(values).sum(-1))
    target = (jax.nn.one_hot(batch.targets, config.vocab_size) * values).sum(-1)
    return (batch.weights * (log_z - target + z_loss * log_z**2)).sum()


@pytest.mark.parametrize("chunk_tokens", [1, 45, 10_000])
def test_scores_are_the_log_softmax(chunk_tokens: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scoring, "DEFAULT_CHUNK_TOKENS", chunk_tokens)
    config = TINY
    params = random_params(config)
    batch = random_batch(config, rows=3, length=23)
    scores, values = jax.jit(lambda p: (score_tokens(config, p, batch), logits(config, p, batch)))(
        params
    )
    values = np.asarray(values, np.float64)
    log_z = np.log(np.exp(values).sum(-1))
    targets = np.asarray(batch.targets)
    chosen = np.take_along_axis(values, targets[..., None], -1)[..., 0]
    np.testing.assert_allclose(scores.log_z, log_z, atol=1e-5)
    np.testing.assert_allclose(scores.log_likelihood, chosen - log_z, atol=1e-5)
    np.testing.assert_array_equal(scores.correct, values.argmax(-1) == targets)


@pytest.mark.parametrize(
    ("chunk_tokens", "tie_embeddings"), [(7, False), (45, True), (10_000, False)]
)
def test_gradients_are_those_of_the_plain_loss(
    chunk_tokens: int, tie_embeddings: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scoring, "DEFAULT_CHUNK_TOKENS", chunk_tokens)
    config = dataclasses.replace(TINY, tie_embeddings=tie_embeddings)
    params = random_params(config)
    batch = random_batch(config, rows=3, length=23)
    weights = np.random.default_rng(0).uniform(0, 2, batch.weights.shape).astype(np.float32)
    weights[:, ::4] = 0
    batch = batch._replace(weights=jnp.asarray(weights))
    z_loss = 0.05

    def scored(params: Any) -> jax.Array:
        scores = score_tokens(config, params, batch)
        per_token = z_loss * scores.log_z**2 - scores.log_likelihood
        return 3.0 * jnp.sum(batch.weights * per_token)

    losses = (
        lambda p: 3.0 * plain_loss(config, p, batch, z_loss),
        scored,
        lambda p: 3.0 * token_loss(config, p, batch, z_loss)[0],
    )
    (value, expected), *others = [jax.jit(jax.value_and_grad(loss))(params) for loss in losses]
    for loss, gradients in others:
        np.testing.assert_allclose(loss, value, rtol=1e-5)
        jax.tree.map(
            lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-3, atol=2e-4),
            gradients,
            expected,
        )
    # without differentiation the loss is computed by another path
    np.testing.assert_allclose(jax.jit(losses[2])(params), value, rtol=1e-5)


@pytest.mark.parametrize("function", ["token_loss", "score_tokens"])
def test_all_logits_never_exist(function: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither in the compiled program's text nor in its memory."""
    monkeypatch.setattr(scoring, "DEFAULT_CHUNK_TOKENS", 64)
    config = dataclasses.replace(TINY, vocab_size=32_768)
    rows, length = 4, 128
    batch = random_batch(config, rows, length)

    def loss(params: Any) -> jax.Array:
        if function == "token_loss":
            return token_loss(config, params, batch)[0]
        return -jnp.sum(score_tokens(config, params, batch).log_likelihood)

    compiled = jax.jit(jax.grad(loss)).lower(abstract_params(config)).compile()
    sizes = [
        np.prod([int(n) for n in shape.split(",")]) * 4
        for shape in re.findall(r"f32\[([\d,]+)\]", compiled.as_text())
    ]
    all_logits = rows * length * config.vocab_size * 4
    assert max(sizes) >= all_logits // 8, "a chunk's logits must be there"
    assert max(sizes) < all_logits // 2
    assert compiled.memory_analysis().temp_size_in_bytes < all_logits // 2
