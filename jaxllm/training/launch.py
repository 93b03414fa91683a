"""Launch what a process trains, a run or a stack of them: data, lease and outputs of each."""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from functools import partial
from typing import Any, NamedTuple, Protocol

import gin
import jax
from jax.sharding import Mesh

from jaxllm import runtime
from jaxllm.data.loader import SequenceSource, open_batches
from jaxllm.data.repetition import check_epochs
from jaxllm.errors import UserError, one_line
from jaxllm.evaluation.config import EvalConfig
from jaxllm.kvstore import read_file
from jaxllm.run import data_identity
from jaxllm.run.lease import lease
from jaxllm.run.run import Run
from jaxllm.run.times import GoodputTimer
from jaxllm.sharding.mesh import MeshConfig, make_mesh, stack_mesh
from jaxllm.training import stacked
from jaxllm.training.domain_weights import check_domains
from jaxllm.training.experiment import Experiment, check_evaluators, make_evaluators
from jaxllm.training.loop import Outcome, train
from jaxllm.training.metrics import Writer
from jaxllm.training.progress import Progress
from jaxllm.training.reference import Reference
from jaxllm.training.rollback import skip_by_hand
from jaxllm.training.sequences import open_data, sample
from jaxllm.training.stages import Stage, epochs
from jaxllm.training.state import abstract_state

Log = Callable[[str], None]


class Watch(Writer, Protocol):
    """A writer that also tells how its run fares."""

    def tell_of_run(self, subject: str, reason: str) -> None:
        """Tell that the run `hangs`."""

    def stopped(self, error: Exception) -> None:
        """Tell that the run stopped with an error."""


class Outputs(NamedTuple):
    """What makes the outputs of a run on the first host, given its MODEL_DIR."""

    watch: Callable[[str, Log], Watch]  # before its data is opened
    events: Callable[[str], Writer]  # afterwards
    # tells these `Watch`es how what is inside ended
    watching: Callable[[Collection[Any]], AbstractContextManager[None]]


def train_run(
    experiment: Experiment, scoring: EvalConfig, weights: Mapping[str, float], outputs: Outputs,
    timer: GoodputTimer, leases: ExitStack, skip_steps: str | None = None,
) -> Outcome:  # fmt: skip
    """Prepare missing data, then train, score and monitor a run; opens its lease in `leases`.

    `weights` are those of `corpora.resolve`, `skip_steps` as of `rollback.skip_by_hand`.
    """
    if data_identity.load(experiment.model_dir) is None:
        experiment.branch()
    Reference.of(experiment)
    mesh = make_mesh(MeshConfig())
    experiment.check(mesh)
    progress = Progress(experiment.train.steps, 30.0 if runtime.is_first() else math.inf)
    watched: dict[str, Watch] = {}
    with outputs.watching(watched.values()):
        e, sources, writers = _open(
            experiment, mesh, weights, outputs, watched, leases, progress.log, skip_steps
        )
        sampling = partial(sample, e, sources)
        evaluators = make_evaluators(e, mesh, scoring, sampling) if scoring.names else []
        costs = check_evaluators(evaluators) if scoring.every else []
        hosts = {"process_index": jax.process_index(), "process_count": jax.process_count()}
        none = [None] * len(sources)
        stages = [
            Stage(one, of, evaluator, partial(open_batches, of, one.data.batch_size, **hosts))
            for one, of, evaluator in zip(e.stages, sources, evaluators or none, strict=True)
        ]
        repeated = check_epochs(epochs(stages), e.train.steps)
        for line in [*repeated, *costs] if runtime.is_first() else ():
            progress.log(line)
        config, stuck = gin.operative_config_str(), "no step for TrainConfig.watchdog_minutes"
        hang = next((partial(one.tell_of_run, "hangs", stuck) for one in watched.values()), None)
        return train(e, mesh, stages, writers, config, progress, timer, hang)


