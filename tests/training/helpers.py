"""A run small enough to compile in a second or two, on data made of its own index."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxllm.data.config import DataConfig
from jaxllm.errors import UserError
from jaxllm.models.batch import Batch
from jaxllm.models.config import ModelConfig
from jaxllm.run.checkpoint_schedule import CheckpointConfig
from jaxllm.sharding.mesh import MeshConfig, make_mesh
from jaxllm.training.config import TrainConfig
from jaxllm.training.experiment import Experiment
from jaxllm.training.learning_rate import ScheduleConfig
from jaxllm.training.stages import Stage

LENGTH, ROWS, VOCABULARY = 8, 8, 32
CORPUS = 1000  # tokens of a domain
MODEL = ModelConfig(
    vocab_size=VOCABULARY, num_layers=1, embed_dim=16, mlp_dim=32, num_heads=2, max_length=LENGTH
)


def mesh(devices: int = 1, **axes: int) -> jax.sharding.Mesh:
    return make_mesh(MeshConfig(**axes), jax.devices()[:devices])


def experiment(model_dir: Path | str, **changes: Any) -> Experiment:
    """The tiny run; `changes` are fields of TrainConfig, or whole configs by name."""
    configs = {
        "model": MODEL,
        "data": DataConfig(mixture_or_task_name="fake", sequence_length=LENGTH, batch_size=ROWS),
        "schedule": ScheduleConfig(peak_lr=1e-2, end_lr=1e-3, warmup_steps=3),
        "checkpoints": CheckpointConfig(every_steps=4),
    }
    configs |= {name: changes.pop(name) for name in tuple(changes) if name in configs}
    options = {"steps": 10, "log_every": 3} | changes
    return Experiment(train=TrainConfig(model_dir=str(model_dir), **options), **configs)


class FakeSource:
    """Two domains; row i is a function of i."""

    domains = ("even", "odd")
    fingerprint = "fake"

    def tokens_read(self, position: int) -> dict[str, int]:
        return {"even": (position + 1) // 2 * LENGTH, "odd": position // 2 * LENGTH}

    def epochs_read(self, position: int) -> dict[str, float]:
        return {name: tokens / CORPUS for name, tokens in self.tokens_read(position).items()}

    def check_vocabulary(self, vocab_size: int) -> None:
        if vocab_size < VOCABULARY:
            raise UserError(f"ModelConfig.vocab_size = {vocab_size} is too small")


def rows(start: int, count: int) -> Batch:
    """Sequences start … start + count - 1: `count up by a step` with a little noise."""
    made = []
    for i in range(start, start + count):
        random = np.random.Generator(np.random.PCG64(i))
        line = (random.integers(VOCABULARY) + np.arange(LENGTH + 1) * (1 + i % 2)) % VOCABULARY
        made.append(line.astype(np.int32))
    tokens = np.stack(made)
    weights = np.ones((count, LENGTH), np.float32)
    weights[:, 0] = np.arange(start, start + count) % 3  # some targets count not at all, or twice
    return Batch(
        inputs=tokens[:, :-1],
        targets=tokens[:, 1:],
        weights=weights,
        positions=np.tile(np.arange(LENGTH, dtype=np.int32), (count, 1)),
        segment_ids=np.ones((count, LENGTH), np.int32),
        domains=(np.arange(start, start + count) % 2).astype(np.int32),
    )


class FakeBatches:
    """The batches from a sequence on."""

    def __init__(self, start: int, poison_at: int | None = None) -> None:
        self._next, self._poison_at = start, poison_at
        self.closed = False

    def __next__(self) -> Batch:
        batch = rows(self._next, ROWS)
        if self._poison_at is not None and self._next >= self._poison_at:
            batch = batch._replace(weights=batch.weights * np.nan)
        self._next += ROWS
        return batch

    def close(self) -> None:
        self.closed = True


def stages(e: Experiment, batches: Any = FakeBatches, evaluator: Any = None) -> list[Stage]:
    """The one stage of an experiment, on fake data."""
    source: Any = FakeSource()
    return [Stage(e, source, evaluator, batches)]
