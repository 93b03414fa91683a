"""Weights of the domains in the loss: a table, and DoReMi against the paper's algorithm 1."""

from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxllm.errors import UserError
from jaxllm.models.batch import Batch
from jaxllm.models.decoder import abstract_params, init_params, logits
from jaxllm.training.config import DoReMiConfig, TrainConfig
from jaxllm.training.domain_weights import (
    DomainWeights,
    DoReMi,
    WeightTable,
    check_domains,
    mean_factors,
    of_config,
)
from jaxllm.training.learning_rate import make_schedule
from jaxllm.training.stacked import check_alike
from jaxllm.training.state import TrainState, abstract_state, state_of
from jaxllm.training.step import StepMetrics, device_batch, lower_train_step
from tests.training.helpers import LENGTH, MODEL, ROWS, experiment, mesh, rows

CONFIG = DoReMiConfig("runs/reference@10", learning_rate=5.0)
ROWS_OF_TABLE = ((1, {"odd": 1.0}), (3, {"odd": 3.0}), (9, {"odd": 0.0}))
SOURCES = {
    "plain": None,
    "doremi": DoReMi(CONFIG, MODEL),
    "table": WeightTable.of(ROWS_OF_TABLE, ("even", "odd")),
}


class Trained(NamedTuple):
    """The states before and after each of some updates, and their metrics; on the host."""

    states: list[TrainState]
    metrics: list[StepMetrics]


def rarely_odd(i: int) -> Batch:
    """Batch i, of which every third has none of the domain `odd`."""
    batch = rows(i * ROWS, ROWS)
    return batch._replace(domains=batch.domains * (i % 3 != 1))


def arguments(source: str, on: jax.sharding.Mesh, **options: Any) -> tuple[Any, Any]:
    """Those of `lower_train_step`."""
    schedule = make_schedule(experiment("unused").schedule, 20)
    optimizer = experiment("unused").train.optimizer.build(schedule, abstract_params(MODEL))
    domains = 2 if source == "doremi" else 0
    abstract = abstract_state(MODEL, optimizer, on, domains)
    options |= {"batch_size": ROWS, "length": LENGTH, "num_domains": 2}
    options |= {"domain_weights": SOURCES[source]}
    if domains:
        options["reference"] = abstract.params
    return (MODEL, optimizer, schedule, on, abstract), options


@cache
def compiled(source: str, on: jax.sharding.Mesh, accumulation: int) -> Any:
    positional, options = arguments(source, on, accumulation=accumulation)
    update = lower_train_step(*positional, **options).compile()
    return update, positional[1], positional[-1]


def trained(
    source: str,
    on: jax.sharding.Mesh,
    accumulation: int = 1,
    batches: Callable[[int], Batch] = rarely_odd,
    steps: int = 5,
    reference: Any = None,
) -> Trained:
    """Train from the parameters of seed 3; `reference` replaces those of seed 7."""
    update, optimizer, abstract = compiled(source, on, accumulation)
    others = [reference or params_of(7)] if source == "doremi" else []
    shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract)
    others = [jax.device_put(other, shardings.params) for other in others]
    state = state_of(jax.device_put(params_of(3), shardings.params), optimizer, abstract)
    states, seen = [jax.device_get(state)], []
    for i in range(steps):
        state, metrics = update(state, device_batch(batches(i), on), *others)
        states.append(jax.device_get(state))
        seen.append(jax.device_get(metrics))
    return Trained(states, seen)


@cache
def params_of(seed: int) -> Any:
    return jax.device_get(
        nn.unbox(jax.jit(init_params, static_argnums=0)(MODEL, jax.random.key(seed)))
    )


@jax.jit
def token_losses(params: Any, batch: Batch) -> jax.Array:
    """Losses [B, T] from all logits at once."""
    values = jax.nn.log_softmax(logits(MODEL, params, jax.tree.map(jnp.asarray, batch)), axis=-1)
    return -jnp.take_along_axis(values, jnp.asarray(batch.targets)[..., None], -1)[..., 0]


def domain_mean(losses: Any, batch: Batch, domain: int) -> Any:
    weights = batch.weights * (batch.domains == domain)[:, None]
    return (losses * weights).sum() / weights.sum()


