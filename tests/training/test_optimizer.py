"""AdamW with clipping and mask against PyTorch's."""

import dataclasses
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch

from jaxllm.errors import UserError
from jaxllm.models.decoder import abstract_params
from jaxllm.run.checkpoint_schedule import CheckpointConfig
from jaxllm.run.run import Run
from jaxllm.training.config import AdamWConfig
from jaxllm.training.learning_rate import ScheduleConfig, make_schedule
from jaxllm.training.loop import train
from jaxllm.training.optimizer import _stochastic_round, weight_decay_mask
from jaxllm.training.state import abstract_state, initializer
from tests.training.helpers import MODEL, experiment, mesh, stages


@pytest.mark.parametrize("decay", ["matrices", "all"])
def test_updates_are_pytorchs(decay: str) -> None:
    """Ten updates of a matrix and a norm, stacked over layers, with a schedule and clipping."""
    random = np.random.Generator(np.random.PCG64(0))
    values = {"matrix": random.normal(size=(2, 4, 3)), "norm": random.normal(size=(2, 4))}
    names = {"matrix": ("layers", "embed", "mlp"), "norm": ("layers", "norm")}
    boxed = {k: nn.LogicallyPartitioned(jnp.asarray(v), names[k]) for k, v in values.items()}
    schedule = make_schedule(ScheduleConfig(peak_lr=0.1, end_lr=0.01, warmup_steps=3), 10)
    config = AdamWConfig(
        b1=0.8, b2=0.9, eps=1e-6, weight_decay=0.3, weight_decay_mask=decay, max_grad_norm=2.0
    )
    optimizer = config.build(schedule, boxed)
    params = nn.unbox(boxed)
    state = optimizer.init(params)

    twins = {k: torch.nn.Parameter(torch.tensor(v, dtype=torch.float32)) for k, v in values.items()}
    groups = [
        {"params": [twins["matrix"]], "weight_decay": 0.3},
        {"params": [twins["norm"]], "weight_decay": 0.3 if decay == "all" else 0.0},
    ]
    reference = torch.optim.AdamW(groups, betas=(0.8, 0.9), eps=1e-6)
    for count in range(10):
        grads = {k: random.normal(size=v.shape).astype(np.float32) for k, v in values.items()}
        updates, state = optimizer.update(jax.tree.map(jnp.asarray, grads), state, params)
        params = optax.apply_updates(params, updates)
        for k, twin in twins.items():
            twin.grad = torch.tensor(grads[k])
        torch.nn.utils.clip_grad_norm_(list(twins.values()), 2.0)
        for group in reference.param_groups:
            group["lr"] = float(schedule(count))
        reference.step()
    for k, twin in twins.items():
        np.testing.assert_allclose(params[k], twin.detach().numpy(), rtol=2e-5, atol=1e-6)


def test_matrices_decay_and_norms_do_not() -> None:
    mask = weight_decay_mask(abstract_params(MODEL))
    leaves = jax.tree_util.tree_leaves_with_path(mask)
    spared = {jax.tree_util.keystr(path) for path, decays in leaves if not decays}
    assert len(leaves) > len(spared) > 0
    assert all("norm" in name for name in spared)
    assert sum("norm" in jax.tree_util.keystr(path) for path, _ in leaves) == len(spared)


def test_an_unknown_mask_is_refused() -> None:
    with pytest.raises(UserError, match="biases"):
        AdamWConfig(weight_decay_mask="biases")


def test_rounding_at_random_is_right_on_average_and_exact_where_it_can_be() -> None:
    values = jnp.asarray([1.0, -3.5, 0.0, 1.001, -7.77e-5, jnp.inf, jnp.nan], jnp.float32)
    rounded = jax.vmap(lambda key: _stochastic_round(values, key))(
        jax.random.split(jax.random.key(0), 10_000)
    )
    assert rounded.dtype == jnp.bfloat16
    wide = np.asarray(rounded, np.float64)
    np.testing.assert_array_equal(wide[:, :3], np.tile(values[:3], (10_000, 1)))
    np.testing.assert_array_equal(wide[:, 5:], np.tile(values[5:], (10_000, 1)))
    for column in (3, 4):
        assert len(np.unique(wide[:, column])) == 2, "the two neighbours"
    # the mean of 10,000 roundings is within 4 standard errors: a neighbour is 2**-7 away at most
    np.testing.assert_allclose(wide[:, 3:5].mean(axis=0), values[3:5], rtol=4 * 2**-8 / 100)


def test_second_mean_in_bfloat16_falls_where_the_nearest_one_would_stay() -> None:
    """1,000 updates without a gradient, b2 = 0.999: it is 0.999 ** 1000 of what it was."""
    config = AdamWConfig(b1=0.9, b2=0.999, max_grad_norm=None, state_dtype="bfloat16")
    params = {"w": jnp.ones((64, 64))}
    boxed = {"w": nn.LogicallyPartitioned(params["w"], ("embed", "mlp"))}
    optimizer = config.build(lambda count: 0.0, boxed)
    start = optimizer.update({"w": jnp.ones((64, 64))}, optimizer.init(params), params)[1]
    second = lambda state: float(jnp.mean(optax.tree.get(state, "nu")["w"].astype(jnp.float32)))
    none = {"w": jnp.zeros((64, 64))}
    end, _ = jax.lax.scan(
        lambda state, _: (optimizer.update(none, state, params)[1], None), start, length=1000
    )
    assert second(end) / second(start) == pytest.approx(0.999**1000, rel=0.02)
    assert jnp.bfloat16(second(start)) * jnp.bfloat16(0.999) == jnp.bfloat16(second(start))


def test_moments_in_bfloat16_take_half_the_memory_and_learn_alike(tmp_path: Path) -> None:
    """200 steps of the tiny run; stopped in between, it is bitwise the same."""

    def losses(name: str, dtype: str, *stops: int) -> list[float]:
        e = experiment(
            tmp_path / name, steps=200, log_every=20,
            optimizer=AdamWConfig(state_dtype=dtype),
            schedule=ScheduleConfig(peak_lr=1e-2, end_lr=1e-3, warmup_steps=3, decay_end_step=200),
            checkpoints=CheckpointConfig(early=(0,), every_steps=50),
        )  # fmt: skip
        for steps in (*stops, 200):
            e = dataclasses.replace(e, train=dataclasses.replace(e.train, steps=steps))
            train(e, mesh(1), stages(e))
        return [row["loss"] for row in Run(tmp_path / name).metrics_lines.read()[0]]

    full, half = losses("full", "float32"), losses("half", "bfloat16")
    np.testing.assert_allclose(half, full, rtol=0.01)
    assert half != full
    assert losses("stopped", "bfloat16", 100) == half

    on, size = mesh(1), {}
    for dtype in ("float32", "bfloat16"):
        optimizer = AdamWConfig(state_dtype=dtype).build(lambda count: 0.1, abstract_params(MODEL))
        state = initializer(MODEL, optimizer, abstract_state(MODEL, optimizer, on))(0)
        size[dtype] = sum(x.nbytes for x in jax.tree.leaves(state.opt_state)) - 2 * 4  # counts
    assert size["float32"] == 2 * 4 * MODEL.num_params
    assert size["bfloat16"] == 2 * 2 * MODEL.num_params


def test_an_unknown_dtype_of_moments_is_refused() -> None:
    with pytest.raises(UserError, match="float8"):
        AdamWConfig(state_dtype="float8")
