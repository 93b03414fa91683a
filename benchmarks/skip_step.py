"""A training step that skips outliers against a plain one, side by side.

    python benchmarks/skip_step.py [--steps=20] [--rows=8] [--length=128]

The steps take turns, and the ratio is of their medians. Skipping adds medians of 128 numbers, and
a selection between old and new arrays, which XLA fuses with their update. Results: docs/resume.md.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import optax
from doremi_step import DOMAINS, MODEL, random_batch

from jaxllm.models.decoder import abstract_params
from jaxllm.sharding.mesh import MeshConfig, make_mesh
from jaxllm.training.config import AdamWConfig, SkipConfig
from jaxllm.training.state import abstract_state, initializer
from jaxllm.training.step import compile_train_step, device_batch


def main() -> None:
    """Time both steps in turns."""
    flags = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    flags.add_argument("--steps", type=int, default=20)
    flags.add_argument("--rows", type=int, default=8)
    flags.add_argument("--length", type=int, default=128)
    args = flags.parse_args()
    sides = {"plain": steps(None, args), "skipping": steps(SkipConfig(), args)}
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(args.steps):
        for name, step in sides.items():
            began = time.perf_counter()
            step()
            seconds[name].append(time.perf_counter() - began)
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    for name, median in medians.items():
        print(f"{name}: {median:.4f} s a step ({min(seconds[name]):.4f} at best)")
    print(f"ratio: {medians['skipping'] / medians['plain']:.4f}")


def steps(skip: SkipConfig | None, args: Any) -> Callable[[], None]:
    """A function that takes a step, compiled and run once."""
    mesh, schedule = make_mesh(MeshConfig(), jax.devices()[:1]), optax.constant_schedule(3e-4)
    optimizer = AdamWConfig().build(schedule, abstract_params(MODEL))
    abstract = abstract_state(MODEL, optimizer, mesh, skip=skip)
    state = initializer(MODEL, optimizer, abstract)(0)
    update = compile_train_step(
        MODEL, optimizer, schedule, mesh, abstract, batch_size=args.rows, length=args.length,
        num_domains=DOMAINS, skip=skip,
    )  # fmt: skip
    batch = device_batch(random_batch(MODEL, args.rows, args.length), mesh)

    def step() -> None:
        nonlocal state
        state, _ = update(state, batch)
        jax.block_until_ready(state)

    step()
    return step


if __name__ == "__main__":
    main()
