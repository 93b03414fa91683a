"""Train runs of equal shapes in one program: a stack, with a leading axis of runs.

The update is mapped over states, batches and learning rates, and the stack is sharded over the
devices. Each run has its own directory, metrics, checkpoints and records, and can go on alone.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxllm.data.loader import read_ahead
from jaxllm.errors import UserError, one_line
from jaxllm.io import disk_errors
from jaxllm.models.batch import Batch
from jaxllm.run.lease import LeaseLost
from jaxllm.run.times import GoodputTimer
from jaxllm.run.trajectory import TrajectoryStore
from jaxllm.sharding.mesh import STACK
from jaxllm.training.experiment import Experiment, make_evaluators
from jaxllm.training.learning_rate import make_schedule
from jaxllm.training.loop import DISK_ERRORS, Trainer
from jaxllm.training.metrics import Writer, closing_all
from jaxllm.training.preemption import Preemption
from jaxllm.training.progress import Progress
from jaxllm.training.rollback import Diverged
from jaxllm.training.stages import Stage
from jaxllm.training.state import TrainState, abstract_state, initializer
from jaxllm.training.step import StepMetrics, abstract_batch, make_update

if TYPE_CHECKING:
    from jaxllm.data.loader import SequenceSource
    from jaxllm.evaluation.config import EvalConfig
    from jaxllm.evaluation.evaluator import Evaluator
    from jaxllm.evaluation.stacked import StackScores

ALONE = ("stages", "domain_weights", "monitor_every", "rollback")  # that no run of a stack has


class StackedRun(NamedTuple):
    """One run of a stack, as the arguments of `jaxllm.training.loop.train`."""

    experiment: Experiment
    source: SequenceSource
    writers: Sequence[Writer]
    config_text: str | None


class StackOutcome(NamedTuple):
    """The result of `train_stack`."""

    finished: bool  # False if a signal stopped the stack
    interrupted: bool  # by Ctrl-C


def check_alike(experiments: Sequence[Experiment]) -> None:
    """Raise UserError if runs cannot be stacked.

    Seeds, data and its weights, and learning-rate schedules may differ; shapes, steps, checkpoints
    and the vocabulary may not.
    """
    for e in experiments:
        first, own = experiments[0], shared_settings(e)
        cannot = f"{e.model_dir} cannot be stacked"
        if alone := [name for name in ALONE if getattr(e.train, name)]:
            raise UserError(f"{cannot}: TrainConfig.{alone[0]} are trained alone")
        for name, value in shared_settings(first).items():
            if value != own[name]:
                raise UserError(f"{cannot} with {first.model_dir}: they differ in {name}")


def shared_settings(e: Experiment) -> dict[str, Any]:
    """The settings that all runs of a stack have."""
    own = {"model_dir", "family", "seed", "branch_from"}
    train = {f.name: getattr(e.train, f.name) for f in dataclasses.fields(e.train)}
    return {
        "ModelConfig": e.model,
        "CheckpointConfig": e.checkpoints,
        "DataConfig.batch_size": e.data.batch_size,
        "DataConfig.sequence_length": e.data.sequence_length,
        "VocabularyConfig": e.data.vocabulary,
        **{f"TrainConfig.{name}": value for name, value in train.items() if name not in own},
    }


def train_stack(
    runs: Sequence[StackedRun], scoring: EvalConfig, mesh: Mesh, progress: Progress,
    timer: GoodputTimer, on_drop: Callable[[str, Exception], None],
) -> StackOutcome:  # fmt: skip
    """Train runs to their last step, each from its newest checkpoint, on a `stack_mesh`.

    A run that diverges, or loses its lease once it has begun, leaves the stack, and `on_drop` is
    called with its MODEL_DIR and the error; the others go on. SIGTERM ends the current step or
    evaluation, saves all, and returns with `finished=False`. Every run counts the time of the
    stack as its own.

    Raises:
      UserError: the runs cannot be stacked, are not at one step, or all leave; or as `loop.train`.
    """
    first = runs[0].experiment
    first.check(mesh)
    check_alike([run.experiment for run in runs])
    for run in runs:
        run.source.check_vocabulary(first.model.vocab_size)
    with (
        disk_errors("write to a run", "; its checkpoints are intact", DISK_ERRORS),
        Preemption() as preemption,
        closing_all(progress, *(writer for run in runs for writer in run.writers)),
        contextlib.ExitStack() as opened,
    ):
        evaluators, scores = _evaluators(runs, scoring, mesh, progress)
        trainers = [
            opened.enter_context(
                Trainer(e, mesh, [stage], writers, preemption.requested, progress, timer)
            )
            for (e, source, writers, _), evaluator in zip(runs, evaluators, strict=True)
            for stage in (Stage(e, source, evaluator),)
        ]
        stack = _Stack(runs, trainers, mesh, scores, timer, on_drop)
        batches = opened.enter_context(contextlib.closing(stack.batches()))
        stack.begin()
        while stack.step < first.train.steps and not preemption.requested():
            with timer.measure("data"):
                batch = next(batches)
            stack.update(batch)
            if stack.step in trainers[0].scheduled:
                stack.save_and_score()
        stack.end()
        finished = stack.step >= first.train.steps and not preemption.requested()
        return StackOutcome(finished, preemption.interrupted)


def _evaluators(
    runs: Sequence[StackedRun], scoring: EvalConfig, mesh: Mesh, progress: Progress
) -> tuple[Sequence[Evaluator | None], StackScores | None]:
    """An evaluator for each run, and what all of them score with."""
    if not scoring.names:
        return [None] * len(runs), None
    (evaluator,) = make_evaluators(runs[0].experiment, mesh, scoring)
    for line in evaluator.check() if scoring.every else ():
        progress.log(line)
    scores = evaluator.stack_scores(mesh)
    return [
        evaluator.for_member(
            TrajectoryStore(run.experiment.model_dir), run.experiment.run_info, scores, index
        )
        for index, run in enumerate(runs)
    ], scores


class _Stack:
    """The operations of `train_stack` on the trainers of its runs."""

    def __init__(
        self, runs: Sequence[StackedRun], trainers: Sequence[Trainer], mesh: Mesh,
        scores: StackScores | None, timer: GoodputTimer, on_drop: Callable[[str, Exception], None],
    ) -> None:  # fmt: skip
        self._runs, self._mesh, self._scores, self._timer = runs, mesh, scores, timer
        self._trainers = dict(enumerate(trainers))  # of the runs that go on
        self._experiment = e = runs[0].experiment
        self.step = trainers[0].step  # updates done
        self._on_drop, self._dropped = on_drop, list[str]()  # why each run has left the stack
        for run, trainer in zip(runs, trainers, strict=True):
            if trainer.step != self.step:
                there = f"and {e.model_dir} at {self.step}: what is stacked is at one step"
                raise UserError(
                    f"{run.experiment.model_dir} goes on at step {trainer.step}, {there}"
                )
            if max(trainer.passed_over, default=0) > self.step:
                raise UserError(
                    f"{run.experiment.model_dir} has steps to pass over: train it alone"
                )
        self._abstract = abstract_state(e.model, e.make_optimizer(), mesh, 0, e.train.skip)
        self._sharding = NamedSharding(mesh, PartitionSpec(STACK))
        self._domains = max(len(run.source.domains) for run in runs)
        self._pending: StepMetrics | None = None
        self._take = jax.jit(
            lambda states, index: jax.tree.map(lambda x: x[index], states),
            out_shardings=jax.tree.map(lambda leaf: leaf.sharding, self._abstract),
        )

    def begin(self) -> None:
        """Compile the update, restore or initialize the states, and score step 0 where due."""
        e, steps = self._experiment, self._experiment.train.steps
        with self._timer.measure("compile"):
            self._update = self._compiled()
        new = initializer(e.model, e.make_optimizer(), self._abstract)
        states = [trainer.restored_or_new_state(new) for trainer in self._trainers.values()]
        self._states = jax.tree.map(
            lambda *rows: jax.device_put(np.stack([np.asarray(x) for x in rows]), self._sharding),
            *states,
        )
        del states
        rates = [make_schedule(r.experiment.schedule, steps)(np.arange(steps)) for r in self._runs]
        self._rates = np.stack([np.asarray(rate, np.float32) for rate in rates])
        self._each(lambda index, trainer: trainer.begin(self._runs[index].config_text))
        if self._scores:
            self._scores.of(self._states.params)
        self._each(lambda index, trainer: trainer.score_missing(self._member(index)))
        self._timer.begin_steps()

    def batches(self) -> Any:
        """The batches of the coming steps, [K, B, ...]."""
        starts = [trainer.start.sequences for trainer in self._trainers.values()]
        sources, size = [run.source for run in self._runs], self._experiment.data.batch_size

        def read(index: int) -> Batch:
            rows = [
                source.sequences(start + index * size, size)
                for source, start in zip(sources, starts, strict=True)
            ]
            return Batch(**{name: np.stack([row[name] for row in rows]) for name in rows[0]})

        return read_ahead(read)

    def update(self, batch: Batch) -> None:
        """Dispatch a step; read the metrics of the one before."""
        on_device = lambda x: jax.device_put(x, self._sharding)
        rates = on_device(self._rates[:, self.step])
        self._states, metrics = self._update(self._states, jax.tree.map(on_device, batch), rates)
        self._read_metrics()
        self._pending = metrics
        self.step += 1

    def save_and_score(self) -> None:
        self._read_metrics()
        kind = "final" if self.step == self._experiment.train.steps else "scheduled"
        if self._scores:
            self._scores.of(self._states.params)

        def save_and_score(index: int, trainer: Trainer) -> None:
            state = self._member(index)
            trainer.save(state, kind)
            trainer.score(state)

        self._each(save_and_score)

    def end(self) -> None:
        self._read_metrics()

        def save_if_new(index: int, trainer: Trainer) -> None:
            if trainer.log.saved != self.step:
                trainer.save(self._member(index), "preempted")

        self._each(save_if_new)
        self._each(lambda _, trainer: trainer.finish())

    def _member(self, index: int) -> TrainState:
        return self._take(self._states, index)

    def _read_metrics(self) -> None:
        """Hand the metrics of the pending step to the runs' logs."""
        if self._pending is None:
            return
        metrics, self._pending = jax.device_get(self._pending), None

        def log(index: int, trainer: Trainer) -> None:
            trainer.step = self.step
            own: StepMetrics = jax.tree.map(lambda x: x[index], metrics)
            count = len(self._runs[index].source.domains)
            sums = {name: getattr(own, name)[:count] for name in ("loss_sums", "weight_sums")}
            trainer.log.add(self.step, own._replace(**sums))
            trainer.log.flush()

        self._each(log)

    def _each(self, action: Callable[[int, Trainer], None]) -> None:
        """Do something for every run that goes on, and drop those that cannot."""
        for index, trainer in list(self._trainers.items()):
            try:
                action(index, trainer)
            except (Diverged, LeaseLost) as error:
                del self._trainers[index]
                model_dir = self._runs[index].experiment.model_dir
                self._dropped.append(f"{model_dir}: {one_line(error)}")
                self._on_drop(model_dir, error)
        if not self._trainers:
            raise UserError(f"all runs have left the stack: {'; '.join(self._dropped)}")

    def _compiled(self) -> Any:
        e = self._experiment

        def update(state: TrainState, batch: Batch, rate: Any) -> tuple[TrainState, StepMetrics]:
            constant = lambda count: rate
            one = make_update(
                e.model, e.make_optimizer(constant), constant, self._mesh, self._domains,
                e.train.gradient_accumulation, e.train.z_loss, skip=e.train.skip,
            )  # fmt: skip
            return one(state, batch)

        mapped = jax.jit(
            jax.vmap(update, spmd_axis_name=STACK),
            in_shardings=self._sharding, out_shardings=self._sharding, donate_argnums=0,
        )  # fmt: skip
        stacked = lambda x: jax.ShapeDtypeStruct((len(self._runs), *x.shape), x.dtype)
        batch = abstract_batch(e.data.batch_size, e.data.sequence_length)
        rate: Any = jax.ShapeDtypeStruct((), jnp.float32)
        shapes = jax.tree.map(stacked, (self._abstract, batch, rate))
        return mapped.lower(*shapes).compile()
