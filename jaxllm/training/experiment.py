"""A run as its configs define it, and what it needs from the data and the evaluation."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import jax

from jaxllm.data.config import DataConfig
from jaxllm.errors import UserError
from jaxllm.models.batch import Batch
from jaxllm.models.config import ModelConfig
from jaxllm.run.config import CheckpointConfig
from jaxllm.run.records import RunInfo
from jaxllm.run.schedule import preserved, scheduled_steps
from jaxllm.sharding.rules import check_batch_divides, check_sequence_divides
from jaxllm.training.config import OptimizerConfig, ScheduleConfig, TrainConfig
from jaxllm.training.schedule import make_schedule

# What may change while a run goes on: how a model is run, not what it computes.
EXECUTION_FIELDS = frozenset(
    {"dtype", "param_dtype", "quantization", "init_stddev", "remat", "scan_layers", "max_length"}
)


@dataclasses.dataclass(frozen=True)
class Experiment:
    """The configs that define a run."""

    model: ModelConfig
    data: DataConfig
    train: TrainConfig
    schedule: ScheduleConfig
    checkpoints: CheckpointConfig

    @classmethod
    def configured(cls, model_dir: str | None = None) -> Experiment:
        """The experiment that gin has been told of, in `model_dir` where one is given."""
        train = TrainConfig()
        return cls(
            model=ModelConfig(),
            data=DataConfig(),
            train=dataclasses.replace(train, model_dir=model_dir) if model_dir else train,
            schedule=ScheduleConfig(),
            checkpoints=CheckpointConfig(),
        )

    @property
    def model_dir(self) -> str:
        """Where the run lives.

        Raises:
          UserError: it is not set.
        """
        if not self.train.model_dir:
            raise UserError("MODEL_DIR is not set: give --gin.MODEL_DIR=<directory or gs://…>")
        return self.train.model_dir

    @property
    def optimizer(self) -> OptimizerConfig:
        """What makes the updates."""
        return self.train.optimizer

    @property
    def run_info(self) -> RunInfo:
        """What all records of the run have in common."""
        name = self.train.run_name or os.path.basename(os.path.abspath(self.model_dir))
        return RunInfo(name, self.train.family or name, self.model.num_params)

    def saved_model(self) -> dict[str, Any]:
        """What the model computes, as JSON: its config without what only says how it is run."""
        fields = dataclasses.asdict(self.model)
        return json.loads(
            json.dumps({k: v for k, v in fields.items() if k not in EXECUTION_FIELDS})
        )

    @property
    def tokens_per_step(self) -> int:
        """Tokens of a global batch, padding included."""
        return self.data.batch_size * self.data.sequence_length

    @property
    def scheduled_steps(self) -> tuple[int, ...]:
        """The steps at which a checkpoint is saved and scored."""
        return scheduled_steps(self.checkpoints, self.train.steps, self.tokens_per_step)

    def bytes_to_come(self, checkpoint_bytes: int, step: int) -> int:
        """What the checkpoints after `step` will take of the disk, at most."""
        steps = self.scheduled_steps
        kept = preserved(self.checkpoints, steps, ())
        to_come = sum(keep for s, keep in zip(steps, kept, strict=True) if s > step)
        # the next one is written before an old one goes
        return checkpoint_bytes * (to_come + 1 if to_come < len(steps) else to_come)

    def check(self, mesh: jax.sharding.Mesh, source: Source | None = None) -> None:
        """Raises UserError where the configs do not fit each other, the devices or the data."""
        make_schedule(self.schedule, self.train.steps)
        parts, rows = self.train.gradient_accumulation, self.data.batch_size
        if rows % parts:
            raise UserError(
                f"TrainConfig.gradient_accumulation = {parts} does not divide "
                f"DataConfig.batch_size = {rows}"
            )
        check_batch_divides(mesh, rows // parts)
        check_sequence_divides(mesh, self.data.sequence_length)
        if source is not None:
            source.check_vocabulary(self.model.vocab_size)


class Source(Protocol):
    """What the loop must know of the data."""

    @property
    def domains(self) -> Sequence[str]:
        """The names that `Batch.domains` indexes."""

    def check_vocabulary(self, vocab_size: int) -> None:
        """Raises UserError if a model of `vocab_size` has no room for its token ids."""


class Batches(Protocol):
    """This host's rows of the global batches, as NumPy arrays, in the order of the run."""

    def __next__(self) -> Batch:
        """The rows of the next batch."""

    def close(self) -> None:
        """Stops what runs ahead."""


class Evaluator(Protocol):
    """Scores live parameters; `jaxllm.evaluation.evaluator.Evaluator` is one."""

    @property
    def definitions(self) -> Mapping[str, Any]:
        """The tasks by name."""

    def evaluate(
        self,
        params: Any,
        step: int,
        tokens: int,
        flops: float,
        *,
        tasks: Sequence[str] | None = None,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> Sequence[Any]:
        """Scores `tasks` and stores the records; raises Interrupted when `should_stop`."""

    def due(self, scheduled: Sequence[int]) -> Sequence[int]:
        """The checkpoints to score among the steps `scheduled`."""

    def missing(self, step: int) -> Sequence[str]:
        """The tasks that have no records at `step`."""
