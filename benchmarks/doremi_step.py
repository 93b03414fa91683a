"""A training step with DoReMi against a plain one, side by side.

    python benchmarks/doremi_step.py [--steps=20] [--accumulation=4] [--set vocab_size=32000 …]

Proxy and reference model are of one size. The steps take turns, and the ratio is of their medians.
DoReMi adds a forward pass of the reference model to the three of a step, and the proxy's logits
once more; with microbatches a forward pass of the proxy. Results: docs/mixtures.md.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import optax

from jaxllm.models.batch import Batch
from jaxllm.models.config import ModelConfig
from jaxllm.models.decoder import abstract_params
from jaxllm.sharding.mesh import MeshConfig, make_mesh
from jaxllm.training.config import AdamWConfig, DoReMiConfig
from jaxllm.training.domain_weights import DoReMi
from jaxllm.training.state import abstract_state, initializer
from jaxllm.training.step import compile_train_step, device_batch

MODEL = ModelConfig(
    vocab_size=4096, num_layers=4, embed_dim=256, mlp_dim=704, num_heads=4, max_length=512
)
DOMAINS = 8


def main() -> None:
    """Time both steps in turns."""
    flags = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    flags.add_argument("--steps", type=int, default=20)
    flags.add_argument("--rows", type=int, default=8)
    flags.add_argument("--length", type=int, default=128)
    flags.add_argument("--accumulation", type=int, default=1)
    flags.add_argument("--set", nargs="*", default=[], metavar="FIELD=VALUE", help="of ModelConfig")
    args = flags.parse_args()
    fields = dict(one.split("=", 1) for one in args.set)
    numbers = {name: int(v) if v.isdigit() else v for name, v in fields.items()}
    model = dataclasses.replace(MODEL, **numbers)
    doremi = DoReMi(DoReMiConfig("reference@1"), model)
    sides = {name: steps(model, source, args) for name, source in
             (("plain", None), ("DoReMi", doremi))}  # fmt: skip
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(args.steps):
        for name, step in sides.items():
            began = time.perf_counter()
            step()
            seconds[name].append(time.perf_counter() - began)
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    for name, median in medians.items():
        print(f"{name}: {median:.3f} s a step ({min(seconds[name]):.3f} at best)")
    print(f"ratio: {medians['DoReMi'] / medians['plain']:.3f}")


def steps(model: ModelConfig, source: DoReMi | None, args: Any) -> Callable[[], None]:
    """A function that takes a step, compiled and run once."""
    mesh, schedule = make_mesh(MeshConfig(), jax.devices()[:1]), optax.constant_schedule(3e-4)
    optimizer = AdamWConfig().build(schedule, abstract_params(model))
    abstract = abstract_state(model, optimizer, mesh, DOMAINS if source else 0)
    state = initializer(model, optimizer, abstract)(0)
    reference = initializer(model, optimizer, abstract)(1).params if source else None
    update = compile_train_step(
        model, optimizer, schedule, mesh, abstract, batch_size=args.rows, length=args.length,
        num_domains=DOMAINS, accumulation=args.accumulation, domain_weights=source,
        reference=reference,
    )  # fmt: skip
    batch = device_batch(random_batch(model, args.rows, args.length), mesh)

    def step() -> None:
        nonlocal state
        state, _ = update(state, batch)
        jax.block_until_ready(state)

    step()
    return step


def random_batch(model: ModelConfig, rows: int, length: int) -> Batch:
    """Random tokens of all domains in turn."""
    shape = (rows, length + 1)
    tokens = np.random.default_rng(0).integers(0, model.vocab_size, shape, np.int32)
    return Batch(
        inputs=tokens[:, :-1],
        targets=tokens[:, 1:],
        weights=np.ones((rows, length), np.float32),
        positions=np.tile(np.arange(length, dtype=np.int32), (rows, 1)),
        segment_ids=np.ones((rows, length), np.int32),
        domains=np.arange(rows, dtype=np.int32) % DOMAINS,
    )


if __name__ == "__main__":
    main()
