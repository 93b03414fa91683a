"""Estimate the cost of scoring a checkpoint, in sequences and seconds."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from jaxllm.evaluation.scoring import PreparedTask
from jaxllm.models.config import ModelConfig

_SIDE = {"cpu": 1024}  # side of the matrices in the timed matmul
_LARGE = 4096


def describe(
    groups: Mapping[str, Sequence[PreparedTask]], model: ModelConfig, mesh: Mesh
) -> Iterator[str]:
    """Yield a line per group of tasks, then the numbers of shortened examples.

    Seconds are 2 FLOPs per parameter and position at the measured matmul throughput; attention,
    compilation and decoding steps are not included.
    """
    speed = device_flops(model) * mesh.size
    for name, tasks in groups.items():
        shapes = [shape for task in tasks for shape in task.shapes]
        seconds = 2 * model.num_params * sum(rows * width for rows, width in shapes) / speed
        of = f" ({len(tasks)} tasks)" if len(tasks) > 1 else ""
        yield (
            f"{name}{of}: {sum(len(task.examples) for task in tasks):,} examples in "
            f"{sum(rows for rows, _ in shapes):,} sequences, about {seconds:.2g} s a checkpoint"
        )
    every = [task for tasks in groups.values() for task in tasks]
    limit = f"{model.max_length} tokens"
    for field, what in (
        ("shots_dropped", f"hold fewer few-shot examples than asked for, to fit {limit}"),
        ("truncated", f"do not fit {limit} and are cut on the left"),
    ):
        counts = {t.definition.name: int((getattr(t, field) > 0).sum()) for t in every}
        counts = {name: count for name, count in counts.items() if count}
        if counts:
            first = next(iter(counts))
            of = f"{len(counts)} tasks, first {first}" if len(counts) > 1 else first
            yield f"{sum(counts.values()):,} examples of {of}, {what}"


def device_flops(model: ModelConfig) -> float:
    """Matmul throughput of one device in the model's dtype, in FLOP/s; the best of three."""
    side = _SIDE.get(jax.default_backend(), _LARGE)
    x = jnp.ones((side, side), model.dtype)
    product = jax.jit(jnp.dot)
    product(x, x).block_until_ready()
    seconds = []
    for _ in range(3):
        began = time.perf_counter()
        product(x, x).block_until_ready()
        seconds.append(time.perf_counter() - began)
    return 2 * side**3 / min(seconds)
