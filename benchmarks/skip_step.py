"""A training step that skips outliers, and one with norms per layer, against a plain one.

    python benchmarks/skip_step.py [--steps=20] [--rows=8] [--length=128]

The steps take turns, and the ratio is the median of those to the plain step of the same turn;
FLOPs and bytes are the compiler's count, which no noise touches, and which takes layers that are
not scanned. Skipping adds medians of 128 numbers and a condition around the optimizer's update. The
norms are measured at every step here, at every `TrainConfig.monitor_every`th in a run. Results:
docs/resume.md.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import optax
from doremi_step import DOMAINS, random_batch
from doremi_step import MODEL as SCANNED

from jaxllm.models.decoder import abstract_params
from jaxllm.sharding.mesh import MeshConfig, make_mesh
from jaxllm.training.config import AdamWConfig, SkipConfig
from jaxllm.training.monitors import compile_monitors
from jaxllm.training.state import abstract_state, initializer
from jaxllm.training.step import compile_train_step, device_batch

MODEL = dataclasses.replace(SCANNED, scan_layers=False)


def main() -> None:
    """Time the steps in turns."""
    flags = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    flags.add_argument("--steps", type=int, default=20)
    flags.add_argument("--rows", type=int, default=8)
    flags.add_argument("--length", type=int, default=128)
    args = flags.parse_args()
    sides = {
        "plain": steps(None, args),
        "skipping": steps(SkipConfig(), args),
        "norms per layer": steps(None, args, norms=True),
    }
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(args.steps):
        for name, (step, _) in sides.items():
            began = time.perf_counter()
            step()
            seconds[name].append(time.perf_counter() - began)
    plain = sides["plain"][1]
    for name, (_, costs) in sides.items():
        pairs = zip(seconds[name], seconds["plain"], strict=True)
        ratios = [f"time {statistics.median(own / first for own, first in pairs):.3f}"]
        ratios += [f"{key} {costs[key] / plain[key]:.4f}" for key in costs]
        median = statistics.median(seconds[name])
        print(f"{name}: {median:.4f} s a step; to the plain one: {', '.join(ratios)}")


def steps(
    skip: SkipConfig | None, args: Any, norms: bool = False
) -> tuple[Callable[[], None], dict[str, float]]:
    """A function that takes a step, compiled and run once; its FLOPs and bytes accessed."""
    mesh, schedule = make_mesh(MeshConfig(), jax.devices()[:1]), optax.constant_schedule(3e-4)
    optimizer = AdamWConfig().build(schedule, abstract_params(MODEL))
    abstract = abstract_state(MODEL, optimizer, mesh, skip=skip)
    state = initializer(MODEL, optimizer, abstract)(0)
    given = (MODEL, optimizer, schedule, mesh, abstract)
    shape = {"batch_size": args.rows, "length": args.length, "num_domains": DOMAINS}
    programs: list[Any] = [compile_train_step(*given, **shape, skip=skip)]
    programs += [compile_monitors(*given, **shape)] if norms else []
    batch = device_batch(random_batch(MODEL, args.rows, args.length), mesh)

    def step() -> None:
        nonlocal state
        measured = [program(state, batch) for program in programs[1:]]
        state, _ = programs[0](state, batch)
        jax.block_until_ready((state, measured))

    step()
    counts = [program.cost_analysis() for program in programs]
    return step, {key: sum(c[key] for c in counts) for key in ("flops", "bytes accessed")}


if __name__ == "__main__":
    main()
