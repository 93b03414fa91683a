"""Logits, loss, gradients and greedy text are those of Transformers at the same weights."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxllm.models.config import ModelConfig
from jaxllm.models.decoder import Params, logits
from jaxllm.models.scoring import score_tokens, token_loss
from tests.models.families import FAMILIES
from tests.models.helpers import (
    compared_with_torch,
    generate,
    one_document_rows,
    random_batch,
    random_params,
)

torch = pytest.importorskip("torch")
families = pytest.importorskip("tests.models.transformers_families")


@pytest.mark.parametrize("name", FAMILIES)
def test_logits_loss_and_gradients(name: str) -> None:
    kind, config = FAMILIES[name]
    params = random_params(config)
    batch = random_batch(config, rows=3, length=29)
    model = families.reference(kind, config, params)

    theirs = model(torch.tensor(np.asarray(batch.inputs), dtype=torch.long)).logits
    gradients = compared_with_torch(config, params, batch, theirs)
    mapped = families.to_transformers(kind, config, gradients)
    for parameter, weight in model.named_parameters():
        np.testing.assert_allclose(
            mapped[parameter].numpy(), weight.grad.numpy(), atol=1e-4, err_msg=parameter
        )
        # a constant added to every key moves no softmax, unless positions turn the keys
        if not (parameter.endswith("k_proj.bias") and config.position_embedding != "rotary"):
            assert weight.grad.abs().max() > 1e-4, f"{parameter} has no gradient to compare"


@pytest.mark.parametrize("name", ["llama", "opt_350m"])
def test_the_gradient_through_the_scores_is_the_same(name: str) -> None:
    _, config = FAMILIES[name]
    params = random_params(config)
    batch = random_batch(config, rows=3, length=29)

    def losses(params: Params) -> jax.Array:
        return token_loss(config, params, batch)[0]

    def scored(params: Params) -> jax.Array:
        return -jnp.sum(score_tokens(config, params, batch).log_likelihood)

    one, two = jax.jit(lambda p: (jax.grad(losses)(p), jax.grad(scored)(p)))(params)
    jax.tree.map(partial(np.testing.assert_allclose, atol=1e-3, rtol=1e-4), one, two)


@pytest.mark.parametrize("name", FAMILIES)
def test_greedy_text_through_the_cache(name: str) -> None:
    """Prompts of several lengths in one batch: each as alone in Transformers, and as uncached."""
    kind, config = FAMILIES[name]
    params = random_params(config)
    model = families.reference(kind, config, params)
    prompts = np.random.default_rng(1).integers(1, config.vocab_size, (4, 9)).astype(np.int32)
    lengths = np.array([9, 9, 4, 1], np.int32)
    greedy = jax.jit(partial(generate, config, max_new_tokens=12))
    ours = np.asarray(greedy(params, jnp.asarray(prompts), jnp.asarray(lengths)))
    for row, length in enumerate(lengths):
        prompt = torch.tensor(prompts[row : row + 1, :length], dtype=torch.long)
        theirs = model.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            max_new_tokens=12,
            do_sample=False,
            pad_token_id=0,
        )
        np.testing.assert_array_equal(ours[row], theirs[0, length:].numpy())
    np.testing.assert_array_equal(ours, uncached_text(config, params, prompts, lengths, ours))


def uncached_text(
    config: ModelConfig,
    params: Params,
    prompts: np.ndarray,
    lengths: np.ndarray,
    continuations: np.ndarray,
) -> np.ndarray:
    """What the forward of whole rows finds most likely after every prefix of `continuations`."""
    count = continuations.shape[1]
    rows = np.zeros((len(prompts), prompts.shape[1] + count), np.int32)
    for row, length in enumerate(lengths):
        text = np.concatenate([prompts[row, :length], continuations[row]])
        rows[row, : len(text)] = text
    whole = jax.jit(lambda p: logits(config, p, one_document_rows(rows)))(params)
    best = np.asarray(jnp.argmax(whole, axis=-1))
    return np.stack([best[row, n - 1 : n - 1 + count] for row, n in enumerate(lengths)])
