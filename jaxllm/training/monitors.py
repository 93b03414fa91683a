"""Norms per layer at every `TrainConfig.monitor_every`th step, by a program beside the update.

It computes gradients and update once more: training is bitwise the same with it and without.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxllm.models.batch import Batch
from jaxllm.models.config import ModelConfig
from jaxllm.models.decoder import Decoder
from jaxllm.sharding.rules import batch_sharding, partitioning, replicated
from jaxllm.sharding.xla_flags import mesh_options
from jaxllm.training.state import TrainState
from jaxllm.training.step import StepMetrics, TrainStep, abstract_batch, make_update


def monitored(
    step_of: TrainStep, every: int, step: Callable[[], int], measure: Callable[..., Any]
) -> TrainStep:
    """An update whose metrics have `layers` at every `every`th step; `step` is the present one."""

    def update(state: TrainState, batch: Batch) -> tuple[TrainState, StepMetrics]:
        layers = None if step() % every else measure(state, batch)  # the update donates the state
        state, metrics = step_of(state, batch)
        return state, metrics._replace(layers=layers)

    return update


def compile_monitors(
    model: ModelConfig, optimizer: optax.GradientTransformation, schedule: optax.Schedule,
    mesh: jax.sharding.Mesh, abstract: TrainState, *, batch_size: int, length: int,
    accumulation: int = 1, reference: Any = None, skip: Any = None, **rest: Any,
) -> Callable[[TrainState, Batch], dict[str, jax.Array]]:  # fmt: skip
    """Compile what measures a state and batch; the arguments are those of `compile_train_step`.

    `grad_norm`, `param_norm` and `update_ratio`, the norm of the update by that of the parameters,
    are of `/layer`, [L], and of the other modules; `activation_rms` of the residual stream that a
    layer reads, and `qk_logit_bound` of the attention logits are those of the first microbatch.
    """

    def probe(gradients: Any, state: Any, params: Any = None) -> tuple[Any, dict[str, Any]]:
        updates, _ = optimizer.update(gradients, state, params)
        sizes, changes = _norms(params), _norms(updates)
        ratios = {name: changes[name] / jnp.maximum(size, 1e-30) for name, size in sizes.items()}
        kinds = {"grad_norm": _norms(gradients), "param_norm": sizes, "update_ratio": ratios}
        return updates, {
            f"{kind}/{n}": x for kind, norms in kinds.items() for n, x in norms.items()
        }

    probing = optax.GradientTransformation(optimizer.init, probe)
    update = make_update(model, probing, schedule, mesh, accumulation=accumulation, **rest)

    def measure(state: TrainState, batch: Batch, *references: Any) -> dict[str, Any]:
        with partitioning(mesh):
            first = jax.tree.map(lambda x: x[::accumulation], batch)
            inputs = (first.inputs, first.positions, first.segment_ids)
            _, seen = Decoder(model).apply({"params": state.params}, *inputs, mutable=["monitors"])
        layers = seen["monitors"]["layers"]
        inside = {**layers.pop("attention"), **layers}
        norms = update(state, batch, *references)[0].opt_state
        return norms | {f"{name}/layer": x for name, (x,) in inside.items()}

    given = () if reference is None else (reference,)
    shardings = jax.tree.map(lambda leaf: leaf.sharding, (abstract, *given))
    inputs = (shardings[0], batch_sharding(mesh), *shardings[1:])
    jitted = jax.jit(measure, in_shardings=inputs, out_shardings=replicated(mesh))
    lowered = jitted.lower(abstract, abstract_batch(batch_size, length), *given)
    compiled = lowered.compile(compiler_options={**mesh_options(mesh)})
    return compiled if reference is None else lambda *args: compiled(*args, reference)


def _norms(params: Any) -> dict[str, jax.Array]:
    """Norms by module; of all layers, which are stacked, as `layer`."""

    def norm(tree: Any, first: int) -> jax.Array:
        squares = [jnp.square(x.astype(jnp.float32)) for x in jax.tree.leaves(tree)]
        return jnp.sqrt(sum(x.sum(axis=tuple(range(first, x.ndim))) for x in squares))

    others = {name: norm(tree, 0) for name, tree in params.items() if name != "layers"}
    return {"layer": norm(params["layers"], 1), **others}