def train_stack(
    file: str, configure: Callable[[Sequence[str]], None], outputs: Outputs, timer: GoodputTimer,
    leases: ExitStack,
) -> tuple[stacked.StackOutcome, dict[str, str]]:  # fmt: skip
    """Train the runs of a file, a list of each one's flags, in one program; opens their `leases`.

    A run that cannot begin leaves the others alone. Runs at different steps, as after a crash,
    follow one another. Returns how the last of them ended, and by MODEL_DIR why runs have left.
    UserError if the file is malformed, or its runs cannot be stacked.
    """
    if jax.process_count() > 1:
        raise UserError("--stack: one host trains a stack; start a command for each host")
    scoring = progress = None
    by_step: dict[int, list[stacked.StackedRun]] = {}
    failed: dict[str, str] = {}
    watched: dict[str, Watch] = {}
    outcome = stacked.StackOutcome(True, False)

    def leave(model_dir: str, error: Exception) -> None:
        assert progress
        failed[model_dir] = one_line(error)
        progress.log(f"{model_dir} leaves the stack: {failed[model_dir]}")
        if model_dir in watched:
            watched[model_dir].stopped(error)

    with outputs.watching(watched.values()):
        for flags in _stack_of(file):
            configure(flags)
            e, own = Experiment.configured(), EvalConfig()
            MeshConfig()  # of a run that goes on alone: in its config.gin
            scoring, progress = scoring or own, progress or Progress(e.train.steps)
            if own != scoring:
                raise UserError(f"{e.model_dir} cannot be stacked: its EvalConfig differs")
            rest = (outputs, watched, leases, progress.log)
            try:
                e, sources, writers = _open(e, stack_mesh(1), None, *rest)
            except UserError as error:
                leave(e.model_dir, error)
                continue
            one = stacked.StackedRun(e, sources[0], writers, gin.operative_config_str())
            by_step.setdefault(e.newest_step(), []).append(one)
        stacked.check_alike([one.experiment for group in by_step.values() for one in group])
        for _, group in sorted(by_step.items()):
            if outcome.finished and scoring and progress:
                with outputs.watching([watched[one.experiment.model_dir] for one in group]):
                    mesh = stack_mesh(len(group))
                    outcome = stacked.train_stack(group, scoring, mesh, progress, timer, leave)
    return outcome, failed


def _open(
    experiment: Experiment, mesh: Mesh, weights: Mapping[str, float] | None, outputs: Outputs,
    watched: dict[str, Watch], leases: ExitStack, log: Log, skip_steps: str | None = None,
) -> tuple[Experiment, list[SequenceSource], list[Writer]]:  # fmt: skip
    """Open a run's lease, data and outputs, of which its watch is added to those `watched`.

    Returns the run with its vocabulary, the sequences of each stage, and on the first host the
    writers, of which the lease is the first.
    """
    model_dir = experiment.model_dir
    run = Run.create(model_dir)
    held = leases.enter_context(lease(model_dir, log))
    if skip_steps:
        skip_by_hand(run, skip_steps)
    if runtime.is_first():
        watched[model_dir] = outputs.watch(model_dir, log)
    sources, identity = open_data(experiment, weights)
    tokenizer = sources[0].tokenizer
    e = experiment.with_vocabulary(tokenizer.size)
    domains = list(dict.fromkeys(domain for source in sources for domain in source.domains))
    check_domains(e.train.domain_weights, domains)
    if reference := Reference.of(e):
        reference.check_vocabulary(tokenizer)
    if data_identity.load(model_dir) is None and (branch := e.branch()):
        state = abstract_state(e.model, e.make_optimizer(), mesh, len(domains) if reference else 0)
        branch.check(state.params, state.training, e.model.saved())
    if model_dir not in watched:
        return e, sources, []
    data_identity.save(model_dir, identity, tokenizer.files)
    return e, sources, [*held, outputs.events(model_dir), watched[model_dir]]


def _stack_of(file: str) -> list[list[str]]:
    content = read_file(file)
    if content is None:
        raise UserError(f"--stack={file}: no such file")
    with contextlib.suppress(ValueError, TypeError):
        flags = json.loads(content)
        if flags and all(isinstance(flag, str) for one in flags for flag in one):
            return flags
    raise UserError(f"--stack={file}: not a list of each run's list of flags, as JSON")
