"""The definition of a run by its configs."""

from __future__ import annotations

import dataclasses
import json
import os
from typing import TYPE_CHECKING, Any

import gin

from jaxllm.data.config import DataConfig
from jaxllm.errors import UserError
from jaxllm.models.config import ModelConfig
from jaxllm.run.checkpoint_schedule import CheckpointConfig, preserved, scheduled_steps
from jaxllm.run.records import RunInfo
from jaxllm.runtime import import_seqio
from jaxllm.sharding.rules import check_batch_divides, check_sequence_divides
from jaxllm.training.config import OptimizerConfig, TrainConfig
from jaxllm.training.learning_rate import ScheduleConfig, make_schedule

if TYPE_CHECKING:
    import optax
    from jax.sharding import Mesh

    from jaxllm.evaluation.config import EvalConfig
    from jaxllm.evaluation.evaluator import Evaluator
    from jaxllm.run.branch import Branch

VOCAB_MULTIPLE = 64
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
        if model_dir:
            train = dataclasses.replace(train, model_dir=model_dir)
        return cls(ModelConfig(), DataConfig(), train, ScheduleConfig(), CheckpointConfig())

    def with_vocabulary(self, size: int | None = None) -> Experiment:
        """The experiment with the vocabulary's size as ModelConfig.vocab_size, unless gin sets one.

        It is padded to a multiple of 64, which shards evenly, and bound, so that the saved config
        has the number. Without `size` the vocabulary is loaded.
        """
        try:
            gin.query_parameter("ModelConfig.vocab_size")
            return self
        except ValueError:
            import_seqio()
            from jaxllm.data.vocabularies import load_tokenizer

            size = size or load_tokenizer(self.data).size
        gin.bind_parameter("ModelConfig.vocab_size", -(-size // VOCAB_MULTIPLE) * VOCAB_MULTIPLE)
        return dataclasses.replace(self, model=ModelConfig())

    @property
    def model_dir(self) -> str:
        """The run directory; UserError if it is not set."""
        if not self.train.model_dir:
            raise UserError("MODEL_DIR is not set: give --gin.MODEL_DIR=<directory or gs://…>")
        return self.train.model_dir

    def branch(self) -> Branch | None:
        """Where the run begins, if at a checkpoint of another one.

        Raises:
          UserError: there is no such checkpoint, or it is the run's own.
        """
        from jaxllm.run.branch import Branch

        if self.train.branch_from is None:
            return None
        branch = Branch.open(self.train.branch_from, self.train.branch_state)
        if os.path.abspath(branch.parent.path) == os.path.abspath(self.model_dir):
            raise UserError(
                f"a branch of {branch.name} needs a directory of its own: --gin.MODEL_DIR=DIR"
            )
        return branch

    def newest_step(self) -> int:
        """The step at which the run goes on or begins, unless its newest checkpoint is damaged."""
        from jaxllm.run.run import Run

        steps = [entry.step for entry in Run(self.model_dir).available()]
        branch = None if steps else self.branch()
        return max(steps, default=branch.entry.step if branch else 0)

    def check_branch(self, branch: Branch, mesh: Mesh) -> None:
        """Raise UserError if the run's state cannot begin at `branch`."""
        from jaxllm.training.state import abstract_state

        state = abstract_state(self.model, self.make_optimizer(), mesh)
        branch.check(state.params, state.training, self.saved_model())

    @property
    def optimizer(self) -> OptimizerConfig:
        """The config of the optimizer."""
        return self.train.optimizer

    def make_optimizer(
        self, schedule: optax.Schedule | None = None
    ) -> optax.GradientTransformation:
        """The optimizer with the run's schedule, and the average of parameters that it keeps."""
        from jaxllm.models.decoder import abstract_params
        from jaxllm.training.optimizer import with_ema

        schedule = schedule or make_schedule(self.schedule, self.train.steps)
        built = self.optimizer.build(schedule, abstract_params(self.model))
        if self.train.ema_decay is None:
            return built
        return with_ema(built, self.train.ema_decay, self.train.ema_dtype)

    @property
    def run_info(self) -> RunInfo:
        """The fields that all records of the run share."""
        name = self.train.run_name or os.path.basename(os.path.abspath(self.model_dir))
        return RunInfo(name, self.train.family or name, self.model.num_params)

    @property
    def tokens_per_step(self) -> int:
        """Tokens of a global batch, padding included."""
        return self.data.batch_size * self.data.sequence_length

    def flops(self, tokens: int) -> float:
        """Training FLOPs of so many tokens, 6 · parameters · tokens."""
        return 6.0 * self.model.num_params * tokens

    @property
    def scheduled_steps(self) -> tuple[int, ...]:
        """The steps at which a checkpoint is saved and scored."""
        return scheduled_steps(self.checkpoints, self.train.steps, self.tokens_per_step)

    def saved_model(self) -> dict[str, Any]:
        """The model config as JSON, without the execution fields."""
        fields = dataclasses.asdict(self.model)
        return json.loads(
            json.dumps({k: v for k, v in fields.items() if k not in EXECUTION_FIELDS})
        )

    def bytes_to_come(self, checkpoint_bytes: int, step: int) -> int:
        """Upper bound on the bytes that the checkpoints after `step` will need."""
        steps = self.scheduled_steps
        keep = preserved(self.checkpoints, steps, ())
        to_come = sum(stays for s, stays in zip(steps, keep, strict=True) if s > step)
        # the next one is written before an old one is deleted
        return checkpoint_bytes * (to_come + 1 if to_come < len(steps) else to_come)

    def check(self, mesh: Mesh) -> None:
        """Raise UserError if the configs do not fit each other or the devices."""
        make_schedule(self.schedule, self.train.steps)
        microbatches, sequences = self.train.gradient_accumulation, self.data.batch_size
        if sequences % microbatches:
            raise UserError(
                f"TrainConfig.gradient_accumulation = {microbatches} does not divide "
                f"DataConfig.batch_size = {sequences}"
            )
        check_batch_divides(mesh, sequences // microbatches)
        check_sequence_divides(mesh, self.data.sequence_length)


def make_evaluator(experiment: Experiment, mesh: Mesh, config: EvalConfig) -> Evaluator:
    """The evaluator of `config`'s tasks, with the run's vocabulary and trajectory.

    Raises:
      UserError: a task is unknown, lacks its files, or does not fit the model.
    """
    from jaxllm.data.tokenizer import with_saved_tokenizer
    from jaxllm.data.vocabularies import build_vocabulary
    from jaxllm.evaluation.evaluator import Evaluator
    from jaxllm.run.data_identity import saved_tokenizer
    from jaxllm.run.trajectory import TrajectoryStore

    e = experiment
    data = with_saved_tokenizer(e.data, saved_tokenizer(e.model_dir))
    store = TrajectoryStore(e.model_dir)
    return Evaluator(config, e.model, build_vocabulary(data), mesh, store, e.run_info)
