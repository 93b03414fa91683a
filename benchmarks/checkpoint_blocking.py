"""Time for which a checkpoint save blocks the train loop, at the quickstart's size.

    python benchmarks/checkpoint_blocking.py [--checkpoints=6] [--seconds=20]

Trains a LLaMA of a few million parameters on the CPU for `--seconds` between two checkpoints, and
prints the blocked time as a share of the time between them; the target is less than 1 %. Also
prints the slowdown of steps during a background save.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import tempfile
import time

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import numpy as np

from jaxllm.models.batch import Batch
from jaxllm.models.config import ModelConfig
from jaxllm.models.decoder import abstract_params
from jaxllm.run.checkpoint_schedule import CheckpointConfig
from jaxllm.run.manifest import ManifestEntry
from jaxllm.run.run import Run
from jaxllm.sharding.mesh import MeshConfig, make_mesh
from jaxllm.training.config import AdamWConfig
from jaxllm.training.learning_rate import ScheduleConfig, make_schedule
from jaxllm.training.state import abstract_state, initializer, num_bytes
from jaxllm.training.step import compile_train_step, device_batch

MODEL = ModelConfig(
    vocab_size=4096, num_layers=4, embed_dim=256, mlp_dim=704, num_heads=4, max_length=128
)
ROWS, LENGTH = 16, 128


def main() -> None:
    flags = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    flags.add_argument("--checkpoints", type=int, default=6)
    flags.add_argument("--seconds", type=float, default=20.0, help="between two checkpoints")
    args = flags.parse_args()

    mesh = make_mesh(MeshConfig())
    schedule = make_schedule(ScheduleConfig(kind="constant"), 1)
    optimizer = AdamWConfig().build(schedule, abstract_params(MODEL))
    abstract = abstract_state(MODEL, optimizer, mesh)
    state = initializer(MODEL, optimizer, abstract)(0)
    update = compile_train_step(
        MODEL, optimizer, schedule, mesh, abstract,
        batch_size=ROWS, length=LENGTH, num_domains=1,
    )  # fmt: skip
    batch = device_batch(random_batch(), mesh)
    directory = tempfile.mkdtemp()
    checkpoints = Run(directory).checkpoint_writer(CheckpointConfig())
    print(f"{MODEL.num_params:,} parameters, {num_bytes(abstract) / 1e6:.0f} MB per checkpoint")

    blocked, between, busy, quiet = [], [], [], []
    for number in range(args.checkpoints):
        began = time.perf_counter()
        while time.perf_counter() - began < args.seconds:
            saving = checkpoints._manager.is_saving_in_progress()
            step_began = time.perf_counter()
            state, metrics = update(state, batch)
            jax.block_until_ready(metrics)
            (busy if saving else quiet).append(time.perf_counter() - step_began)
        save_began = time.perf_counter()
        training = {"step": state.step, "opt_state": state.opt_state}
        checkpoints.save(entry(number), state.params, training, {})
        blocked.append(time.perf_counter() - save_began)
        between.append(time.perf_counter() - began)
        print(f"checkpoint {number}: blocked {1e3 * blocked[-1]:.1f} ms of {between[-1]:.1f} s")
    checkpoints.close()
    shutil.rmtree(directory)

    share = sum(blocked) / sum(between)
    if busy:
        slower = statistics.mean(busy) / statistics.mean(quiet) - 1
        print(
            f"{len(busy)} of {len(busy) + len(quiet)} steps ran during a save, {slower:+.0%} longer"
        )
    print(f"blocked share: {share:.3%} (aim: < 1 %): {'met' if share < 0.01 else 'NOT met'}")


def random_batch() -> Batch:
    tokens = np.random.default_rng(0).integers(0, MODEL.vocab_size, (ROWS, LENGTH + 1))
    return Batch(
        inputs=tokens[:, :-1].astype(np.int32),
        targets=tokens[:, 1:].astype(np.int32),
        weights=np.ones((ROWS, LENGTH), np.float32),
        positions=np.tile(np.arange(LENGTH, dtype=np.int32), (ROWS, 1)),
        segment_ids=np.ones((ROWS, LENGTH), np.int32),
        domains=np.zeros(ROWS, np.int32),
    )


def entry(step: int) -> ManifestEntry:
    return ManifestEntry(
        step=step, tokens=0, flops=0.0, learning_rate=None, loss=None, data_position=0,
        dtype="float32", wall_time=time.time(), wall_seconds=0.0, code_version="", restarts=0,
        kind="scheduled",
    )  # fmt: skip


if __name__ == "__main__":
    main()