def algorithm_1(states: list[TrainState]) -> list[DomainWeights]:
    """The paper's weights of each step in NumPy, on the losses of the states before them."""
    alpha, excess, total, expected = np.full(2, 0.5), np.zeros(2), np.zeros(2), []
    for t, state in enumerate(states[:-1], 1):
        batch = rarely_odd(t - 1)
        proxy, reference = (
            np.asarray(token_losses(params, batch), np.float64)
            for params in (state.params, params_of(7))
        )
        for i in set(batch.domains.tolist()):
            excess[i] = domain_mean(np.maximum(proxy - reference, 0), batch, i)
        raised = alpha * np.exp(CONFIG.learning_rate * excess)
        alpha = (1 - CONFIG.smoothing) * raised / raised.sum() + CONFIG.smoothing / 2
        total += alpha
        expected.append(DomainWeights(alpha, total / t, excess.copy()))
    return expected


@pytest.fixture(scope="module")
def of() -> dict[str, Trained]:
    """Five updates on one device."""
    return {source: trained(source, mesh(1)) for source in SOURCES}


def test_weights_are_those_of_algorithm_1(of: Any) -> None:
    states, metrics = of["doremi"]
    for state, own, expected in zip(states[1:], metrics, algorithm_1(states), strict=True):
        for name, value in expected._asdict().items():
            np.testing.assert_allclose(getattr(state.domain_weights, name), value, rtol=2e-5)
            np.testing.assert_array_equal(
                own.domain_weights[name], getattr(state.domain_weights, name)
            )
    assert states[-1].domain_weights.domain_weight[0] != pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize("step", [0, 1])  # the second batch has one domain alone
def test_the_gradient_is_that_of_the_weighted_means(of: Any, step: int) -> None:
    """In the step that made the weights, and through the proxy alone."""
    states, metrics = of["doremi"]
    batch, before = rarely_odd(step), states[step]
    alpha = algorithm_1(states)[step].domain_weight
    present = sorted(set(batch.domains.tolist()))

    def objective(params: Any) -> Any:
        losses = token_losses(params, batch) - token_losses(params_of(7), batch)
        means = [alpha[i] * domain_mean(losses, batch, i) for i in present]
        return sum(means) / sum(alpha[present])

    norm = float(optax.global_norm(jax.grad(objective)(before.params)))
    assert metrics[step].grad_norm == pytest.approx(norm, rel=1e-4)
    plain = [domain_mean(token_losses(before.params, batch), batch, i) for i in present]
    shown = metrics[step].loss_sums[present] / metrics[step].weight_sums[present]
    np.testing.assert_allclose(shown, plain, rtol=1e-5)


@pytest.mark.parametrize(
    ("source", "devices", "accumulation"), [("doremi", 1, 4), ("doremi", 4, 1), ("table", 1, 2)]
)
def test_microbatches_and_meshes_give_the_same_run(
    of: Any, source: str, devices: int, accumulation: int
) -> None:
    on = mesh(4, data=2, fsdp=2) if devices == 4 else mesh(1)
    states, metrics = trained(source, on, accumulation)
    for ours, expected in zip(metrics, of[source].metrics, strict=True):
        np.testing.assert_allclose(ours.grad_norm, expected.grad_norm, rtol=1e-4)
        for name, values in expected.domain_weights.items():
            np.testing.assert_allclose(ours.domain_weights[name], values, rtol=1e-4)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5),
        states[-1].params, of[source].states[-1].params,
    )  # fmt: skip


def test_a_table_weighs_tokens_as_it_says(of: Any) -> None:
    """Nothing changes until step 1; `odd` has 2 at step 2, and 3 at step 3."""
    states, metrics = of["table"]
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-8),
        states[2], of["plain"].states[2],
    )  # fmt: skip
    for step, odd in ((2, 2.0), (3, 3.0)):
        batch = rarely_odd(step)
        weights = batch.weights * np.array([1.0, odd])[batch.domains][:, None]

        def objective(params: Any, batch: Batch = batch, weights: Any = weights) -> Any:
            return jnp.sum(token_losses(params, batch) * weights) / weights.sum()

        norm = float(optax.global_norm(jax.grad(objective)(states[step].params)))
        assert metrics[step].grad_norm == pytest.approx(norm, rel=1e-4)
        np.testing.assert_allclose(metrics[step].domain_weights["domain_weight"], [1, odd])
        shown = metrics[step].loss_sums.sum() / metrics[step].weight_sums.sum()
        losses = np.asarray(token_losses(states[step].params, batch))
        assert shown == pytest.approx(float(np.average(losses, weights=batch.weights)), rel=1e-5)


