"""The definition of a run by its configs."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import gin

from jaxllm.data.config import DataConfig
from jaxllm.errors import UserError, nearest
from jaxllm.models.config import ModelConfig
from jaxllm.run.checkpoint_schedule import CheckpointConfig, preserved, scheduled_steps
from jaxllm.run.records import RunInfo
from jaxllm.runtime import import_seqio
from jaxllm.sharding.rules import check_batch_divides, check_sequence_divides
from jaxllm.training.config import StageConfig, TrainConfig
from jaxllm.training.learning_rate import ScheduleConfig, make_schedule

if TYPE_CHECKING:
    import optax
    from jax.sharding import Mesh

    from jaxllm.evaluation.config import EvalConfig
    from jaxllm.evaluation.evaluator import Evaluator
    from jaxllm.evaluation.tasks import Sample
    from jaxllm.run.branch import Branch

VOCAB_MULTIPLE = 64


class Position(NamedTuple):
    """The progress of a run."""

    step: int  # updates done
    tokens: int  # seen, padding included
    sequences: int  # global index of the next one

    def at(self, step: int, experiment: Experiment) -> Position:
        """The position after update `step`."""
        new = step - self.step
        return Position(
            step,
            self.tokens + new * experiment.tokens_per_step,
            self.sequences + new * experiment.data.batch_size,
        )


BEGINNING = Position(0, 0, 0)


@dataclasses.dataclass(frozen=True)
class Experiment:
    """The configs that define a run, or one of its stages."""

    model: ModelConfig
    data: DataConfig
    train: TrainConfig  # whose `steps` are the last one, of a stage too
    schedule: ScheduleConfig
    checkpoints: CheckpointConfig
    start: Position = BEGINNING  # of a later stage, where the one before ends
    number: int = 0  # of a stage, from 1
    reference: ModelConfig | None = None  # of DoReMi, in a plan of the run

    @classmethod
    def configured(cls, model_dir: str | None = None) -> Experiment:
        """The experiment that gin binds, in `model_dir` if given."""
        train = TrainConfig()
        if model_dir:
            train = dataclasses.replace(train, model_dir=model_dir)
        return cls(ModelConfig(), DataConfig(), train, ScheduleConfig(), CheckpointConfig())

    def with_vocabulary(self, size: int | None = None) -> Experiment:
        """The experiment with ModelConfig.vocab_size from the vocabulary, unless gin sets one.

        Its `size` (by default that of the loaded one) is padded to a multiple of 64, which shards
        evenly, and bound, so that the saved config has the number.
        """
        try:
            gin.query_parameter("ModelConfig.vocab_size")
            return self
        except ValueError:
            import_seqio()
            from jaxllm.data.vocabularies import load_tokenizer

            size = size or load_tokenizer(self.stages[0].data).size
        gin.bind_parameter("ModelConfig.vocab_size", -(-size // VOCAB_MULTIPLE) * VOCAB_MULTIPLE)
        return dataclasses.replace(self, model=ModelConfig())

    @functools.cached_property
    def stages(self) -> tuple[Experiment, ...]:
        """The stages of the run, in order; the run itself if it has none.

        UserError if a border is inside a batch, the stages do not end with the run, or one of them
        changes what it cannot.
        """
        found: list[Experiment] = []
        for number, config in enumerate(self.train.stages, 1):
            start = found[-1].position(found[-1].train.steps) if found else BEGINNING
            with naming(number):
                found.append(self._stage(config, number, start))
        return tuple(found) or (self,)

    def at(self, step: int) -> Experiment:
        """The stage of update `step`."""
        return next((one for one in self.stages if step <= one.train.steps), self.stages[-1])

    def position(self, step: int) -> Position:
        """The position after update `step`, by the configs alone."""
        return (stage := self.at(step)).start.at(step, stage)

    @property
    def num_steps(self) -> int:
        """Number of updates in the run, or in the stage."""
        return self.train.steps - self.start.step

    @property
    def tokens(self) -> int:
        """Tokens at the end of the run, or of the stage."""
        return self.position(self.train.steps).tokens

    def _stage(self, config: StageConfig, number: int, start: Position) -> Experiment:
        data = _with(self.data, config, "weights", "sequence_length", "batch_size")
        model = _with(self.model, config, "rope_theta")
        if data.sequence_length > model.max_length:
            if model.position_embedding == "learned":
                raise UserError(
                    f"sequence_length = {data.sequence_length} is beyond the learned positions of "
                    f"ModelConfig.max_length = {model.max_length}"
                )
            model = dataclasses.replace(model, max_length=data.sequence_length)
        end = self.schedule.decay_end_step or self.train.steps
        changes: dict[str, Any] = {"decay_end_step": end}
        if config.schedule is not None:
            own = {"begin_step": start.step, "warmup_steps": 0, "decay_end_step": None}
            changes = own | dict(config.schedule)
        names = [field.name for field in dataclasses.fields(ScheduleConfig)]
        for name in changes.keys() - names:
            raise UserError(f"ScheduleConfig has no field {name!r}{nearest(name, names)}")
        steps = self._last_step(config.tokens, data, number == len(self.train.stages), start)
        train = _with(self.train, config, "gradient_accumulation")
        train = dataclasses.replace(train, steps=steps, stages=())
        schedule = dataclasses.replace(self.schedule, **changes)
        return Experiment(model, data, train, schedule, self.checkpoints, start, number)

    def _last_step(
        self, tokens: float | None, data: DataConfig, last: bool, start: Position
    ) -> int:
        """The last step of a stage of so many tokens."""
        run, batch = self.train.steps, data.batch_size * data.sequence_length
        if tokens is None and not last:
            raise UserError("it needs `tokens`: only the last one lasts until the run's end")
        steps, rest = divmod((run - start.step) * batch if tokens is None else tokens, batch)
        if rest:
            raise UserError(
                f"its border after {tokens:,.0f} tokens is inside a batch of {data.batch_size} x "
                f"{data.sequence_length} = {batch:,} tokens: write 'tokens': "
                f"{int(steps + 1) * batch} ({int(steps + 1):,} batches)"
            )
        end = start.step + int(steps)
        if start.step >= run or end > run or (last and end < run):
            way = "leave it out" if start.step >= run else f"set --gin.TRAIN_STEPS={end}"
            raise UserError(
                f"it begins after step {start.step:,} and ends at step {end:,}, and the run's last "
                f"is TRAIN_STEPS = {run:,}: {way}"
            )
        return end

    @property
    def model_dir(self) -> str:
        """The run directory; UserError if it is not set."""
        if not self.train.model_dir:
            raise UserError("MODEL_DIR is not set: give --gin.MODEL_DIR=<directory or gs://…>")
        return self.train.model_dir

    def branch(self) -> Branch | None:
        """Where the run begins, if at a checkpoint of another one; UserError if that is none."""
        from jaxllm.run.branch import Branch

        if self.train.branch_from is None:
            return None
        branch = Branch.open(self.train.branch_from)
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

    def make_optimizer(
        self, schedule: optax.Schedule | None = None
    ) -> optax.GradientTransformation:
        """The optimizer with the run's schedule, and the average of parameters that it keeps."""
        from jaxllm.models.decoder import abstract_params
        from jaxllm.training.optimizer import with_ema

        config, decay = self.train.optimizer, self.train.ema_decay
        schedule = schedule or make_schedule(self.schedule, self.train.steps)
        built = config.build(schedule, abstract_params(self.model))
        return built if decay is None else with_ema(built, decay, config.state_dtype)

    @property
    def run_info(self) -> RunInfo:
        """The fields that all records of the run share."""
        name = os.path.basename(os.path.abspath(self.model_dir))
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
        """The steps at which a checkpoint is saved and scored; the last of each stage is one."""
        if self.train.stages:
            return tuple(step for stage in self.stages for step in stage.scheduled_steps)
        return scheduled_steps(self.checkpoints, self.train.steps, self.start.step)

    def bytes_to_come(self, checkpoint_bytes: int, step: int) -> int:
        """Upper bound on the bytes that the checkpoints after `step` will need."""
        steps = self.scheduled_steps
        keep = preserved(self.checkpoints, steps, ())
        to_come = sum(stays for s, stays in zip(steps, keep, strict=True) if s > step)
        # the next one is written before an old one is deleted
        return checkpoint_bytes * min(to_come + 1, len(steps))

    def check(self, mesh: Mesh) -> None:
        """Raise UserError if the configs do not fit each other or the devices."""
        for stage in self.stages if self.train.stages else ():
            with naming(stage.number):
                stage.check(mesh)
        make_schedule(self.schedule, self.train.steps)
        microbatches, sequences = self.train.gradient_accumulation, self.data.batch_size
        if sequences % microbatches:
            raise UserError(
                f"TrainConfig.gradient_accumulation = {microbatches} does not divide "
                f"DataConfig.batch_size = {sequences}"
            )
        check_batch_divides(mesh, sequences // microbatches)
        check_sequence_divides(mesh, self.data.sequence_length)


@contextlib.contextmanager
def naming(number: int) -> Iterator[None]:
    """Name the stage in a UserError from inside."""
    try:
        yield
    except UserError as error:
        raise UserError(f"stage {number} of TrainConfig.stages: {error}") from error


def _with(config: Any, stage: StageConfig, *names: str) -> Any:
    """`config` with those of the fields that the stage sets."""
    values = {name: getattr(stage, name) for name in names}
    return dataclasses.replace(config, **{n: v for n, v in values.items() if v is not None})


def make_evaluators(
    experiment: Experiment, mesh: Mesh, config: EvalConfig, sample: Sample | None = None
) -> list[Evaluator]:
    """The evaluator of each stage, with the run's vocabulary; stages of one model share one.

    `sample` draws from the run's training sequences, for tasks on them. UserError if a task is
    unknown, lacks its files, or does not fit the model.
    """
    from jaxllm.data.vocabularies import build_vocabulary
    from jaxllm.evaluation.evaluator import Evaluator
    from jaxllm.run.trajectory import TrajectoryStore

    e, store = experiment, TrajectoryStore(experiment.model_dir)
    vocabulary = build_vocabulary(e.data, e.model_dir)
    of = {
        model: Evaluator(config, model, vocabulary, mesh, store, e.run_info, sample)
        for model in dict.fromkeys(stage.model for stage in e.stages)
    }
    return [of[stage.model] for stage in e.stages]


def check_evaluators(evaluators: Sequence[Evaluator]) -> list[str]:
    """The lines of `Evaluator.check` of each stage's; UserError as there."""
    found = list(dict.fromkeys(evaluators))
    of = {one: f"stage {evaluators.index(one) + 1}: " if len(found) > 1 else "" for one in found}
    return [f"{of[one]}{line}" for one in found for line in one.check()]
