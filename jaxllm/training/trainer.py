"""What the loop speaks of: a run as it stands in this process."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax

from jaxllm.errors import UserError
from jaxllm.evaluation.scoring import Interrupted
from jaxllm.models.decoder import abstract_params
from jaxllm.run.manifest import ManifestEntry, code_version
from jaxllm.run.run import Run
from jaxllm.training.experiment import Evaluator, Experiment, Source
from jaxllm.training.metrics import Diverged, MetricsLog, Position
from jaxllm.training.profile import Profile
from jaxllm.training.progress import Progress
from jaxllm.training.schedule import make_schedule
from jaxllm.training.state import TrainState, abstract_state, init_state, num_bytes
from jaxllm.training.step import TrainStep, compile_train_step
from jaxllm.training.timer import Clock
from jaxllm.training.watchdog import Watchdog
from jaxllm.training.writers import MetricsJsonl, Writer

_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO)


class Session:
    """A run taken up where its newest checkpoint left it.

    Attributes:
      step: updates done; the loop counts it up.
      saved: step of the newest checkpoint; None without one.
      scheduled: the steps at which the loop saves and scores.
      restarts: how often the run has been taken up.
      position: where the run was when this process took it up.
      clock: where the time of this process goes.
      log: takes the metrics of every step.
      checkpoints: the run's checkpoints.
    """

    def __init__(
        self,
        experiment: Experiment,
        mesh: jax.sharding.Mesh,
        source: Source,
        evaluator: Evaluator | None,
        writers: Sequence[Writer],
        should_stop: Callable[[], bool],
        progress: Progress | None = None,
    ) -> None:
        """Opens MODEL_DIR and reads the newest checkpoint.

        Raises:
          UserError: MODEL_DIR cannot be written, or the checkpoint does not fit the configs.
        """
        e = self._experiment = experiment
        self._mesh, self._evaluator, self._should_stop = mesh, evaluator, should_stop
        self._num_domains = len(source.domains)
        self.clock = Clock()
        self.scheduled = frozenset(e.scheduled_steps)
        self._scored = frozenset(evaluator.due(e.scheduled_steps) if evaluator else ())
        with self.clock.measure("setup"), contextlib.ExitStack() as opened:
            self._progress = progress or Progress(e.train.steps)
            opened.enter_context(contextlib.closing(self._progress))
            for writer in writers:
                opened.enter_context(contextlib.closing(writer))
            self._schedule = make_schedule(e.schedule, e.train.steps)
            self._optimizer = e.optimizer.build(self._schedule, abstract_params(e.model))
            abstract = self._abstract = abstract_state(e.model, self._optimizer, mesh)
            self.run = Run.create(e.model_dir)
            newest = max((entry.step for entry in self.run.available()), default=-1)
            self.run.check_space(e.bytes_to_come(num_bytes(abstract), newest))
            self._resumed = self.run.resume(
                abstract.params,
                {"step": abstract.step, "opt_state": abstract.opt_state},
                self._progress.say,
            )
            self.checkpoints = self.run.checkpoint_writer(e.checkpoints)
            opened.enter_context(contextlib.closing(self.checkpoints))
            entry = self._resumed.checkpoint.entry if self._resumed else None
            carried = self._resumed.checkpoint.custom_metadata if self._resumed else {}
            self.step = entry.step if entry else 0
            self.saved = self.step if entry else None
            self.position = Position(
                step=self.step,
                tokens=entry.tokens if entry else 0,
                sequences=entry.data_position if entry else 0,
                batch_size=e.data.batch_size,
                length=e.data.sequence_length,
            )
            self.restarts = 0
            if self._resumed:
                self.restarts = self._resumed.restarts
                self.clock.before = self._resumed.previous
                self._progress.say(f"resuming {e.model_dir} at step {self.step}")
            own = [MetricsJsonl(e.model_dir, self.step)] if jax.process_index() == 0 else []
            self._writers: list[Writer] = [*own, *writers]
            self._watchdog = opened.enter_context(
                contextlib.closing(Watchdog(e.train.watchdog_minutes, e.train.exit_on_hang))
            )
            self.log = MetricsLog(
                model=e.model,
                start=self.position,
                domains=source.domains,
                carried=carried,
                every=e.train.log_every,
                steps=e.train.steps,
                restarts=self.restarts,
                clock=self.clock,
                watchdog=self._watchdog,
                progress=self._progress,
                writers=self._writers,
            )
            self.log.saved = self.saved
            self._profile: Profile | None = None
            if e.train.profile_steps:
                first, last = e.train.profile_steps
                self._profile = Profile(e.model_dir, first, last, self._progress.say)
                opened.enter_context(contextlib.closing(self._profile))
            self._opened = opened.pop_all()

    def __enter__(self) -> Session:
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        """Closes everything; a disk that fails, in the loop or here, is one line for the user."""
        failure = error
        try:
            # to close is to wait for the other hosts, which may be waiting for this one elsewhere
            if error is None or isinstance(error, Diverged) or jax.process_count() == 1:
                self._opened.__exit__(kind, error, trace)
        except Exception as another:  # what fails on closing may only be an echo
            failure = error or another
        if isinstance(failure, OSError) and failure.errno in _DISK_ERRORS:
            raise UserError(
                f"cannot write to MODEL_DIR {self._experiment.model_dir}: {failure.strerror}; "
                "the checkpoints that were saved are whole"
            ) from failure
        if failure is not None and failure is not error:
            raise failure

    def write_config(self, text: str | None) -> None:
        """Writes MODEL_DIR/config.gin, from which the run can be repeated and scored."""
        if text is not None and jax.process_index() == 0:
            self.run.write_config(text)

    def restored_or_new_state(self) -> TrainState:
        """The state to begin with."""
        if self._resumed is None:
            e = self._experiment
            with self.clock.measure("setup"):
                return init_state(e.model, self._optimizer, self._abstract, e.train.seed)
        training = self._resumed.checkpoint.training
        return TrainState(training["step"], self._resumed.checkpoint.params, training["opt_state"])

    def compile_update(self) -> TrainStep:
        """The compiled update; its compilation is not a part of any step's time."""
        e = self._experiment
        self._watchdog.pause()
        with self.clock.measure("compile"):
            update = compile_train_step(
                e.model,
                self._optimizer,
                self._schedule,
                self._mesh,
                self._abstract,
                batch_size=e.data.batch_size,
                length=e.data.sequence_length,
                num_domains=self._num_domains,
                accumulation=e.train.gradient_accumulation,
                z_loss=e.train.z_loss,
            )
        return self._profile.around(update, self.step) if self._profile else update

    def catch_up(self, state: TrainState) -> None:
        """Does what is due at the step where this process begins, or was when a kill came."""
        if self._resumed is None:
            if self.step in self.scheduled:
                self.save(state, "scheduled")
                self.score(state)
        elif self._evaluator is not None and self.step in self._scored:
            missing = self._evaluator.missing(self.step)
            if missing:
                self._progress.say(f"scoring {len(missing)} tasks that step {self.step} lacks")
                self.score(state, missing)

    def save(self, state: TrainState, kind: str) -> None:
        """Begins to save; the loop goes on while it is written."""
        self.log.settle()
        with self.clock.measure("checkpoint"):
            self.checkpoints.save(
                self._entry(kind),
                state.params,
                {"step": state.step, "opt_state": state.opt_state},
                {**self.log.carried(), "time": dataclasses.asdict(self.clock.run())},
            )
        self.saved = self.log.saved = self.step

    def score(self, state: TrainState, tasks: Sequence[str] | None = None) -> None:
        """Scores the live parameters on `tasks` (None: all), and hands the records on.

        When a signal comes in between, the tasks that are left are done at the next start.
        """
        if self._evaluator is None or self.step not in self._scored:
            return
        position, began = self.position.at(self.step), time.perf_counter()
        records: list[Any] = []
        with self.clock.measure("evaluation"):
            with contextlib.suppress(Interrupted):
                for task in self._evaluator.definitions if tasks is None else tasks:
                    records += self._evaluator.evaluate(
                        state.params,
                        self.step,
                        position.tokens,
                        self._flops(position),
                        tasks=(task,),
                        should_stop=self._alive_and_should_stop,
                    )
            for writer in self._writers:
                writer.write_records(self.step, records)
        self._watchdog.heartbeat()
        seconds, total = time.perf_counter() - began, self.clock.total()
        self._progress.say(
            f"step {self.step}: scored in {seconds:.1f} s; "
            f"evaluation is {total.evaluation / total.wall:.0%} of the time so far"
        )

    def _alive_and_should_stop(self) -> bool:
        self._watchdog.heartbeat()
        return self._should_stop()

    def _entry(self, kind: str) -> ManifestEntry:
        position = self.position.at(self.step)
        return ManifestEntry(
            step=self.step,
            tokens=position.tokens,
            flops=self._flops(position),
            learning_rate=self.log.learning_rate,
            loss=self.log.loss,
            data_position=position.sequences,
            dtype=self._experiment.model.param_dtype,
            wall_time=time.time(),
            wall_seconds=self.clock.run().wall,
            code_version=code_version(),
            restarts=self.restarts,
            kind=kind,
        )

    def _flops(self, position: Position) -> float:
        return 6.0 * self._experiment.model.num_params * position.tokens
