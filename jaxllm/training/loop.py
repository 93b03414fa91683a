"""The training loop: train, save at the scheduled steps, score the saved parameters.

A run is a function of its configs: whatever interrupts it (a signal, a crash, a lost machine), a
restart resumes from the newest checkpoint, with bitwise the same result.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax

from jaxllm.evaluation.scoring import Interrupted
from jaxllm.io import disk_errors
from jaxllm.run.manifest import ManifestEntry, code_version
from jaxllm.run.restore import RestoredCheckpoint
from jaxllm.run.run import Resumed, Run
from jaxllm.run.times import GoodputTimer, TimeBreakdown, duration
from jaxllm.runtime import on_any_process
from jaxllm.training.domain_weights import of_config
from jaxllm.training.experiment import BEGINNING, Experiment, Position
from jaxllm.training.learning_rate import make_schedule
from jaxllm.training.metrics import MetricsLog, Writer, closing_all
from jaxllm.training.monitors import compile_monitors, monitored
from jaxllm.training.preemption import Preemption
from jaxllm.training.profile import Profile
from jaxllm.training.progress import Progress
from jaxllm.training.reference import Reference
from jaxllm.training.rollback import Diverged, roll_back
from jaxllm.training.skipping import SkipState, pass_over
from jaxllm.training.stages import Stage
from jaxllm.training.state import TrainState, abstract_state, initializer, num_bytes, state_of
from jaxllm.training.step import TrainStep, compile_train_step, device_batch
from jaxllm.training.watchdog import Watchdog

DISK_ERRORS = (  # the last two of a directory that was removed, or whose server is gone
    errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO, errno.ENOENT,
    errno.ESTALE,
)  # fmt: skip


class Outcome(NamedTuple):
    """The result of `train`."""

    step: int  # updates done
    finished: bool  # False if a signal stopped the run; a restart resumes it
    seconds: TimeBreakdown  # of this process
    run_seconds: TimeBreakdown  # of all processes of the run
    restarts: int
    interrupted: bool = False  # by Ctrl-C

    def timing(self) -> str:
        """The wall time of the run by phase, over all its processes, in one line."""
        phases = ["steps", "waiting for data", "checkpoints", "evaluation", "compilation", "start"]
        phases += [f"lost to {self.restarts} restarts"] if self.restarts else []
        shares = zip(phases, self.run_seconds.shares().values(), strict=False)  # `lost` is the last
        text = ", ".join(f"{phase} {share:.1%}" for phase, share in shares)
        return f"step {self.step} after {duration(self.run_seconds.wall)}: {text}"


def train(
    experiment: Experiment, mesh: jax.sharding.Mesh, stages: Sequence[Stage],
    writers: Sequence[Writer] = (), config_text: str | None = None,
    progress: Progress | None = None, timer: GoodputTimer | None = None,
    on_hang: Callable[[], None] | None = None,
) -> Outcome:  # fmt: skip
    """Train to the last step, from the newest checkpoint if there is one.

    SIGTERM, SIGHUP and Ctrl-C end the current step or evaluation, save, and return with
    `finished=False`. With TrainConfig.rollback, a run that diverges goes on from a checkpoint.

    Args:
      writers: receive metrics and records besides metrics.jsonl; closed at the end.
      config_text: content of config.gin, written once the run is resumed.
      timer: started with the process; None excludes the time before this call.
      on_hang: called by the `Watchdog` of the run.

    Raises:
      UserError: the configs do not fit the machine, the data or the checkpoints; the disk fails; or
        the loss or gradient norm is not finite.
    """
    timer = timer or GoodputTimer()
    experiment.check(mesh)
    stages[0].source.check_vocabulary(experiment.model.vocab_size)
    model_dir, progress = experiment.model_dir, progress or Progress(experiment.train.steps)
    with (
        disk_errors(f"write to MODEL_DIR {model_dir}", "; its checkpoints are intact", DISK_ERRORS),
        Preemption() as preemption,
        closing_all(progress, *writers),
    ):
        stop = preemption.requested
        while True:
            try:
                with Trainer(
                    experiment, mesh, stages, writers, stop, progress, timer, on_hang
                ) as run:
                    run.begin(config_text)
                    finished = run.train(stages)
                    preemption.release()
                    run.finish()
                    finished &= not preemption.requested()  # while the last save was waited for
                    return Outcome(
                        run.step, finished, timer.total(), timer.run(), run.restarts,
                        preemption.interrupted,
                    )  # fmt: skip
            except Diverged as diverged:
                roll_back(Run(model_dir), experiment.train.rollback, diverged, progress.log)
            timer = GoodputTimer()  # as of a new process


class Trainer:
    """The operations of the loop on a run, resumed from its newest checkpoint."""

    start: Position  # at which this process resumed the run, or entered a later stage

    def __init__(
        self, experiment: Experiment, mesh: jax.sharding.Mesh, stages: Sequence[Stage],
        writers: Sequence[Writer], should_stop: Callable[[], bool], progress: Progress,
        timer: GoodputTimer, on_hang: Callable[[], None] | None = None,
    ) -> None:  # fmt: skip
        """Open MODEL_DIR and restore the newest checkpoint; the arguments are those of `train`."""
        e = self._experiment = experiment
        self._mesh, self._should_stop = mesh, should_stop
        self._writers, self._progress, self._timer = writers, progress, timer
        self.scheduled = frozenset(e.scheduled_steps)  # the steps at which it saves and scores
        evaluator = stages[0].evaluator
        self._scored = frozenset(evaluator.config.due(e.scheduled_steps) if evaluator else ())
        self._reference = Reference.of(e)
        weighted_domains = len(stages[0].source.domains) if self._reference else 0
        self._abstract = abstract_state(
            e.model, e.make_optimizer(), mesh, weighted_domains, e.train.skip
        )
        self._run = Run.create(e.model_dir)
        resumed, self._restored = self._restore()
        self.restarts = resumed.restarts if resumed else 0
        self.step = self.start.step  # updates done; the loop increments it
        self._stage = stages[e.stages.index(e.at(self.step))]
        self._saved_at = self._restored.entry.wall_time if self._restored else None
        whole = self._restored if self._restored and self._restored.training else None
        self._saved = whole.custom_metadata if whole else {}
        self._watchdog = Watchdog(e.train.watchdog_minutes, e.train.exit_on_hang, on_hang)
        self._profile = Profile(self._run.layout, e.train.profile_steps, progress.log)
        self.log = MetricsLog(
            self._stage, self.start, resumed, self._saved, timer, self._watchdog, progress,
            self._run if jax.process_index() == 0 else None, writers,
        )  # fmt: skip
        self._rollbacks = self._run.rollbacks()
        self.passed_over = self._run.passed_over()  # steps without an update
        self._checkpoints = self._run.checkpoint_writer(e.checkpoints)

    def _restore(self) -> tuple[Resumed | None, RestoredCheckpoint | None]:
        """Resume the run from its newest checkpoint, or begin it at one of its parent."""
        e, abstract = self._experiment, self._abstract
        newest = max((entry.step for entry in self._run.available()), default=-1)
        self._run.check_space(e.bytes_to_come(num_bytes(abstract), newest))
        arrays, log = (abstract.params, abstract.training), self._progress.log
        resumed = self._run.resume(*arrays, lambda step: e.at(step).model.saved(), log)
        restored = resumed.checkpoint if resumed else None
        self.start, branch = BEGINNING, None if resumed else e.branch()
        if branch:
            restored = branch.begin(self._run, e.run_info, *arrays, e.model.saved())
            log(f"{e.model_dir} begins at {branch.name}")
        if resumed:
            self._timer.previous = resumed.previous
            log(f"resuming {e.model_dir} at step {resumed.checkpoint.entry.step}")
        if restored:
            entry = restored.entry
            self.start = Position(entry.step, entry.tokens, entry.data_position)
        return resumed, restored

    def __enter__(self) -> Trainer:
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        """Close everything; after an error, suppress further errors of closing."""
        self._watchdog.close()
        # Closing waits for the other hosts, which may be waiting for this one elsewhere.
        if error is not None and not isinstance(error, Diverged) and jax.process_count() > 1:
            return
        echoes = () if error is None else (Exception,)
        with contextlib.suppress(*echoes), contextlib.closing(self._checkpoints):
            self._profile.close()

    def train(self, stages: Sequence[Stage]) -> bool:
        """Train to the last step from where the run is; return whether no signal came before."""
        steps, timer = self._experiment.train.steps, self._timer
        state = self.restored_or_new_state()
        self.score_missing(state)
        for stage in stages:
            last = stage.experiment.train.steps
            if self.step >= last or self._should_stop():
                continue
            assert stage.open_batches
            with contextlib.closing(stage.open_batches(self.enter(stage))) as batches:
                if state.skip and self.step == stage.experiment.start.step:  # another level
                    state = state._replace(skip=self._skip_state(None))
                update = self.compile_update()
                timer.begin_steps()
                while self.step < last and not self._should_stop():
                    with timer.measure("data"):
                        batch = next(batches)
                    self.step += 1
                    if self.step in self.passed_over:
                        self.log.flush()
                        self.log.skipped += 1
                        state = pass_over(state)
                    else:
                        state, metrics = update(state, device_batch(batch, self._mesh))
                        self.log.add(self.step, metrics)
                    if self.step in self.scheduled:
                        self.save(state, "final" if self.step == steps else "scheduled")
                        self.score(state)
        if self.log.saved != self.step:
            self.save(state, "preempted")
        # no host goes on to its end while another one may still be asked to stop
        return self.step >= steps and not on_any_process(self._should_stop())

    def begin(self, text: str | None) -> None:
        """Write config.gin, log what it changes for the coming steps, and begin the writers."""
        log, steps = self._progress.log, self._experiment.train.steps
        if self._restored:
            of = self._stage.experiment
            rate = float(make_schedule(of.schedule, of.train.steps)(self.step - 1))
            saved = self._restored.entry.learning_rate
            if saved is not None and abs(rate - saved) > 1e-6 * saved and self.step > 0:
                was = f"it was {saved:.3g} at step {self.step}, by the settings of that time"
                log(f"the learning rate goes on from {rate:.3g}: {was}")
            if self.step >= steps:
                at = f"the run is at step {self.step}, and TrainConfig.steps = {steps}"
                log(f"nothing to train: {at}")
        if text is not None and jax.process_index() == 0:
            for writer in self._writers[:1]:
                writer.flush()  # the lease: another process may have written its own by now
            for change in self._run.write_config(text, self.step):
                log(f"changed since the last start: {change}")
        for writer in self._writers:  # the lease is the first
            writer.begin(self.step)

    def restored_or_new_state(self, new: Callable[[int], TrainState] | None = None) -> TrainState:
        """The initial state of this process; `new` is a compiled `state.initializer`."""
        e, restored = self._experiment, self._restored
        if restored is None:
            new = new or initializer(e.model, e.make_optimizer(), self._abstract)
            return new(e.train.seed)
        if restored.training is None:
            return state_of(restored.params, e.make_optimizer(), self._abstract)
        skip = self._skip_state(self._saved.get("skip"))
        return TrainState(params=restored.params, **restored.training, skip=skip)

    def _skip_state(self, saved: Mapping[str, Any] | None) -> SkipState | None:
        skip = self._experiment.train.skip
        state = skip and SkipState.restored(saved, skip.window)
        return jax.device_put(state, jax.tree.map(lambda x: x.sharding, self._abstract.skip))

    def enter(self, stage: Stage) -> int:
        """Go on in `stage`, and return the global index of the next sequence."""
        e = stage.experiment
        if stage is not self._stage:
            self.start, self._stage = self._position(), stage
            self.log.enter(stage, self.start)
        if e.number:
            self._progress.log(
                f"stage {e.number}, to step {e.train.steps}: batches of {e.data.batch_size} x "
                f"{e.data.sequence_length} tokens"
            )
        return self._position().sequences

    def compile_update(self) -> TrainStep:
        """The compiled update of the stage; its compilation counts towards no step."""
        e, reference, domains = self._stage.experiment, self._reference, self._stage.source.domains
        weights = of_config(e.train.domain_weights, domains, reference and reference.model)
        self._watchdog.pause()
        with self._timer.measure("compile"):
            compiled = lambda function: function(
                e.model, e.make_optimizer(), make_schedule(e.schedule, e.train.steps), self._mesh,
                self._abstract, batch_size=e.data.batch_size, length=e.data.sequence_length,
                num_domains=len(domains), accumulation=e.train.gradient_accumulation,
                z_loss=e.train.z_loss, domain_weights=weights, skip=e.train.skip,
                reference=reference and reference.params(self._mesh),
            )  # fmt: skip
            update = compiled(compile_train_step)
            if every := e.train.monitor_every:
                update = monitored(update, every, lambda: self.step, compiled(compile_monitors))
        return self._profile.around(update, lambda: self.step)

    def score_missing(self, state: TrainState) -> None:
        """Save and score step 0 of a new run, or score the tasks that the resumed step lacks."""
        if self.step == 0 and self.log.saved is None:
            if self.step in self.scheduled:
                self.save(state, "scheduled")
                self.score(state)
        elif (
            (evaluator := self._stage.evaluator)
            and self.step in self._scored
            and (missing := evaluator.missing(self.step, self._saved_at))
        ):
            self._progress.log(f"scoring {len(missing)} tasks that step {self.step} lacks")
            self.score(state, missing)

    def save(self, state: TrainState, kind: str) -> None:
        """Start a save; the loop continues while it is written."""
        self.log.flush()
        self._flush()  # a checkpoint's lines and events are there before it is
        entry = self._entry(kind)
        self._saved_at = entry.wall_time
        with self._timer.measure("checkpoint"):
            metadata = {
                **self.log.custom_metadata(),
                "time": dataclasses.asdict(self._timer.run()),
                "model": self._stage.experiment.model.saved(),
                **({"skip": state.skip.to_json()} if state.skip else {}),
            }
            self._checkpoints.save(entry, state.params, state.training, metadata)
        self.log.saved = self.step

    def score(self, state: TrainState, tasks: Sequence[str] | None = None) -> None:
        """Score the live parameters on `tasks` (None: all), and pass the records to the writers.

        If a signal interrupts it, the remaining tasks are scored at the next start.
        """
        evaluator = self._stage.evaluator
        if evaluator is None or self.step not in self._scored:
            return
        tokens, began = self._position().tokens, time.perf_counter()
        records: list[Any] = []

        def should_stop() -> bool:
            self._watchdog.heartbeat()
            return self._should_stop()

        with self._timer.measure("evaluation"):
            with contextlib.suppress(Interrupted):
                for task in evaluator.definitions if tasks is None else tasks:
                    records += evaluator.evaluate(
                        state.params, self.step, tokens, self._experiment.flops(tokens),
                        tasks=(task,), should_stop=should_stop, checkpoint=self._saved_at,
                    )  # fmt: skip
            for writer in self._writers:  # the lease is the first
                writer.write_records(self.step, records)
            if jax.process_index() == 0:
                self._run.trajectory.compact(self.step)
        self._watchdog.heartbeat()
        seconds, total = time.perf_counter() - began, self._timer.total()
        self._progress.log(
            f"step {self.step}: scored in {seconds:.1f} s; "
            f"evaluation is {total.evaluation / total.wall:.0%} of the time so far"
        )

    def finish(self) -> None:
        """Wait for the last save, and record the time of the run so far."""
        self._flush()
        with self._timer.measure("checkpoint"):
            self._checkpoints.wait()
        if jax.process_index() == 0:
            self._run.note_stop(self.step, self._timer.run())

    def _flush(self) -> None:
        """Store lines and events; UserError before that if the lease, the first, is lost."""
        for writer in self._writers:
            writer.flush()
        self._run.metrics_lines.flush()

    def _position(self) -> Position:
        return self.start.at(self.step, self._stage.experiment)

    def _entry(self, kind: str) -> ManifestEntry:
        position, began = self._position(), self.step == self.start.step
        return ManifestEntry(
            step=self.step, tokens=position.tokens, flops=self._experiment.flops(position.tokens),
            learning_rate=self.log.learning_rate, loss=self.log.loss,
            data_position=position.sequences, dtype=self._experiment.model.param_dtype,
            wall_time=time.time(), wall_seconds=self._timer.run().wall,
            code_version=code_version(), restarts=self.restarts, kind=kind,
            domain_tokens=self._stage.source.tokens_read(position.sequences),
            domain_epochs=self._stage.source.epochs_read(position.sequences),
            parent=self._restored.entry.parent if began and self._restored else None,
            stage=self._stage.experiment.number, sequences=self._stage.source.fingerprint,
            spike=self.log.spikes.since is not None, skipped_steps=self.log.skipped,
            rollbacks=len(self._rollbacks),
        )  # fmt: skip
