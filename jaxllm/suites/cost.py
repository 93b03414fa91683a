"""What the steps of a run cost on the devices at hand, by doing a few."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from jaxllm.models.batch import Batch
from jaxllm.suites.design import Member
from jaxllm.training.experiment import Experiment
from jaxllm.training.learning_rate import make_schedule
from jaxllm.training.state import abstract_state, initializer
from jaxllm.training.step import abstract_batch, compile_train_step, device_batch

_STEPS = 4  # timed; the fastest counts


class Cost(NamedTuple):
    """Seconds per step, and bytes in use on a device."""

    seconds: float
    peak: int


def costs(
    members: Sequence[Member], mesh: Mesh, tell: Callable[[str], None] = lambda line: None
) -> dict[str, Cost]:
    """The cost of each run, by its name, in the mean of its stages' steps; of a shape once."""
    by_shape: dict[Any, Cost] = {}
    parts = [(one.name, stage) for one in members for stage in one.experiment.stages]
    count = len({_shape(stage) for _, stage in parts})
    for name, stage in parts:
        if _shape(stage) not in by_shape:
            tell(f"timing a step of {name} ({len(by_shape) + 1}/{count})")
            by_shape[_shape(stage)] = measure(stage, mesh)

    def mean(experiment: Experiment) -> Cost:
        stages = [(by_shape[_shape(stage)], stage.num_steps) for stage in experiment.stages]
        seconds = sum(cost.seconds * steps for cost, steps in stages) / experiment.train.steps
        return Cost(seconds, max(cost.peak for cost, _ in stages))

    return {one.name: mean(one.experiment) for one in members}


def measure(experiment: Experiment, mesh: Mesh) -> Cost:
    """Compile the update and time it on a batch of token 0; UserError as `Experiment.check`."""
    e = experiment
    e.check(mesh)
    schedule, optimizer = make_schedule(e.schedule, e.train.steps), e.make_optimizer()
    abstract = abstract_state(e.model, optimizer, mesh)
    size, length = e.data.batch_size, e.data.sequence_length
    update: Any = compile_train_step(
        e.model, optimizer, schedule, mesh, abstract, batch_size=size, length=length,
        num_domains=1, accumulation=e.train.gradient_accumulation, z_loss=e.train.z_loss,
    )  # fmt: skip
    zeros = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), abstract_batch(size, length))
    batch: Batch = device_batch(zeros, mesh)
    state, seconds = initializer(e.model, optimizer, abstract)(e.train.seed), []
    for _ in range(_STEPS):
        began = time.perf_counter()
        state, metrics = update(state, batch)
        jax.block_until_ready(metrics)
        seconds.append(time.perf_counter() - began)
    memory = update.memory_analysis()
    peak = memory.argument_size_in_bytes + memory.temp_size_in_bytes
    return Cost(min(seconds), peak)


def _shape(e: Experiment) -> tuple[Any, ...]:
    return e.model, e.data.batch_size, e.data.sequence_length, e.train.gradient_accumulation
