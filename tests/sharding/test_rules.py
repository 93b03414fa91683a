"""A model trains to the same losses however its arrays are spread over eight devices."""

import dataclasses
from functools import partial
from types import SimpleNamespace
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P

from jaxllm.errors import UserError
from jaxllm.models.config import ModelConfig
from jaxllm.models.decoder import abstract_params, init_params
from jaxllm.models.scoring import score_tokens, token_loss
from jaxllm.sharding.mesh import MeshConfig, make_mesh
from jaxllm.sharding.rules import (
    batch_sharding,
    check_batch_divides,
    check_sequence_divides,
    param_shardings,
    partitioning,
    replicated,
)
from tests.models.helpers import random_batch

CONFIG = ModelConfig(
    vocab_size=128, num_layers=4, embed_dim=64, mlp_dim=96, num_heads=4, num_kv_heads=2,
    init_stddev=0.05,
)  # fmt: skip
MESHES = {
    "fsdp": MeshConfig(),
    "data": MeshConfig(data=8),
    "data_fsdp_tensor": MeshConfig(data=2, tensor=2),
    "fsdp_wide_tensor": MeshConfig(tensor=4),  # two key heads over four devices
    "sequence_tensor": MeshConfig(sequence=2, tensor=2),
}
OPTIMIZER = optax.adamw(1e-2)


def losses(config: ModelConfig, mesh: jax.sharding.Mesh, steps: int = 20) -> np.ndarray:
    """The losses of a plain training loop, with explicit shardings and a donated state."""

    def init(key: jax.Array) -> tuple[Any, Any]:
        params = init_params(config, key)
        return params, OPTIMIZER.init(params)

    boxed = jax.eval_shape(init, jax.random.key(0))
    state_sharding = param_shardings(mesh, boxed)
    rows, whole = batch_sharding(mesh), replicated(mesh)
    create = jax.jit(lambda key: nn.unbox(init(key)), out_shardings=state_sharding)

    @partial(
        jax.jit,
        in_shardings=(state_sharding, rows),
        out_shardings=(state_sharding, whole),
        donate_argnums=0,
    )
    def step(state: tuple[Any, Any], batch: Any) -> tuple[tuple[Any, Any], jax.Array]:
        params, moments = state

        def mean_loss(params: Any) -> jax.Array:
            return token_loss(config, params, batch, 1e-4)[0] / jnp.sum(batch.weights)

        with partitioning(mesh):
            loss, gradients = jax.value_and_grad(mean_loss)(params)
        updates, moments = OPTIMIZER.update(gradients, moments, params)
        return (optax.apply_updates(params, updates), moments), loss

    state = create(jax.random.key(0))
    history = []
    for index in range(steps):
        # the same few rows again and again: the loss falls, so that a lost gradient shows
        batch = random_batch(config, rows=16, length=24, seed=index % 2)
        state, loss = step(state, jax.device_put(batch, rows))
        history.append(float(loss))
    return np.array(history)


@pytest.fixture(scope="module")
def one_device() -> np.ndarray:
    return losses(CONFIG, make_mesh(MeshConfig(), jax.devices()[:1]))


@pytest.mark.parametrize("name", MESHES)
def test_twenty_steps_agree_with_one_device(name: str, one_device: np.ndarray) -> None:
    np.testing.assert_allclose(losses(CONFIG, make_mesh(MESHES[name])), one_device, rtol=1e-5)
    assert one_device[-1] < one_device[0] - 0.5, "the model must have learned something"


def test_parameters_are_spread_as_the_table_says() -> None:
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    shardings = param_shardings(mesh, abstract_params(CONFIG))
    specs = jax.tree.map(lambda s: s.spec, shardings)
    assert specs["embedding"] == P("tensor", "fsdp")
    assert specs["head"] == P("fsdp", "tensor")
    assert specs["layers"]["attention"]["query"] == P(None, "fsdp", "tensor", None)
    assert specs["layers"]["attention"]["output"] == P(None, "tensor", None, "fsdp")
    assert specs["layers"]["mlp"]["down"] == P(None, "tensor", "fsdp")
    assert specs["layers"]["mlp_norm"]["scale"] == P(None, None)
    assert specs["final_norm"]["scale"] == P(None)


def test_axes_that_do_not_divide_are_replicated() -> None:
    mesh = make_mesh(MeshConfig(fsdp=2, tensor=4))
    config = dataclasses.replace(CONFIG, vocab_size=127)
    specs = jax.tree.map(lambda s: s.spec, param_shardings(mesh, abstract_params(config)))
    assert specs["embedding"] == P(None, "fsdp")
    assert specs["layers"]["attention"]["key"] == P(None, "fsdp", None, None)
    assert specs["layers"]["attention"]["query"] == P(None, "fsdp", "tensor", None)


def test_a_batch_that_does_not_fill_the_mesh_is_still_scored() -> None:
    """An evaluation's three rows on eight devices."""
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    params = nn.unbox(jax.jit(init_params, static_argnums=0)(CONFIG, jax.random.key(0)))
    batch = random_batch(CONFIG, rows=3, length=17)

    def score(params: Any) -> Any:
        with partitioning(mesh):
            return score_tokens(CONFIG, params, batch)

    spread = jax.device_put(params, param_shardings(mesh, abstract_params(CONFIG)))
    ours = jax.jit(score)(spread)
    expected = jax.jit(lambda p: score_tokens(CONFIG, p, batch))(params)
    np.testing.assert_allclose(ours.log_likelihood, expected.log_likelihood, atol=1e-5)


def test_sequences_must_divide_and_keep_whole_tiles_on_tpus() -> None:
    mesh = make_mesh(MeshConfig(fsdp=2, sequence=4))
    check_sequence_divides(mesh, 132)
    with pytest.raises(UserError, match=r"length 130 .*sequence = 4: make it a multiple of 4$"):
        check_sequence_divides(mesh, 130)
    tpu = SimpleNamespace(shape=mesh.shape, devices=np.array([SimpleNamespace(platform="tpu")]))
    check_sequence_divides(tpu, 1024)
    with pytest.raises(UserError, match=r"length 768 .*make it a multiple of 512$"):
        check_sequence_divides(tpu, 768)


def test_batches_must_divide() -> None:
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    check_batch_divides(mesh, 12)
    with pytest.raises(UserError, match=r"batch size 6 .*multiple of 4"):
        check_batch_divides(mesh, 6)
