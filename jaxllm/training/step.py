"""One update: gradients of a batch, optionally in microbatches, then the optimizer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxllm.models.batch import Array, Batch
from jaxllm.models.config import ModelConfig
from jaxllm.models.scoring import TokenScores, score_tokens, token_loss
from jaxllm.sharding.rules import batch_sharding, partitioning, replicated
from jaxllm.sharding.xla_flags import mesh_options
from jaxllm.training import skipping
from jaxllm.training.config import SkipConfig
from jaxllm.training.domain_weights import (
    DomainWeights,
    DoReMi,
    WeightTable,
    balanced,
    by_domain,
    mean_factors,
)
from jaxllm.training.state import TrainState


class StepMetrics(NamedTuple):
    """Measurements of an update, float32; sums merge exactly over microbatches, steps and hosts."""

    loss_sums: Array  # [domains], negative log-likelihood in nats, summed over weighted targets
    weight_sums: Array  # [domains], the weights of those targets
    z_loss_sum: Array | None  # [], coefficient · log²(Z), summed likewise; None where it is off
    grad_norm: Array  # [], global norm before clipping
    param_norm: Array  # [], global norm after the update
    learning_rate: Array  # []
    # [domains] by metric, of weights in the loss; None where all tokens are weighed alike
    domain_weights: Mapping[str, Array] | None = None
    layers: Mapping[str, Array] | None = None  # of `training.monitors`, at the steps with them
    skip: skipping.Verdict | None = None  # of a run that skips outliers


TrainStep = Callable[[TrainState, Batch], tuple[TrainState, StepMetrics]]


def compile_train_step(
    model: ModelConfig,
    optimizer: optax.GradientTransformation,
    schedule: optax.Schedule,
    mesh: jax.sharding.Mesh,
    *args: Any,
    reference: Any = None,
    **rest: Any,
) -> TrainStep:
    """`lower_train_step`, compiled with the flags of the mesh's chips, of these `reference`s."""
    lowered = lower_train_step(model, optimizer, schedule, mesh, *args, reference=reference, **rest)
    compiled = lowered.compile(compiler_options={**mesh_options(mesh)})
    return compiled if reference is None else lambda *args: compiled(*args, reference)


def lower_train_step(
    model: ModelConfig,
    optimizer: optax.GradientTransformation,
    schedule: optax.Schedule,
    mesh: jax.sharding.Mesh,
    abstract: TrainState,
    *,
    batch_size: int,
    length: int,
    reference: Any = None,
    **rest: Any,
) -> jax.stages.Lowered:
    """Lower the update of `make_update` for one batch shape; compiled, it is a `TrainStep`.

    It is for global arrays [B = batch_size, T = length] sharded over sequences; the old state is
    donated. `reference`: the (abstract) parameters of DoReMi's reference model, a third argument.
    """
    update = make_update(model, optimizer, schedule, mesh, **rest)
    shardings = lambda tree: jax.tree.map(lambda leaf: leaf.sharding, tree)
    references = () if reference is None else (reference,)
    step = jax.jit(
        update,
        in_shardings=(shardings(abstract), batch_sharding(mesh), *map(shardings, references)),
        out_shardings=(shardings(abstract), replicated(mesh)),
        donate_argnums=0,
    )
    return step.lower(abstract, abstract_batch(batch_size, length), *references)


