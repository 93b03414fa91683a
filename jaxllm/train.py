"""Train a model, score its checkpoints, and show how its capabilities grow.

    python -m jaxllm.train --gin_file=quickstart.gin --gin.MODEL_DIR=runs/mine

The same command resumes an interrupted run from its newest checkpoint. SIGTERM and SIGHUP save and
exit with code 0, Ctrl-C with 130; a second Ctrl-C exits at once. One process trains a run: another
one on the same MODEL_DIR is refused.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import math
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from signal import SIGHUP, SIGINT, SIGTERM
from typing import TYPE_CHECKING

from jaxllm import cli, runtime
from jaxllm.errors import UserError, one_line
from jaxllm.io import location
from jaxllm.kvstore import read_file
from jaxllm.run.times import GoodputTimer, duration

if TYPE_CHECKING:
    import argparse

    from jax.sharding import Mesh

    from jaxllm.data.loader import SequenceSource
    from jaxllm.evaluation.config import EvalConfig
    from jaxllm.report.alarms import HealthWriter
    from jaxllm.training.experiment import Experiment
    from jaxllm.training.loop import Outcome
    from jaxllm.training.metrics import Writer

INTERRUPTED = 130
# Exit codes outside the loop, where there is nothing to save.
CODES: dict[int, int] = {SIGTERM: 0, SIGHUP: 0, SIGINT: INTERRUPTED}


@runtime.exit_by_signals(CODES, seconds=5.0)
def main(argv: Sequence[str] | None = None) -> int:
    """Train and score the run that flags and gin define."""
    timer = GoodputTimer(runtime.process_age() if argv is None else 0.0)
    flags = cli.parser(__doc__ or "")
    flags.add_argument("--branch_from", metavar="RUN@STEP",
                       help="begin at a checkpoint of another run, with its settings, or at hf:DIR"
                       )  # fmt: skip
    flags.add_argument("--stack", metavar="FILE", help="train the runs of a file in one program; "
                       "`jaxllm.suite --stack=N` writes it")  # fmt: skip
    flags.add_argument("--skip_steps", metavar="FIRST:LAST", help="pass over the data of these "
                       "steps, from the last good checkpoint before them")  # fmt: skip
    runtime.add_host_flags(flags)
    argv = sys.argv[1:] if argv is None else argv
    args = cli.parse(flags, argv)
    load_settings(args)
    if args.stack:
        if args.skip_steps:
            raise UserError("--skip_steps: train the run alone, and not in a --stack")
        with contextlib.ExitStack() as leases:
            return train_stack(args.stack, partial(reload, flags, argv), timer, leases)

    from jaxllm.data.corpora import resolve
    from jaxllm.evaluation.config import EvalConfig
    from jaxllm.evaluation.selection import select
    from jaxllm.run import data_identity
    from jaxllm.run.lease import lease
    from jaxllm.run.manifest import program
    from jaxllm.run.run import Run
    from jaxllm.sharding.mesh import MeshConfig, make_mesh
    from jaxllm.training.experiment import Experiment
    from jaxllm.training.reference import Reference
    from jaxllm.training.rollback import skip_by_hand

    # Report every mistake that does not depend on data before preparing the data.
    experiment, scoring, mesh_config = Experiment.configured(), EvalConfig(), MeshConfig()
    select(scoring)
    weights = resolve(experiment.stages[0].data)
    runtime.join_hosts(args)
    runtime.check_hosts_agree(program())
    runtime.enable_compilation_cache()
    if data_identity.load(experiment.model_dir) is None:
        experiment.branch()
    Reference.of(experiment)
    Run.create(experiment.model_dir)
    mesh = make_mesh(mesh_config)
    experiment.check(mesh)
    with lease(experiment.model_dir) as held:
        if args.skip_steps:
            skip_by_hand(Run(experiment.model_dir), args.skip_steps)
        outcome = run(experiment, scoring, mesh, weights, timer, held)
        if runtime.is_first():
            print(timing(outcome))
            if outcome.finished:
                binding = Run(experiment.model_dir).write_domain_weights()  # the report reads them
                show(experiment.model_dir, scored=bool(scoring.names))
                if binding:
                    print(f"domain weights: {binding}", end="")
            else:
                at = f"stopped at step {outcome.step} and saved"
                print(f"{at}: the same command goes on from there")
    return INTERRUPTED if outcome.interrupted else 0


def reload(flags: argparse.ArgumentParser, shared: Sequence[str], own: Sequence[str]) -> None:
    """Load the settings of one run of a stack, in place of those of another."""
    import gin

    gin.clear_config()
    load_settings(cli.parse(flags, [*shared, *own]))


def load_settings(args: argparse.Namespace) -> None:
    """Load gin; for a branch on top of its parent's config; UserError if there is no such one.

    Where the parent, or DoReMi's reference model, is hf:DIR, it is imported into MODEL_DIR.
    """
    import gin

    from jaxllm.run.branch import Branch
    from jaxllm.run.layout import Layout
    from jaxllm.training.config import DoReMiConfig, TrainConfig
    from jaxllm.training.experiment import Experiment

    def imported(source: str, name: str) -> str:
        from jaxllm.interop.huggingface.importing import import_run

        target = getattr(Layout(Experiment.configured().model_dir), name)
        if not target.exists():
            if args.coordinator_address:  # each host would write it
                first = f"python -m jaxllm.convert --from={source} --to={target}"
                raise UserError(f"{source} is imported by one process: {first}, then start again")
            import_run(location(source).removeprefix("hf:"), str(target))
        return f"{target}@0"

    if at := args.branch_from:
        if at.startswith("hf:"):
            cli.load_gin(args)
            at = f"{imported(at, 'parent')}:params"
            gin.clear_config()
        own = re.search(r"^MODEL_DIR = '(.*)'$", "\n".join(args.gin_bindings), re.MULTILINE)
        begun = own and Layout(location(own[1])).config.exists()  # its parent may be gone by now
        cli.load_gin(args, location(own[1]) if own and begun else str(Branch.open(at).parent.path))
        gin.bind_parameter("TrainConfig.branch_from", at)
    else:
        cli.load_gin(args)
    doremi = TrainConfig().domain_weights
    if isinstance(doremi, DoReMiConfig) and doremi.reference.startswith("hf:"):
        copy = {"reference": imported(doremi.reference, "reference")}
        gin.bind_parameter("TrainConfig.domain_weights", dataclasses.asdict(doremi) | copy)


def open_run(
    experiment: Experiment, mesh: Mesh, health: HealthWriter | None,
    weights: Mapping[str, float] | None = None,
) -> tuple[Experiment, list[SequenceSource], list[Writer]]:  # fmt: skip
    """Prepare missing data, and open the run's data (`corpora.resolve`'s weights) and outputs.

    Returns the run with its vocabulary, the sequences of each stage, and on the first host the
    writers, with the one that watches its `health`.
    """
    from jaxllm.report.tensorboard import TensorBoardWriter
    from jaxllm.run import data_identity
    from jaxllm.training.domain_weights import check_domains
    from jaxllm.training.reference import Reference
    from jaxllm.training.sequences import open_data
    from jaxllm.training.state import abstract_state

    sources, identity = open_data(experiment, weights)
    tokenizer = sources[0].tokenizer
    e = experiment.with_vocabulary(tokenizer.size)
    begun = data_identity.load(e.model_dir) is not None
    domains = list(dict.fromkeys(domain for source in sources for domain in source.domains))
    check_domains(e.train.domain_weights, domains)
    if reference := Reference.of(e):
        reference.check_vocabulary(tokenizer)
    if not begun and (branch := e.branch()):
        state = abstract_state(e.model, e.make_optimizer(), mesh, len(domains) if reference else 0)
        branch.check(state.params, state.training, e.model.saved())
    if health is None:
        return e, sources, []
    data_identity.save(e.model_dir, identity, tokenizer.files)
    return e, sources, [TensorBoardWriter(e.model_dir), health]


def run(
    experiment: Experiment, scoring: EvalConfig, mesh: Mesh,
    weights: Mapping[str, float] | None = None, timer: GoodputTimer | None = None,
    held: Sequence[Writer] = (),
) -> Outcome:  # fmt: skip
    """Prepare missing data, then train, score and monitor, with the lease that is `held`."""
    import gin
    import jax

    from jaxllm.data.loader import Loader
    from jaxllm.data.repetition import check_epochs
    from jaxllm.report.alarms import HealthWriter, watching
    from jaxllm.training.experiment import check_evaluators, make_evaluators
    from jaxllm.training.loop import train
    from jaxllm.training.progress import Progress
    from jaxllm.training.sequences import sample
    from jaxllm.training.stages import Stage, epochs

    progress = Progress(experiment.train.steps, 30.0 if runtime.is_first() else math.inf)
    health = HealthWriter(experiment.model_dir, progress.log) if runtime.is_first() else None
    with watching([health] if health else []):
        e, sources, writers = open_run(experiment, mesh, health, weights)
        sampling = partial(sample, e, sources)
        evaluators = make_evaluators(e, mesh, scoring, sampling) if scoring.names else []
        costs = check_evaluators(evaluators) if scoring.every else []
        hosts = {"process_index": jax.process_index(), "process_count": jax.process_count()}
        none = [None] * len(sources)
        stages = [
            Stage(stage, source, evaluator, partial(Loader, source, stage.data.batch_size, **hosts))
            for stage, source, evaluator in zip(e.stages, sources, evaluators or none, strict=True)
        ]
        repeated = check_epochs(epochs(stages), e.train.steps)
        for line in [*repeated, *costs] if runtime.is_first() else ():
            progress.log(line)
        config, stuck = gin.operative_config_str(), "no step for TrainConfig.watchdog_minutes"
        on_hang = partial(health.tell_of_run, "hangs", stuck) if health else None
        return train(e, mesh, stages, [*held, *writers], config, progress, timer, on_hang)


def train_stack(
    file: str, configure: Callable[[Sequence[str]], None], timer: GoodputTimer,
    leases: contextlib.ExitStack,
) -> int:  # fmt: skip
    """Train the runs of a file, a list of each one's flags, in one program; opens their `leases`.

    A run that cannot begin leaves the others alone. Runs at different steps, as after a crash,
    follow one another. UserError if the file is malformed, or its runs cannot be stacked. Returns
    the exit code: 1 unless all have trained to their end.
    """
    import gin
    import jax

    from jaxllm.data.corpora import resolve
    from jaxllm.evaluation.config import EvalConfig
    from jaxllm.report.alarms import HealthWriter, watching
    from jaxllm.report.delivery import close_all
    from jaxllm.run.lease import lease
    from jaxllm.run.run import Run
    from jaxllm.sharding.mesh import MeshConfig, stack_mesh
    from jaxllm.training import stacked
    from jaxllm.training.experiment import Experiment
    from jaxllm.training.progress import Progress

    if jax.process_count() > 1:
        raise UserError("--stack: one host trains a stack; start a command for each host")
    runtime.enable_compilation_cache()
    scoring = progress = None
    by_step: dict[int, list[stacked.StackedRun]] = {}
    failed: dict[str, str] = {}
    watched: dict[str, HealthWriter] = {}

    def leave(model_dir: str, error: Exception) -> None:
        assert progress
        failed[model_dir] = one_line(error)
        progress.log(f"{model_dir} leaves the stack: {failed[model_dir]}")
        if model_dir in watched:
            watched[model_dir].stopped(error)

    for flags in _stack_of(file):
        configure(flags)
        e, own = Experiment.configured(), EvalConfig()
        MeshConfig()  # of a run that goes on alone: in its config.gin
        scoring, progress = scoring or own, progress or Progress(e.train.steps)
        if own != scoring:
            raise UserError(f"{e.model_dir} cannot be stacked: its EvalConfig differs")
        try:
            Run.create(e.model_dir)
            held = leases.enter_context(lease(e.model_dir, progress.log))
            health = watched[e.model_dir] = HealthWriter(e.model_dir, progress.log)
            e, (source,), writers = open_run(e, stack_mesh(1), health, resolve(e.data))
        except UserError as error:
            leave(e.model_dir, error)
            continue
        one = stacked.StackedRun(e, source, [*held, *writers], gin.operative_config_str())
        by_step.setdefault(e.newest_step(), []).append(one)
    stacked.check_alike([one.experiment for group in by_step.values() for one in group])
    finished, code = True, 1
    for _, group in sorted(by_step.items()):
        if finished and scoring and progress:
            with watching([watched[one.experiment.model_dir] for one in group]):
                mesh = stack_mesh(len(group))
                outcome = stacked.train_stack(group, scoring, mesh, progress, timer, leave)
            finished, code = outcome.finished, INTERRUPTED if outcome.interrupted else 1
    close_all([one for writer in watched.values() for one in writer.deliveries])
    for model_dir, reason in failed.items():
        print(f"error: {model_dir}: {reason}")
    return 0 if finished and not failed else code


def _stack_of(file: str) -> list[list[str]]:
    content = read_file(file)
    if content is None:
        raise UserError(f"--stack={file}: no such file")
    try:
        flags = json.loads(content)
        if flags and all(isinstance(flag, str) for one in flags for flag in one):
            return flags
    except (ValueError, TypeError):
        pass
    raise UserError(f"--stack={file}: not a list of each run's list of flags, as JSON")


def timing(outcome: Outcome) -> str:
    """The wall time of the run by phase, over all its processes, in one line."""
    seconds = outcome.run_seconds
    phases = ["steps", "waiting for data", "checkpoints", "evaluation", "compilation", "start"]
    phases += [f"lost to {outcome.restarts} restarts"] if outcome.restarts else []
    shares = zip(phases, seconds.shares().values(), strict=False)  # `lost` is the last
    text = ", ".join(f"{phase} {share:.1%}" for phase, share in shares)
    return f"step {outcome.step} after {duration(seconds.wall)}: {text}"


def show(model_dir: str, scored: bool) -> None:
    """Print the capabilities over the checkpoints, and the paths of the report and TensorBoard.

    A failure here is reported in one line: the run itself has ended well.
    """
    from jaxllm.report import files, items, tables, tensorboard, terminal
    from jaxllm.run.run import Run

    run = Run.open(model_dir)
    failed = f"could not be made (`python -m jaxllm.analyze {model_dir}` tries again)"
    with _reported(f"the report {failed}"):
        report = tables.gather([run])
        cards = items.items(report)
        if scored:
            with _reported("no table of the capabilities"):
                print(f"\n{terminal.capability_table(report, report.overviews[0].run)}\n")
        with _reported("no images of the report in TensorBoard"):
            tensorboard.write_report(run.layout.tensorboard, report, cards)
        path = files.write_page(run.layout.report, report, cards)
        print(f"report       {path}")
    print(f"TensorBoard  tensorboard --logdir {model_dir}/tensorboard")


@contextlib.contextmanager
def _reported(what: str) -> Iterator[None]:
    """Report a failure inside as one line that begins with `what`."""
    try:
        yield
    except Exception as error:
        print(f"{what}: {type(error).__name__}: {one_line(error)}")
        logging.debug(what, exc_info=True)


if __name__ == "__main__":
    cli.run(main)
