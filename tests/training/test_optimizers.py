"""Optimizers whose state does not mirror the parameters, and parameters in bfloat16, on a mesh."""

import dataclasses
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxllm import cli
from jaxllm.models.decoder import abstract_params
from jaxllm.run.run import Run
from jaxllm.training.config import AdamWConfig, MuonConfig, OptimizerConfig, TrainConfig
from jaxllm.training.loop import train
from jaxllm.training.state import abstract_state, initializer
from tests.training.helpers import MODEL, experiment, mesh, stages


@dataclasses.dataclass(frozen=True)
class AdafactorConfig(OptimizerConfig):
    """Factored second moments: vectors for a matrix, and placeholders of one number."""

    def build(self, schedule: optax.Schedule, boxed_params: Any) -> optax.GradientTransformation:
        return optax.adafactor(schedule, min_dim_size_to_factor=4)


def losses(model_dir: Path, *stops: int, **changes: Any) -> list[float]:
    """The run stopped after each of `stops` steps, and started again."""
    for steps in stops:
        e = experiment(model_dir, **({"steps": steps} | changes))
        schedule = dataclasses.replace(e.schedule, decay_end_step=stops[-1])
        e = dataclasses.replace(e, schedule=schedule)
        train(e, mesh(4, data=2, fsdp=2), stages(e))
    return [row["loss"] for row in Run(model_dir).metrics_lines.read()[0]]


@pytest.mark.parametrize("optimizer", [MuonConfig(), AdafactorConfig()])
def test_trains_on_a_mesh_and_resumes_bitwise(optimizer: OptimizerConfig, tmp_path: Path) -> None:
    whole = losses(tmp_path / "whole", 30, optimizer=optimizer)
    assert losses(tmp_path / "stopped", 9, 30, optimizer=optimizer) == whole
    assert whole[-1] < whole[0]


def test_muon_orthogonalizes_the_matrices_of_blocks_and_no_others() -> None:
    """The update of one step has singular values of one size, in each layer, over all heads."""
    boxed = abstract_params(MODEL)
    optimizer = MuonConfig(max_grad_norm=None, weight_decay=0.0).build(lambda count: 1.0, boxed)
    state = initializer(MODEL, optimizer, abstract_state(MODEL, optimizer, mesh()))(0)
    update, _ = optimizer.update(state.params, state.opt_state, state.params)

    def spread(matrix: Any) -> float:
        values = np.linalg.svd(np.asarray(matrix), compute_uv=False)
        return float(values.max() / values.min())

    query = update["layers"]["attention"]["query"][0].reshape(16, 16)
    output = update["layers"]["attention"]["output"][0].reshape(16, 16)
    up, down = update["layers"]["mlp"]["up"][0], update["layers"]["mlp"]["down"][0]
    assert all(spread(matrix) < 2 for matrix in (query, output, up, down))
    signs = np.abs(np.asarray(update["embedding"]))
    np.testing.assert_allclose(signs, signs[0, 0], rtol=1e-2)  # Adam's first step


@pytest.mark.parametrize("config", [AdamWConfig, MuonConfig])
def test_without_gradients_matrices_decay_and_vectors_do_so_on_request(config: Any) -> None:
    boxed = abstract_params(MODEL)
    params = jax.tree.map(lambda p: jnp.ones(p.shape, p.dtype), nn.unbox(boxed))
    zero = jax.tree.map(jnp.zeros_like, params)
    for decayed in ("matrices", "all"):
        made = config(weight_decay=0.1, weight_decay_mask=decayed, max_grad_norm=None)
        optimizer = made.build(lambda count: 0.5, boxed)
        update, _ = optimizer.update(zero, optimizer.init(params), params)
        np.testing.assert_allclose(update["embedding"], -0.05, rtol=1e-6)
        np.testing.assert_allclose(update["layers"]["mlp"]["up"], -0.05, rtol=1e-6)
        norm = -0.05 if decayed == "all" else 0.0
        np.testing.assert_allclose(update["final_norm"]["scale"], norm, rtol=1e-6)


def test_gin_refers_to_an_optimizer() -> None:
    args = cli.parse(cli.parser(""), ["--gin.TrainConfig.optimizer=@MuonConfig()",
                                      "--gin.MuonConfig.b1=0.8"])  # fmt: skip
    cli.load_gin(args)
    assert TrainConfig().optimizer == MuonConfig(b1=0.8)


@pytest.mark.parametrize("optimizer", [AdamWConfig(), MuonConfig()])
def test_the_state_of_bfloat16_parameters_is_float32(
    optimizer: OptimizerConfig, tmp_path: Path
) -> None:
    """Also where gradients are summed in float32 over microbatches."""
    model = dataclasses.replace(MODEL, param_dtype="bfloat16")
    built = optimizer.build(lambda count: 0.1, abstract_params(model))
    state = abstract_state(model, built, mesh())
    dtypes = {leaf.dtype for leaf in jax.tree.leaves(state.opt_state)}
    assert dtypes == {np.dtype(np.float32), np.dtype(np.int32)}
    assert {leaf.dtype for leaf in jax.tree.leaves(state.params)} == {np.dtype(jnp.bfloat16)}
    logged = losses(
        tmp_path, 4, 12, model=model, optimizer=optimizer, gradient_accumulation=2, log_every=1
    )
    assert len(logged) == 12 and logged[-1] < logged[0]