def make_update(
    model: ModelConfig,
    optimizer: optax.GradientTransformation,
    schedule: optax.Schedule,
    mesh: jax.sharding.Mesh,
    num_domains: int,
    accumulation: int = 1,
    z_loss: float = 0.0,
    loss_chunk_tokens: int | None = None,
    domain_weights: DoReMi | WeightTable | None = None,
    skip: SkipConfig | None = None,
) -> Callable[..., tuple[TrainState, StepMetrics]]:
    """The update, not yet compiled: (state, batch) -> (state, StepMetrics).

    The loss is the mean over the batch's weighted targets, for any number of microbatches
    (`accumulation`, which divides B): each is divided by the weight of the whole batch. `schedule`
    serves the metrics; `num_domains` is what `Batch.domains` indexes; `loss_chunk_tokens` is
    `token_loss`'s.

    With `domain_weights` that mean is weighted (`jaxllm.training.domain_weights`). DoReMi needs the
    parameters of the reference model as a third argument, and scores the batch with it. The weights
    follow from the losses of the whole batch: with microbatches, from a forward pass of their own.

    `skip` leaves out outliers (`jaxllm.training.skipping`).
    """

    def update(
        state: TrainState, batch: Batch, reference: Any = None
    ) -> tuple[TrainState, StepMetrics]:
        with partitioning(mesh):
            gradients, (loss_sums, z_loss_sum, learned) = gradients_of(state, batch, reference)
            weight_sums, grad_norm = by_domain(batch, num_domains), optax.global_norm(gradients)
            verdict = None
            if skip:
                loss = jnp.sum(loss_sums) / jnp.maximum(jnp.sum(weight_sums), 1e-30)
                verdict, window = skipping.judge(skip, state.skip, loss, grad_norm)
                state = state._replace(skip=window)
                if skip.rule == "clip":
                    gradients = skipping.clip(gradients, grad_norm, verdict)

            def updated(state: TrainState) -> TrainState:
                updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
                params = optax.apply_updates(state.params, updates)
                return TrainState(state.step + 1, params, opt_state, learned, state.skip)

            if verdict:  # not by `where`, for which XLA copies the whole state
                new = jax.lax.cond(verdict.applied, updated, skipping.pass_over, state)
            else:
                new = updated(state)
        shown = learned and new.domain_weights._asdict()
        if isinstance(domain_weights, WeightTable):
            shown = {"domain_weight": domain_weights.at(state.step)}
        rate = jnp.asarray(schedule(state.step), jnp.float32)
        metrics = StepMetrics(
            loss_sums, weight_sums, z_loss_sum, grad_norm, optax.global_norm(new.params), rate,
            domain_weights=shown, skip=verdict,
        )  # fmt: skip
        return new, metrics

    def gradients_of(state: TrainState, batch: Batch, reference: Any) -> tuple[Any, Any]:
        """Gradients; and losses by domain, z-loss and the domain weights that DoReMi learns."""
        params, scale = state.params, 1.0 / jnp.maximum(jnp.sum(batch.weights), 1.0)
        if domain_weights is None:
            return accumulated(params, batch, scale)
        counts = by_domain(batch, num_domains)
        if isinstance(domain_weights, WeightTable):
            factors = balanced(domain_weights.at(state.step), counts)
            return accumulated(params, batch, scale, factors)
        excess = partial(domain_weights.excess, num_domains, reference)
        learn = partial(domain_weights.update, state.domain_weights, state.step, counts)
        if accumulation == 1:
            of_batch = excess(batch)
            return microbatch_gradients(
                params, batch, scale, learn=lambda scores: learn(of_batch(scores))
            )

        def add(total: jax.Array, microbatch: Batch) -> tuple[jax.Array, None]:
            return total + excess(microbatch)(score_tokens(model, params, microbatch)), None

        zeros = jnp.zeros((num_domains,), jnp.float32)
        total, _ = jax.lax.scan(add, zeros, _microbatches(batch, accumulation, mesh))
        learned = learn(total)
        factors = mean_factors(learned.domain_weight, counts)
        gradients, (*sums, _) = accumulated(params, batch, scale, factors)
        return gradients, (*sums, learned)

    def accumulated(
        params: Any, batch: Batch, scale: jax.Array, factors: Array | None = None
    ) -> tuple[Any, Any]:
        if accumulation == 1:
            return microbatch_gradients(params, batch, scale, factors)

        def add(total: Any, microbatch: Batch) -> tuple[Any, None]:
            gradients = microbatch_gradients(params, microbatch, scale, factors)
            return jax.tree.map(jnp.add, total, gradients), None

        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32), params)
        sums = (jnp.zeros((num_domains,), jnp.float32), jnp.float32(0.0) if z_loss else None, None)
        total, _ = jax.lax.scan(add, (zeros, sums), _microbatches(batch, accumulation, mesh))
        return total

    def microbatch_gradients(
        params: Any,
        batch: Batch,
        scale: jax.Array,
        factors: Array | None = None,
        learn: Callable[[TokenScores], DomainWeights] | None = None,
    ) -> tuple[Any, Any]:
        """Gradients and sums; tokens count by their domain's factor, or by what `learn` says."""

        def counting(factors: Array) -> Array:
            return batch.weights * factors[batch.domains][:, None]

        def weigh(scores: TokenScores) -> Array:
            assert learn
            counts = by_domain(batch, num_domains)
            return counting(mean_factors(learn(scores).domain_weight, counts))

        def loss(params: Any) -> tuple[jax.Array, Any]:
            weights = batch.weights if factors is None else counting(factors)
            weighted = batch._replace(weights=weights)
            total, scores = token_loss(
                model, params, weighted, z_loss, loss_chunk_tokens, weigh if learn else None
            )
            losses = -scores.log_likelihood * batch.weights
            squares = jnp.square(scores.log_z) * batch.weights
            sums = (
                by_domain(batch, num_domains, losses),
                z_loss * jnp.sum(squares) if z_loss else None,
                learn(scores) if learn else None,
            )
            return total * scale, sums

        return jax.grad(loss, has_aux=True)(params)

    return update


def device_batch(batch: Batch, mesh: jax.sharding.Mesh) -> Batch:
    """This host's sequences of a batch as its shards of the global arrays."""
    of_host = partial(jax.make_array_from_process_local_data, batch_sharding(mesh))
    return jax.tree.map(lambda x: of_host(np.asarray(x)), batch)


def abstract_batch(batch_size: int, length: int) -> Batch:
    """The shapes of a batch of training sequences, [B, T]."""
    tokens: Any = jax.ShapeDtypeStruct((batch_size, length), jnp.int32)
    weights: Any = jax.ShapeDtypeStruct((batch_size, length), jnp.float32)
    domains: Any = jax.ShapeDtypeStruct((batch_size,), jnp.int32)
    return Batch(tokens, tokens, weights, tokens, tokens, domains)


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
