"""The definition of a run by its configs, and the protocols of its data and evaluation."""

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

# Fields that may change during a run: they affect how a model is run, not what it computes.
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
        """The experiment that gin binds, in `model_dir` if given."""
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
        """The run directory.

        Raises:
          UserError: it is not set.
        """
        if not self.train.model_dir:
            raise UserError("MODEL_DIR is not set: give --gin.MODEL_DIR=<directory or gs://…>")
        return self.train.model_dir

    @property
    def optimizer(self) -> OptimizerConfig:
        """The config of the optimizer."""
        return self.train.optimizer

    @property
    def run_info(self) -> RunInfo:
        """The fields that all records of the run share."""
        name = self.train.run_name or os.path.basename(os.path.abspath(self.model_dir))
        return RunInfo(name, self.train.family or name, self.model.num_params)

    def saved_model(self) -> dict[str, Any]:
        """The model config as JSON, without the execution fields."""
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
        """Upper bound on the bytes that the checkpoints after `step` will need."""
        steps = self.scheduled_steps
        keep = preserved(self.checkpoints, steps, ())
        to_come = sum(stays for s, stays in zip(steps, keep, strict=True) if s > step)
        # the next one is written before an old one is deleted
        return checkpoint_bytes * (to_come + 1 if to_come < len(steps) else to_come)

    def check(self, mesh: jax.sharding.Mesh, source: Source | None = None) -> None:
        """Raise UserError if the configs do not fit each other, the devices or the data."""
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
    """The data, as the loop depends on them."""

    @property
    def domains(self) -> Sequence[str]:
        """Domain names, indexed by `Batch.domains`."""

    def check_vocabulary(self, vocab_size: int) -> None:
        """Raise UserError if `vocab_size` does not cover the token ids."""


class Batches(Protocol):
    """This host's sequences of the global batches, as NumPy arrays, in the order of the run."""

    def __next__(self) -> Batch:
        """This host's sequences of the next batch."""

    def close(self) -> None:
        """Stop reading ahead."""


class Evaluator(Protocol):
    """An evaluator of live parameters, such as `jaxllm.evaluation.evaluator.Evaluator`."""

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
        """Score `tasks` and store the records; raise Interrupted if `should_stop()`."""

    def due(self, scheduled: Sequence[int]) -> Sequence[int]:
        """The checkpoints to score among the steps `scheduled`."""

    def missing(self, step: int) -> Sequence[str]:
        """The tasks that have no records at `step`."""
