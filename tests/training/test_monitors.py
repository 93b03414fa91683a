"""Norms per layer: what autodiff and Optax say outside of the program, and no trace where off."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxllm.errors import UserError
from jaxllm.models.decoder import abstract_params, hidden_states
from jaxllm.models.scoring import token_loss
from jaxllm.run.run import Run
from jaxllm.training.loop import train
from jaxllm.training.rollback import skip_by_hand
from jaxllm.training.stacked import check_alike
from tests.training.helpers import MODEL, ROWS, FakeBatches, experiment, mesh, rows, stages

TWO = dataclasses.replace(MODEL, num_layers=2)


def lines(model_dir: Path) -> list[dict]:
    return [json.loads(line) for line in (model_dir / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[dict], list[dict], Path]:
    """The lines of a run with monitors, and of one without."""
    path = tmp_path_factory.mktemp("monitors")
    for name, options in {
        "on": {"monitor_every": 2, "gradient_accumulation": 2},
        "off": {},
    }.items():
        options = {"gradient_accumulation": 2, "log_every": 1, "steps": 4} | options
        e = experiment(path / name, model=TWO, **options)
        assert train(e, mesh(), stages(e)).finished
    return lines(path / "on"), lines(path / "off"), path


def test_training_is_the_same(runs: tuple[list[dict], list[dict], Path]) -> None:
    on, off, _ = runs
    for with_layers, without in zip(on, off, strict=True):
        assert with_layers["loss"] == without["loss"]
        assert with_layers["grad_norm"] == without["grad_norm"]
        assert ("grad_norm/layer_1" in with_layers) == (with_layers["step"] % 2 == 0)
        assert not any(name.startswith("grad_norm/") for name in without)


def test_norms_are_those_of_the_gradients(runs: tuple[list[dict], list[dict], Path]) -> None:
    line = runs[0][1]
    of = [v for name, v in line.items() if name.startswith("grad_norm/")]
    np.testing.assert_allclose(np.linalg.norm(of), line["grad_norm"], rtol=1e-5)
    assert line["qk_logit_bound/layer_0"] > 0 and line["activation_rms/layer_0"] > 0


class Poisoned(FakeBatches):
    """NaN in the batches of step 2, which is skipped, and of 7 and 8, which is one too many."""

    def __next__(self) -> Any:
        batch, step = super().__next__(), self._next // ROWS
        return batch._replace(weights=batch.weights * np.nan) if step in (2, 7, 8) else batch


def test_beside_skips_and_rollbacks(tmp_path: Path) -> None:
    """Lines are of the steps that they name, and the run is that without monitors."""
    options = {"steps": 11, "log_every": 1, "skip": {"longest": 1}}
    e = experiment(tmp_path / "on", monitor_every=2, rollback={"margin": 0}, **options)
    assert train(e, mesh(), stages(e, Poisoned)).finished
    assert [one[:3] for one in Run(e.model_dir).rollbacks()] == [(4, 7, 8)]
    on = lines(tmp_path / "on")
    assert [line["step"] for line in on] == [1, 2, 3, 4, 5, 6, 9, 10, 11]
    of = [{k: v for k, v in line.items() if k.startswith("grad_norm/")} for line in on]
    assert [line["step"] for line, norms in zip(on, of, strict=True) if norms] == [2, 4, 6, 10]
    assert "loss" not in on[1] and set(of[1].values()) == {None}
    for line, norms in zip(on, of, strict=True):
        if norms and line["step"] != 2:
            norm = np.linalg.norm(list(norms.values()))
            np.testing.assert_allclose(norm, line["grad_norm"], rtol=1e-5)
    skip_by_hand(Run.create(tmp_path / "off"), "7:8")
    without = experiment(tmp_path / "off", **options)
    assert train(without, mesh(), stages(without, Poisoned)).finished
    for name in ("loss", "grad_norm", "param_norm", "skipped_steps"):
        assert [line.get(name) for line in on] == [
            line.get(name) for line in lines(tmp_path / "off")
        ]


def test_each_layer_by_hand(tmp_path: Path) -> None:
    """At step 1, from the initial parameters, with plain SGD's ratio rate · |g| / |p|."""
    from jaxllm.training.monitors import compile_monitors
    from jaxllm.training.state import abstract_state, initializer

    optimizer = optax.sgd(0.5)
    abstract = abstract_state(TWO, optimizer, mesh())
    state = initializer(TWO, optimizer, abstract)(0)
    schedule = lambda count: 0.5
    measure = compile_monitors(
        TWO, optimizer, schedule, mesh(), abstract, batch_size=8, length=8, num_domains=2
    )
    batch = jax.tree.map(jnp.asarray, rows(0, 8))
    found = measure(state, batch)
    mean = lambda params: token_loss(TWO, params, batch)[0] / jnp.sum(batch.weights)
    gradients = jax.jit(jax.grad(mean))(state.params)
    for layer in range(2):
        take = lambda x, layer=layer: x[layer]
        own = lambda tree, take=take: optax.global_norm(jax.tree.map(take, tree["layers"]))
        np.testing.assert_allclose(found["grad_norm/layer"][layer], own(gradients), rtol=1e-4)
        np.testing.assert_allclose(found["param_norm/layer"][layer], own(state.params), rtol=1e-5)
        ratio = 0.5 * own(gradients) / own(state.params)
        np.testing.assert_allclose(found["update_ratio/layer"][layer], ratio, rtol=1e-4)
    embedded = state.params["embedding"][batch.inputs]
    rms = float(jnp.sqrt(jnp.mean(embedded**2)))
    np.testing.assert_allclose(found["activation_rms/layer"][0], rms, rtol=1e-5)
    # RoPE turns vectors and leaves their norms: the bound of layer 0 follows from its projections.
    weights = jax.tree.map(lambda x: x[0], state.params["layers"])
    normed = embedded / jnp.sqrt(jnp.mean(embedded**2, -1, keepdims=True) + TWO.norm_eps)
    normed = normed * weights["attention_norm"]["scale"]
    norms = [
        jnp.linalg.norm(jnp.einsum("btd,dhk->bthk", normed, weights["attention"][name]), axis=-1)
        for name in ("query", "key")
    ]
    largest = jnp.max(norms[0], (0, 1)) * jnp.max(norms[1], (0, 1))
    bound = float(largest.max()) * TWO.head_size**-0.5
    np.testing.assert_allclose(found["qk_logit_bound/layer"][0], bound, rtol=1e-4)


def test_off_leaves_no_trace_in_the_program(monkeypatch: pytest.MonkeyPatch) -> None:
    """The forward pass is that of blocks which cannot tell anything."""
    batch = jax.tree.map(jnp.asarray, rows(0, 8))
    params = nn.unbox(abstract_params(TWO))
    lowered = lambda: jax.jit(lambda p: hidden_states(TWO, p, batch)).lower(params).as_text()
    as_it_is = lowered()
    monkeypatch.setattr(nn.Module, "is_mutable_collection", lambda *_: False)
    jax.clear_caches()
    assert lowered() == as_it_is


def test_settings_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"monitor_every = 4: no multiple of log_every = 3"):
        experiment(tmp_path, monitor_every=4)
    with pytest.raises(UserError, match=r"TrainConfig.monitor_every are trained alone"):
        check_alike([experiment(tmp_path, monitor_every=3)])
