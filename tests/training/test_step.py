"""One update: microbatches, meshes and domains against a plain statement of the loss."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxllm.models.decoder import abstract_params, logits
from jaxllm.training.learning_rate import make_schedule
from jaxllm.training.state import TrainState, abstract_state, initializer, num_bytes
from jaxllm.training.step import StepMetrics, compile_train_step, device_batch
from tests.training.helpers import LENGTH, MODEL, ROWS, experiment, mesh, rows


def trained(
    on: jax.sharding.Mesh, *, steps: int, accumulation: int = 1, z_loss: float = 0.0
) -> tuple[TrainState, TrainState, list[StepMetrics]]:
    """State before and after some updates, on the host, and the metrics."""
    e = experiment("unused", steps=20)
    schedule = make_schedule(e.schedule, 20)
    optimizer = e.train.optimizer.build(schedule, abstract_params(MODEL))
    abstract = abstract_state(MODEL, optimizer, on)
    state = initializer(MODEL, optimizer, abstract)(3)
    before = jax.device_get(state)
    update = compile_train_step(
        MODEL, optimizer, schedule, on, abstract,
        batch_size=ROWS, length=LENGTH, num_domains=2, accumulation=accumulation, z_loss=z_loss,
    )  # fmt: skip
    seen = []
    for i in range(steps):
        state, metrics = update(state, device_batch(rows(i * ROWS, ROWS), on))
        seen.append(jax.device_get(metrics))
    return before, jax.device_get(state), seen


def plain_loss(params: Any, z_loss: float) -> jax.Array:
    """The loss of the first batch from all logits at once."""
    batch = rows(0, ROWS)
    values = logits(MODEL, params, jax.tree.map(jnp.asarray, batch))
    log_z = jax.nn.logsumexp(values, axis=-1)
    chosen = jnp.take_along_axis(values, jnp.asarray(batch.targets)[..., None], -1)[..., 0]
    losses = (log_z - chosen) + z_loss * log_z**2
    return jnp.sum(losses * batch.weights) / np.sum(batch.weights)


@pytest.fixture(scope="module")
def one_device() -> tuple[TrainState, TrainState, list[StepMetrics]]:
    return trained(mesh(1), steps=20)


def test_first_update_is_the_plain_one(one_device: Any) -> None:
    before, _, metrics = one_device
    batch = rows(0, ROWS)
    loss, gradients = jax.value_and_grad(plain_loss)(before.params, 0.0)
    first = metrics[0]
    assert np.sum(first.loss_sums) / np.sum(first.weight_sums) == pytest.approx(
        float(loss), rel=1e-5
    )
    assert first.grad_norm == pytest.approx(float(optax.global_norm(gradients)), rel=1e-4)
    by_domain = [np.sum(batch.weights[batch.domains == d]) for d in (0, 1)]
    np.testing.assert_allclose(first.weight_sums, by_domain)
    assert first.learning_rate == pytest.approx(1e-2 / 3)


def test_domain_losses_are_those_of_their_rows(one_device: Any) -> None:
    before, _, metrics = one_device
    batch = rows(0, ROWS)
    values = np.asarray(logits(MODEL, before.params, jax.tree.map(jnp.asarray, batch)))
    likelihood = np.take_along_axis(values, batch.targets[..., None], -1)[..., 0]
    likelihood -= np.log(np.exp(values).sum(-1))
    for domain in (0, 1):
        mine = batch.domains == domain
        expected = -np.sum(likelihood[mine] * batch.weights[mine])
        assert metrics[0].loss_sums[domain] == pytest.approx(expected, rel=1e-5)


def test_learns(one_device: Any) -> None:
    losses = [np.sum(m.loss_sums) / np.sum(m.weight_sums) for m in one_device[2]]
    assert losses[-1] < losses[0] - 0.5


@pytest.mark.parametrize(
    ("devices", "axes", "accumulation"),
    [(1, {}, 4), (4, {"data": 2, "fsdp": 2}, 2), (8, {"fsdp": 4, "tensor": 2}, 1)],
)
def test_microbatches_and_meshes_give_the_same_run(
    one_device: Any, devices: int, axes: dict[str, int], accumulation: int
) -> None:
    """20 updates agree with one device and whole batches: losses to 1e-5 relative, in fp32."""
    _, after, metrics = trained(mesh(devices, **axes), steps=20, accumulation=accumulation)
    _, expected, reference = one_device
    for ours, theirs in zip(metrics, reference, strict=True):
        np.testing.assert_allclose(ours.loss_sums, theirs.loss_sums, rtol=1e-5)
        np.testing.assert_array_equal(ours.weight_sums, theirs.weight_sums)
        np.testing.assert_allclose(ours.grad_norm, theirs.grad_norm, rtol=1e-4)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5),
        after.params,
        expected.params,
    )


def test_z_loss_acts_on_the_gradient_and_is_not_in_the_loss(one_device: Any) -> None:
    before, _, metrics = trained(mesh(1), steps=1, z_loss=0.1)
    gradients = jax.grad(plain_loss)(before.params, 0.1)
    assert metrics[0].grad_norm == pytest.approx(float(optax.global_norm(gradients)), rel=1e-4)
    np.testing.assert_allclose(metrics[0].loss_sums, one_device[2][0].loss_sums, rtol=1e-6)


def test_state_is_sharded_and_its_size_known() -> None:
    on = mesh(8, fsdp=4, tensor=2)
    optimizer = experiment("unused").train.optimizer.build(
        lambda count: 0.1, abstract_params(MODEL)
    )
    abstract = abstract_state(MODEL, optimizer, on)
    assert num_bytes(abstract) == 3 * 4 * MODEL.num_params + 3 * 4  # params, mu, nu; 3 counters
    state = initializer(MODEL, optimizer, abstract)(0)
    for leaf, planned in zip(jax.tree.leaves(state), jax.tree.leaves(abstract), strict=True):
        assert leaf.sharding == planned.sharding
    moments = jax.tree.leaves(optax.tree_utils.tree_get(state.opt_state, "mu"))
    for moment, parameter in zip(moments, jax.tree.leaves(state.params), strict=True):
        assert moment.sharding == parameter.sharding
    assert any(not leaf.sharding.is_fully_replicated for leaf in moments)
