"""One update: gradients of a batch, optionally in microbatches, then the optimizer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxllm.models.batch import Array, Batch
from jaxllm.models.config import ModelConfig
from jaxllm.models.scoring import token_loss
from jaxllm.sharding.rules import batch_sharding, partitioning, replicated
from jaxllm.sharding.xla_flags import mesh_options
from jaxllm.training.state import TrainState


class StepMetrics(NamedTuple):
    """Measurements of one update, float32; sums merge exactly over microbatches, steps and hosts.

    Attributes:
      loss_sums: [domains], negative log-likelihood in nats, summed over weighted targets.
      weight_sums: [domains], the weights of those targets.
      z_loss_sum: [], coefficient · log²(Z), summed likewise; None where it is off.
      grad_norm: [], global norm before clipping.
      param_norm: [], global norm after the update.
      learning_rate: [].
    """

    loss_sums: Array
    weight_sums: Array
    z_loss_sum: Array | None
    grad_norm: Array
    param_norm: Array
    learning_rate: Array


TrainStep = Callable[[TrainState, Batch], tuple[TrainState, StepMetrics]]


def compile_train_step(
    model: ModelConfig,
    optimizer: optax.GradientTransformation,
    schedule: optax.Schedule,
    mesh: jax.sharding.Mesh,
    *args: Any,
    **kwargs: Any,
) -> TrainStep:
    """`lower_train_step`, compiled with the flags of the mesh's chips."""
    lowered = lower_train_step(model, optimizer, schedule, mesh, *args, **kwargs)
    return lowered.compile(compiler_options={**mesh_options(mesh)})


def lower_train_step(
    model: ModelConfig,
    optimizer: optax.GradientTransformation,
    schedule: optax.Schedule,
    mesh: jax.sharding.Mesh,
    abstract: TrainState,
    *,
    batch_size: int,
    length: int,
    num_domains: int,
    accumulation: int = 1,
    z_loss: float = 0.0,
    loss_chunk_tokens: int | None = None,
) -> jax.stages.Lowered:
    """Lower the update for one batch shape; compiled, it is a `TrainStep`.

    That is `make_update`'s, for global arrays [B = batch_size, T = length] sharded over sequences;
    the old state is donated.
    """
    update = make_update(
        model, optimizer, schedule, mesh, num_domains, accumulation, z_loss, loss_chunk_tokens
    )
    state_shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract)
    step = jax.jit(
        update,
        in_shardings=(state_shardings, batch_sharding(mesh)),
        out_shardings=(state_shardings, replicated(mesh)),
        donate_argnums=0,
    )
    return step.lower(abstract, abstract_batch(batch_size, length))


def make_update(
    model: ModelConfig,
    optimizer: optax.GradientTransformation,
    schedule: optax.Schedule,
    mesh: jax.sharding.Mesh,
    num_domains: int,
    accumulation: int = 1,
    z_loss: float = 0.0,
    loss_chunk_tokens: int | None = None,
) -> TrainStep:
    """The update, not yet compiled: (state, batch) -> (state, StepMetrics).

    The loss is the mean over the batch's weighted targets, for any number of microbatches
    (`accumulation`, which divides B): each is divided by the weight of the whole batch. `schedule`
    serves the metrics; `num_domains` is what `Batch.domains` indexes; `loss_chunk_tokens` is
    `token_loss`'s.
    """

    def update(state: TrainState, batch: Batch) -> tuple[TrainState, StepMetrics]:
        with partitioning(mesh):
            gradients, (loss_sums, z_loss_sum) = gradients_of(state.params, batch)
            updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
            params = optax.apply_updates(state.params, updates)
        metrics = StepMetrics(
            loss_sums=loss_sums,
            weight_sums=_by_domain(batch.weights, batch.domains, num_domains),
            z_loss_sum=z_loss_sum,
            grad_norm=optax.global_norm(gradients),
            param_norm=optax.global_norm(params),
            learning_rate=jnp.asarray(schedule(state.step), jnp.float32),
        )
        return TrainState(state.step + 1, params, opt_state), metrics

    def gradients_of(params: Any, batch: Batch) -> tuple[Any, Any]:
        scale = 1.0 / jnp.maximum(jnp.sum(batch.weights), 1.0)
        if accumulation == 1:
            return microbatch_gradients(params, batch, scale)

        def add(total: Any, microbatch: Batch) -> tuple[Any, None]:
            gradients = microbatch_gradients(params, microbatch, scale)
            return jax.tree.map(jnp.add, total, gradients), None

        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32), params)
        sums = (jnp.zeros((num_domains,), jnp.float32), jnp.float32(0.0) if z_loss else None)
        total, _ = jax.lax.scan(add, (zeros, sums), _microbatches(batch, accumulation, mesh))
        return total

    def microbatch_gradients(params: Any, batch: Batch, scale: jax.Array) -> tuple[Any, Any]:
        def loss(params: Any) -> tuple[jax.Array, Any]:
            total, scores = token_loss(model, params, batch, z_loss, loss_chunk_tokens)
            losses = -scores.log_likelihood * batch.weights
            squares = jnp.square(scores.log_z) * batch.weights
            sums = (
                _by_domain(losses, batch.domains, num_domains),
                z_loss * jnp.sum(squares) if z_loss else None,
            )
            return total * scale, sums

        return jax.grad(loss, has_aux=True)(params)

    return update


def device_batch(batch: Batch, mesh: jax.sharding.Mesh) -> Batch:
    """This host's sequences of a batch as its shards of the global arrays."""
    sharding = batch_sharding(mesh)
    return jax.tree.map(
        lambda x: jax.make_array_from_process_local_data(sharding, np.asarray(x)), batch
    )


def abstract_batch(batch_size: int, length: int) -> Batch:
    """The shapes of a batch of training sequences, [B, T]."""
    tokens: Any = jax.ShapeDtypeStruct((batch_size, length), jnp.int32)
    weights: Any = jax.ShapeDtypeStruct((batch_size, length), jnp.float32)
    domains: Any = jax.ShapeDtypeStruct((batch_size,), jnp.int32)
    return Batch(
        inputs=tokens,
        targets=tokens,
        weights=weights,
        positions=tokens,
        segment_ids=tokens,
        domains=domains,
    )


def _by_domain(values: Array, domains: Array, num_domains: int) -> jax.Array:
    """Sum values [B, T] over the sequences of each domain: [num_domains]."""
    return jax.ops.segment_sum(jnp.sum(values, axis=1), domains, num_domains)


def _microbatches(batch: Batch, count: int, mesh: jax.sharding.Mesh) -> Batch:
    """[B, ...] -> [count, B / count, ...].

    Sequence b goes to microbatch b mod `count`: every microbatch takes sequences from every device,
    and none moves between devices.
    """
    spec = jax.sharding.PartitionSpec(None, *batch_sharding(mesh).spec)

    def split(x: jax.Array) -> jax.Array:
        x = jnp.moveaxis(x.reshape(x.shape[0] // count, count, *x.shape[1:]), 1, 0)
        return jax.lax.with_sharding_constraint(x, jax.sharding.NamedSharding(mesh, spec))

    return jax.tree.map(split, batch)
