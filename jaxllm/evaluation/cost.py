"""Estimate the cost of scoring a checkpoint, in sequences and seconds."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jaxllm.evaluation.prepared import PreparedTask
from jaxllm.models.config import ModelConfig

_SIDE = {"cpu": 1024}  # side of the matrices in the timed matmul
_LARGE = 4096
_TRIALS = 3


def describe(
    groups: Mapping[str, Sequence[PreparedTask]], model: ModelConfig, mesh: Mesh
) -> Iterator[str]:
    """Yield a line per group of tasks, then the numbers of shortened examples.

    Seconds are 2 FLOPs per parameter and position at the measured matmul throughput; attention,
    compilation and decoding steps are not included.
    """
    speed = device_flops(model) * mesh.size
    for name, tasks in groups.items():
        examples = sum(len(task.examples) for task in tasks)
        seconds = sum(2 * model.num_params * task.positions for task in tasks) / speed
        of = f" ({len(tasks)} tasks)" if len(tasks) > 1 else ""
        yield (
            f"{name}{of}: {examples:,} examples in {sum(t.sequences for t in tasks):,} sequences, "
            f"about {seconds:.2g} s a checkpoint"
        )
    every = [task for tasks in groups.values() for task in tasks]
    yield from _shortened(
        {task.definition.name: task.shots_dropped > 0 for task in every},
        f"hold fewer few-shot examples than asked for, to fit {model.max_length} tokens",
    )
    yield from _shortened(
        {task.definition.name: task.truncated for task in every},
        f"do not fit {model.max_length} tokens and are cut on the left",
    )


def device_flops(model: ModelConfig) -> float:
    """Matmul throughput of one device in the model's dtype, in FLOP/s."""
    side = _SIDE.get(jax.default_backend(), _LARGE)
    x = jnp.ones((side, side), model.dtype)
    product = jax.jit(jnp.dot)
    product(x, x).block_until_ready()
    seconds = []
    for _ in range(_TRIALS):
        began = time.perf_counter()
        product(x, x).block_until_ready()
        seconds.append(time.perf_counter() - began)
    return 2 * side**3 / min(seconds)


def _shortened(examples: Mapping[str, np.ndarray], what: str) -> Iterator[str]:
    """Yield one line that counts the marked examples over all tasks, if there are any."""
    counts = {name: int(which.sum()) for name, which in examples.items() if which.any()}
    if counts:
        first = next(iter(counts))
        others = f" of {len(counts)} tasks, first {first}" if len(counts) > 1 else f" of {first}"
        yield f"{sum(counts.values()):,} examples{others}, {what}"
