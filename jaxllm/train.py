"""Trains a model, scores every checkpoint, and shows how its capabilities grew.

    python -m jaxllm.train --gin_file=quickstart.gin --gin.MODEL_DIR=runs/mine

Start it again after whatever stopped it, and it goes on from the newest checkpoint. SIGTERM saves
and ends it with exit code 0.
"""

from __future__ import annotations

import contextlib
import logging
import math
import signal
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from jaxllm import cli, runtime
from jaxllm.errors import one_line
from jaxllm.training.timer import GoodputTimer

if TYPE_CHECKING:
    from jax.sharding import Mesh

    from jaxllm.data.corpora import Corpora
    from jaxllm.data.loader import SequenceSource
    from jaxllm.evaluation.config import EvalConfig
    from jaxllm.run.run import Run
    from jaxllm.training.experiment import Experiment
    from jaxllm.training.loop import Outcome


def main(argv: Sequence[str] | None = None) -> int:
    """Flags and gin in, a trained and scored run out."""
    timer = GoodputTimer()
    flags = cli.parser(__doc__ or "")
    runtime.add_host_flags(flags)
    args = cli.parse(flags, argv)
    cli.load_gin(args)
    # Until the loop has something to save, a preempted machine may take the process at once.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))

    from jaxllm.data.corpora import Corpora
    from jaxllm.evaluation.config import EvalConfig
    from jaxllm.evaluation.selection import select
    from jaxllm.report.alarms import HealthConfig
    from jaxllm.run.run import Run
    from jaxllm.sharding.mesh import MeshConfig, make_mesh
    from jaxllm.training.experiment import Experiment

    # All mistakes that can be seen without data come before the data are prepared.
    experiment, scoring, mesh_config = Experiment.configured(), EvalConfig(), MeshConfig()
    select(scoring)
    corpora = Corpora.resolve(experiment.data)
    references = HealthConfig().open()
    runtime.join_hosts(args)
    runtime.enable_compilation_cache()
    Run.create(experiment.model_dir)
    mesh = make_mesh(mesh_config)
    experiment.check(mesh)

    outcome, advice = run(experiment, scoring, mesh, references, corpora, timer)
    if runtime.is_first():
        print(timing(outcome))
        if outcome.finished:
            show(experiment.model_dir, scored=bool(scoring.tasks))
        else:
            print(f"stopped at step {outcome.step} and saved: the same command goes on from there")
            if advice:
                print(advice)
    return 0


def run(
    experiment: Experiment,
    scoring: EvalConfig,
    mesh: Mesh,
    references: Sequence[Run] = (),
    corpora: Corpora | None = None,
    timer: GoodputTimer | None = None,
) -> tuple[Outcome, str]:
    """Prepares what is missing, then trains, scores and watches.

    Returns:
      How it ended, and what the rest of the budget is expected to bring.
    """
    import gin
    import jax

    from jaxllm.data.loader import Loader
    from jaxllm.report.alarms import HealthWriter
    from jaxllm.report.tensorboard import TensorBoardWriter
    from jaxllm.training.evaluator import make_evaluator
    from jaxllm.training.loop import train
    from jaxllm.training.progress import Progress
    from jaxllm.training.writers import Writer

    source = open_data(experiment, corpora)

    def open_batches(start: int) -> Loader:
        return Loader(
            source,
            experiment.data.batch_size,
            start,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
        )

    e = experiment
    progress = Progress(e.train.steps, 30.0 if runtime.is_first() else math.inf)
    writers: list[Writer] = []
    health = None
    if runtime.is_first():
        budget = e.train.steps * e.tokens_per_step
        health = HealthWriter(e.model_dir, e.run_info, budget, references, progress.log)
        writers = [TensorBoardWriter(e.model_dir), health]
    evaluator = make_evaluator(experiment, mesh, scoring) if scoring.tasks else None
    costs = evaluator.check() if evaluator and scoring.every else ()
    for line in costs if runtime.is_first() else ():
        progress.log(line)
    outcome = train(
        experiment,
        mesh,
        source,
        open_batches,
        evaluator=evaluator,
        writers=writers,
        config_text=gin.operative_config_str(),
        progress=progress,
        timer=timer,
    )
    return outcome, health.advice() if health and not outcome.finished else ""


def open_data(experiment: Experiment, corpora: Corpora | None = None) -> SequenceSource:
    """Opens the training sequences of a run, with the vocabulary that it has saved, if any.

    Raises:
      UserError: they are not those that the run began with, or hosts have different ones.
    """
    from jaxllm.data.loader import open_source
    from jaxllm.data.tokenizer import with_saved_tokenizer
    from jaxllm.run import data_identity

    model_dir = experiment.model_dir
    data = with_saved_tokenizer(experiment.data, data_identity.saved_tokenizer(model_dir))
    source = open_source(data, corpora)
    source.check_hosts_agree()
    data_identity.verify(model_dir, source.fingerprint)
    if runtime.is_first():
        data_identity.save(model_dir, source.fingerprint, source.tokenizer.files)
    return source


def timing(outcome: Outcome) -> str:
    """Where the time of the run went, with all its processes, in one line."""
    from jaxllm.training.progress import duration

    run = outcome.run_seconds
    shares = run.shares()
    parts = {
        "steps": shares["goodput"],
        "waiting for data": shares["time/data"],
        "evaluation": shares["time/evaluation"],
        "checkpoints": shares["time/checkpoint"],
        "compilation": shares["time/compile"],
        "start": shares["time/start"],
    }
    if outcome.restarts:
        parts[f"lost to {outcome.restarts} restarts"] = shares["time/lost"]
    text = ", ".join(f"{name} {share:.1%}" for name, share in parts.items())
    return f"step {outcome.step} after {duration(run.wall)}: {text}"


def show(model_dir: str, scored: bool) -> None:
    """Prints the capabilities over the checkpoints, and where to see more of the run.

    What fails here is said in one line: the run itself has ended well.
    """
    from jaxllm.report import items, page, tables, tensorboard, terminal
    from jaxllm.run.run import Run

    run = Run.open(model_dir)
    failed = f"could not be made (`python -m jaxllm.analyze {model_dir}` tries again)"
    with _told(f"the report {failed}"):
        report = tables.gather([run])
        found = items.items(report)
        if scored:
            with _told("no table of the capabilities"):
                print(f"\n{terminal.capability_table(report, report.overviews[0].run)}\n")
        with _told("no images of the report in TensorBoard"):
            tensorboard.write_report(run.layout.tensorboard, report, found)
        path = page.write(run.layout.report / "index.html", page.render(report, found).encode())
        print(f"report       {path}")
    print(f"TensorBoard  tensorboard --logdir {model_dir}/tensorboard")


@contextlib.contextmanager
def _told(what: str) -> Iterator[None]:
    """A failure inside is one line that begins with `what`."""
    try:
        yield
    except Exception as error:
        print(f"{what}: {type(error).__name__}: {one_line(error)}")
        logging.debug(what, exc_info=True)


if __name__ == "__main__":
    cli.run(main)
