"""The decoder against a second statement in NumPy, and what packing must never do."""

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxllm.models import attention
from jaxllm.models.config import REMAT_POLICIES, ModelConfig
from jaxllm.models.decoder import abstract_params, hidden_states, init_params, logits
from jaxllm.models.scoring import score_tokens, token_loss
from tests.models.helpers import TINY, pack, random_batch, random_params


def numpy_logits(config: ModelConfig, params: Any, document: np.ndarray) -> np.ndarray:
    """The logits [T, V] of one document in float64, one token, head and key at a time."""
    p = jax.tree.map(lambda x: np.asarray(x, np.float64), params)

    def norm(x: np.ndarray, scale: np.ndarray) -> np.ndarray:
        return x / np.sqrt((x**2).mean() + config.norm_eps) * scale

    def rope(x: np.ndarray, position: int) -> np.ndarray:
        half = len(x) // 2
        turned = np.empty_like(x)
        for i in range(half):
            angle = position * config.rope_theta ** (-2 * i / len(x))
            pair = complex(x[i], x[i + half]) * complex(np.cos(angle), np.sin(angle))
            turned[i], turned[i + half] = pair.real, pair.imag
        return turned

    stream = [p["embedding"][token] for token in document]
    for i in range(config.num_layers):
        layer = jax.tree.map(lambda x, i=i: x[i], p["layers"])
        attention, mlp = layer["attention"], layer["mlp"]
        inputs = [norm(x, layer["attention_norm"]["scale"]) for x in stream]
        updated = []
        for t, x in enumerate(inputs):
            mixed = np.zeros((config.num_heads, config.head_size))
            for head in range(config.num_heads):
                group = head // (config.num_heads // config.kv_heads)
                query = rope(x @ attention["query"][:, head], t)
                keys = [rope(inputs[s] @ attention["key"][:, group], s) for s in range(t + 1)]
                scores = np.array([query @ key for key in keys]) / np.sqrt(config.head_size)
                weights = np.exp(scores) / np.exp(scores).sum()
                for s, weight in enumerate(weights):
                    mixed[head] += weight * (inputs[s] @ attention["value"][:, group])
            updated.append(stream[t] + np.einsum("hk,hkd->d", mixed, attention["output"]))
        stream = []
        for x in updated:
            inner = norm(x, layer["mlp_norm"]["scale"])
            gate = inner @ mlp["gate"]
            hidden = gate / (1 + np.exp(-gate)) * (inner @ mlp["up"])
            stream.append(x + hidden @ mlp["down"])
    head = p["embedding"].T if config.tie_embeddings else p["head"]
    return np.stack([norm(x, p["final_norm"]["scale"]) @ head for x in stream])


@pytest.mark.parametrize("tie_embeddings", [False, True])
def test_packed_documents_match_numpy(tie_embeddings: bool) -> None:
    config = dataclasses.replace(TINY, tie_embeddings=tie_embeddings)
    params = random_params(config)
    documents = _documents(config, 11, 4, 7)
    batch = pack(documents, length=24)
    ours = np.asarray(jax.jit(lambda p: logits(config, p, batch))(params))[0]
    start = 0
    for document in documents:
        theirs = numpy_logits(config, params, document[:-1])
        np.testing.assert_allclose(ours[start : start + len(theirs)], theirs, atol=1e-4)
        start += len(theirs)


def test_concatenation_attends_across_documents() -> None:
    """Without segments (all 1) the first document is context for the second."""
    params = random_params(TINY)
    batch = random_batch(TINY, rows=1, length=24)
    theirs = numpy_logits(TINY, params, np.asarray(batch.inputs[0]))
    ours = jax.jit(lambda p: logits(TINY, p, batch))(params)[0]
    np.testing.assert_allclose(ours, theirs, atol=1e-4)