def test_nothing_of_it_is_in_the_program_or_the_checkpoint_without_it(
    of: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    positional, options = arguments("plain", mesh(1), accumulation=2, z_loss=0.1)
    text = lower_train_step(*positional, **options).as_text()
    for name in ("balanced", "mean_factors", "score_tokens"):
        monkeypatch.delattr(f"jaxllm.training.step.{name}")
    del options["domain_weights"]
    assert lower_train_step(*positional, **options).as_text() == text
    assert of["plain"].states[-1].training.keys() == {"step", "opt_state"}


@settings(max_examples=10, deadline=None)
@given(st.integers(1, 6), st.floats(0.0, 3.0), st.floats(0.0, 0.5), st.integers(0, 2**32 - 1))
def test_many_updates_in_numpy(domains: int, eta: float, c: float, seed: int) -> None:
    """As the paper writes them, of any number of domains, some of them absent."""
    draw = np.random.default_rng(seed)
    doremi = DoReMi(DoReMiConfig("reference@1", eta, c), MODEL)
    state, alpha = DomainWeights.uniform(domains), np.full(domains, 1 / domains)
    last, past = np.zeros(domains), []
    for step in range(12):
        counts = draw.integers(0, 3, domains).astype(np.float32)
        excess = draw.exponential(0.5, domains).astype(np.float32) * counts
        state = doremi.update(state, np.float32(step), counts, excess)
        last = np.where(counts > 0, excess / np.maximum(counts, 1), last)
        raised = alpha * np.exp(eta * last)
        alpha = (1 - c) * raised / raised.sum() + c / domains
        past.append(alpha)
        factors = np.asarray(mean_factors(state.domain_weight, counts))
        if counts.sum():
            present = counts > 0
            share = np.where(present, alpha, 0) / alpha[present].sum()
            np.testing.assert_allclose(factors * counts / counts.sum(), share, rtol=1e-3, atol=1e-6)
    np.testing.assert_allclose(state.domain_weight, alpha, rtol=1e-3, atol=1e-6)
    np.testing.assert_allclose(
        state.average_domain_weight, np.mean(past, axis=0), rtol=1e-3, atol=1e-6
    )
    np.testing.assert_allclose(state.excess_loss, last, rtol=1e-5)


def test_what_can_be_learned_gains_weight_and_noise_loses_it() -> None:
    """`even` is noise, `odd` counts; the reference model has learned what there is to learn."""

    def planted(i: int) -> Batch:
        batch = rows(i * ROWS, ROWS)
        noise = np.random.default_rng(i).integers(0, 32, (ROWS, LENGTH + 1), np.int32)
        of_noise = (batch.domains == 0)[:, None]
        return batch._replace(
            inputs=np.where(of_noise, noise[:, :-1], batch.inputs),
            targets=np.where(of_noise, noise[:, 1:], batch.targets),
        )

    reference = trained("plain", mesh(1), batches=planted, steps=100).states[-1].params
    proxy = trained("doremi", mesh(1), batches=planted, steps=10, reference=reference)
    weights = proxy.states[-1].domain_weights
    assert weights.domain_weight[1] > 0.8 and weights.average_domain_weight[1] > 0.6
    assert weights.excess_loss[1] > 3 * weights.excess_loss[0]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"weights": 1.0}, "has no field 'weights'"),
        (((5, {}), (5, {})), "rising"),
        (((0, {"even": -1.0}),), "must be"),
        ((), "rising"),
    ],
)
def test_bad_settings_are_refused(given: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        TrainConfig(domain_weights=given)


def test_bad_tables_are_refused() -> None:
    domains = ("even", "odd")
    with pytest.raises(UserError, match=r"names ood, which .* odd\?; it has even, odd"):
        check_domains(((0, {"ood": 1.0}),), domains)
    with pytest.raises(UserError, match="all domains have weight 0"):
        of_config(((0, {"even": 0, "odd": 0}),), domains)
    stages: Any = ({"tokens": 64.0}, {})
    with pytest.raises(UserError, match="without stages"):
        TrainConfig(domain_weights=CONFIG, stages=stages)
    assert TrainConfig(domain_weights=ROWS_OF_TABLE, stages=stages).domain_weights == ROWS_OF_TABLE
    with pytest.raises(UserError, match=r"stacked: TrainConfig\.domain_weights"):
        check_alike([experiment("unused", domain_weights=ROWS_OF_TABLE)])