@pytest.mark.parametrize("block_size", [5, 64])
def test_packed_segments_do_not_leak(block_size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bitwise: neither scores nor gradients of a document see what its neighbours hold."""
    monkeypatch.setattr(attention, "BLOCK_SIZE", block_size)
    config = TINY
    params = random_params(config)
    before, document, after = _documents(config, 9, 13, 8)
    others = [(d + 1) % config.vocab_size for d in (before, after)]
    one = pack([before, document, after], length=33)
    two = pack([others[0], document, others[1]], length=33)
    mine = np.asarray(one.segment_ids == 2)

    @jax.jit
    def scores_and_gradients(batch: Any) -> Any:
        batch = batch._replace(weights=jnp.asarray(mine, jnp.float32))
        return jax.value_and_grad(lambda p: token_loss(config, p, batch), has_aux=True)(params)

    (loss_one, scores_one), gradients_one = scores_and_gradients(one)
    (loss_two, scores_two), gradients_two = scores_and_gradients(two)
    assert loss_one == loss_two
    for x, y in zip(scores_one, scores_two, strict=True):
        np.testing.assert_array_equal(np.asarray(x)[mine], np.asarray(y)[mine])
    jax.tree.map(np.testing.assert_array_equal, gradients_one, gradients_two)
    assert (np.asarray(scores_one.log_z) != np.asarray(scores_two.log_z))[0, ~mine[0]][:9].all()


def test_a_token_does_not_see_the_future() -> None:
    params = random_params(TINY)
    batch = random_batch(TINY, rows=2, length=24)
    changed = batch._replace(inputs=batch.inputs.at[:, 15:].add(1) % TINY.vocab_size)
    run = jax.jit(partial(hidden_states, TINY, params))
    one, two = (np.asarray(run(b)) for b in (batch, changed))
    np.testing.assert_array_equal(one[:, :15], two[:, :15])
    assert (one[:, 15:] != two[:, 15:]).all(axis=-1).all()


@pytest.fixture(scope="module")
def plain_gradients() -> Any:
    params, batch = random_params(TINY), random_batch(TINY, rows=2, length=20)
    return jax.jit(jax.grad(lambda p: token_loss(TINY, p, batch)[0]))(params)


@pytest.mark.parametrize(
    "option", [{"scan_layers": False}, *({"remat": policy} for policy in REMAT_POLICIES[1:])]
)
def test_remat_and_unrolling_change_nothing(option: Any, plain_gradients: Any) -> None:
    """The same parameters serve all of them."""
    params = random_params(TINY)
    batch = random_batch(TINY, rows=2, length=20)
    config = dataclasses.replace(TINY, **option)
    gradients = jax.jit(jax.grad(lambda p: token_loss(config, p, batch)[0]))(params)
    jax.tree.map(
        partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-4), gradients, plain_gradients
    )


def test_bfloat16_compute_keeps_float32_parameters_and_scores() -> None:
    config = dataclasses.replace(TINY, dtype="bfloat16", init_stddev=0.05)
    params = jax.jit(init_params, static_argnums=0)(config, jax.random.key(0))
    batch = random_batch(config, rows=2, length=20)
    assert {x.dtype.name for x in jax.tree.leaves(params)} == {"float32"}
    assert jax.eval_shape(lambda p: hidden_states(config, p, batch), params).dtype == jnp.bfloat16
    wide = dataclasses.replace(config, dtype="float32")
    low, high = jax.jit(lambda p: [score_tokens(c, p, batch) for c in (config, wide)])(params)
    assert low.log_likelihood.dtype == low.log_z.dtype == jnp.float32
    np.testing.assert_allclose(low.log_likelihood, high.log_likelihood, atol=0.05)
    gradients = jax.eval_shape(jax.grad(lambda p: token_loss(config, p, batch)[0]), params)
    assert {x.dtype.name for x in jax.tree.leaves(gradients)} == {"float32"}


def test_every_parameter_names_its_axes_and_starts_as_told() -> None:
    config = dataclasses.replace(TINY, embed_dim=240, init_stddev=0.02)
    params = jax.device_get(jax.jit(init_params, static_argnums=0)(config, jax.random.key(0)))
    shapes = abstract_params(dataclasses.replace(TINY, embed_dim=240))
    boxed = lambda x: hasattr(x, "names")
    for leaf, abstract in zip(
        jax.tree.leaves(params, is_leaf=boxed), jax.tree.leaves(shapes, is_leaf=boxed), strict=True
    ):
        assert leaf.names == abstract.names and len(leaf.names) == leaf.value.ndim
        assert leaf.value.shape == abstract.value.shape
        if leaf.names[-1] == "norm":
            assert (leaf.value == 1).all()
        else:
            assert float(leaf.value.std()) == pytest.approx(0.02, rel=0.03)
            assert abs(float(leaf.value.mean())) < 1e-3


def _documents(config: ModelConfig, *lengths: int) -> list[np.ndarray]:
    generator = np.random.default_rng(7)
    return [generator.integers(1, config.vocab_size, n + 1).astype(np.int32) for n in lengths]
