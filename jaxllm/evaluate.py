"""Score saved checkpoints, as training does.

    python -m jaxllm.evaluate --model_dir=runs/mine
    python -m jaxllm.evaluate --model_dir=runs/mine --steps=100,200 --tasks=lambada_openai,piqa \\
        --gin.EvalConfig.data_dir=data/evals
    python -m jaxllm.evaluate --model_dir=runs/mine --follow
    python -m jaxllm.evaluate --model_dir=hf:DIR --tasks=piqa --output=runs/published --step=1000 \\
        --tokens=2e9
    python -m jaxllm.evaluate --model_dir=hf:series.csv --tasks=piqa --output=runs/published
    python -m jaxllm.evaluate --download --tasks=piqa --gin.EvalConfig.data_dir=data/evals
    python -m jaxllm.evaluate --list='arc*'

MODEL_DIR/config.gin sets the model, data and tasks; gin flags override it. Records go to
MODEL_DIR/trajectory and replace earlier ones of the same checkpoint and task; for the run's own
tasks they are bitwise identical. A Hugging Face directory, or a series of them (see
jaxllm.convert), is scored without conversion; its records go to --output.

--follow scores checkpoints without records, then waits for new ones until the run has saved its
last; set EvalConfig.every = 0 in a run whose checkpoints are scored this way.

--download fetches benchmark files from their authors' sites into EvalConfig.data_dir (or
JAXLLM_DATA_DIR), verifies their SHA-256, keeps valid files and lists those to download by hand.
--list shows the tasks of EvalConfig.modules with their metrics and files.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from jaxllm import cli, runtime
from jaxllm.errors import UserError
from jaxllm.io import location

if TYPE_CHECKING:
    from jaxllm.evaluation.config import EvalConfig
    from jaxllm.evaluation.offline import OfflineScorer
    from jaxllm.run.run import Run

OF_HF, OF_RUN = ("output", "step", "tokens"), ("steps", "missing", "follow", "poll_seconds")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; 1 if a task failed or a file is missing."""
    args = cli.parse(_flags(), argv)
    if args.list is not None:
        cli.refuse_unread(args, (*OF_RUN, *OF_HF, "tasks"), "with --list")
        return list_tasks(args)
    if args.download:
        cli.refuse_unread(args, (*OF_RUN, *OF_HF), "with --download")
        return download(args)
    if not args.model_dir:
        raise UserError("name what to score: --model_dir=DIR")
    if args.follow:
        cli.refuse_unread(args, ("steps", "missing"), "with --follow")
    if args.model_dir.startswith("hf:"):
        cli.refuse_unread(args, ("follow", "poll_seconds"), "where nothing more comes, as of hf:")
        return score_published(args)
    cli.refuse_unread(args, OF_HF, "where the run itself says it")
    return score_run(args)


def score_run(args: argparse.Namespace) -> int:
    """Score checkpoints of a run directory; return 1 if a task failed."""
    from jaxllm.run.run import Run

    cli.load_gin(args, args.model_dir)
    entries = [] if args.follow else Run(args.model_dir).select(args.steps)
    run = Run.create(args.model_dir)  # raises early if it cannot be written
    scorer = make_scorer(args, run, lambda entry, *of: run.restore_params(entry.step, *of))
    if args.follow:
        return show(run, scorer.follow(args.poll_seconds or 30))
    return show(run, scorer.score(entries, args.missing))


def score_published(args: argparse.Namespace) -> int:
    """Score checkpoints in the Hugging Face format; return 1 if a task failed."""
    from jaxllm.interop.huggingface.importing import open_published, open_results
    from jaxllm.run import manifest

    source = args.model_dir.removeprefix("hf:")
    series = open_published(source, args.step or 0, int(args.tokens or 0))
    checkpoints = {published.step: published.checkpoint for published in series}
    entries = manifest.select([p.entry() for p in series], args.steps, source)
    run = open_results(source, series, args.output)
    cli.load_gin(args, str(run.path))
    scorer = make_scorer(args, run, lambda entry, *of: checkpoints[entry.step].load(*of))
    return show(run, scorer.score(entries, args.missing))


def make_scorer(args: argparse.Namespace, run: Run, read: Callable[..., Any]) -> OfflineScorer:
    """Connect to the other hosts, prepare the tasks, print their cost and return the scorer.

    `read(entry, model, mesh)` restores the parameters of a checkpoint.
    """
    from jaxllm.evaluation.selection import select

    config = eval_config(args)
    if not config.names:
        raise UserError("the run has no evaluation tasks: name some with --tasks=TASK,TASK")
    select(config)  # raises early for an unknown task or a missing file
    runtime.import_seqio()
    runtime.join_hosts(args)
    runtime.enable_compilation_cache()

    from jaxllm.evaluation.offline import OfflineScorer
    from jaxllm.run.manifest import program
    from jaxllm.sharding.mesh import MeshConfig, make_mesh
    from jaxllm.training.experiment import Experiment, check_evaluators, make_evaluators
    from jaxllm.training.sequences import open_data, sample

    runtime.check_hosts_agree({**program(), "tasks": str(config), "steps": str(args.steps)})
    mesh, experiment = make_mesh(MeshConfig()), Experiment.configured(str(run.path))
    sampling = lambda count: sample(experiment, open_data(experiment)[0], count)
    evaluators = make_evaluators(experiment, mesh, config, sampling)
    lines = check_evaluators(evaluators)
    if runtime.is_first():
        print(*lines, sep="\n", flush=True)
    return OfflineScorer(
        run,
        lambda step: evaluators[experiment.stages.index(experiment.at(step))],
        lambda entry: read(entry, experiment.at(entry.step).model, mesh),
    )


def eval_config(args: argparse.Namespace) -> EvalConfig:
    """gin's `EvalConfig` with the tasks and token sets of --tasks, if any."""
    from jaxllm.evaluation.config import EvalConfig

    config = EvalConfig()
    if args.tasks:
        config = dataclasses.replace(config, tasks=tuple(args.tasks.split(",")), token_sets=())
    return config


def show(run: Run, failed: int) -> int:
    """Print the table of capabilities; return the exit code."""
    from jaxllm.report import terminal

    if runtime.is_first():
        print(terminal.of_run(str(run.path)))
    return 1 if failed else 0


def list_tasks(args: argparse.Namespace) -> int:
    """Print the tasks, mixtures and task families that match --list."""
    cli.load_gin(args, args.model_dir)

    from jaxllm.evaluation import listing

    lines = list(listing.table(eval_config(args), args.list))
    if not lines:
        raise UserError(f"no evaluation task has a name like {args.list}")
    print(*lines, sep="\n")
    return 0


def download(args: argparse.Namespace) -> int:
    """Download benchmark files and list the manual ones; return 1 if any is still missing."""
    cli.load_gin(args, args.model_dir)

    from jaxllm.evaluation.selection import download_files

    done = download_files(eval_config(args))
    print(f"{len(done.downloaded)} files downloaded, {len(done.present)} were there")
    for url in sorted(set(done.manual.values())):
        names = [name for name, where in done.manual.items() if where == url]
        others = f" and {len(names) - 1} more" if len(names) > 1 else ""
        print(f"to get by hand: {names[0]}{others}, from {url or 'nowhere known'}")
    return 1 if done.manual else 0


def _flags() -> argparse.ArgumentParser:
    flags = cli.parser(__doc__ or "")
    flags.add_argument("--model_dir", type=location, metavar="DIR",
                       help="the run, hf:DIR or hf:FILE")  # fmt: skip
    flags.add_argument("--download", action="store_true",
                       help="download files of --tasks (or all), no more")  # fmt: skip
    flags.add_argument("--list", nargs="?", const="", metavar="PATTERN",
                       help="show tasks and the files they need, no more")  # fmt: skip
    flags.add_argument("--steps", metavar="STEP,STEP",
                       help="the checkpoints to score (default: those the run scores)")  # fmt: skip
    flags.add_argument("--tasks", metavar="TASK,TASK",
                       help="what to score them on (default: the run's tasks)")  # fmt: skip
    flags.add_argument("--missing", action="store_true", help="leave out what has been scored")
    flags.add_argument("--follow", action="store_true",
                       help="score new checkpoints until the run has ended")  # fmt: skip
    flags.add_argument("--poll_seconds", type=float, metavar="S",
                       help="of --follow: how often to look (default: 30)")  # fmt: skip
    flags.add_argument("--output", type=location, metavar="DIR",
                       help="of hf:DIR: where its records go (default: runs/<DIR>)")  # fmt: skip
    flags.add_argument("--step", type=int, metavar="N", help="of hf:DIR: its step")
    flags.add_argument("--tokens", type=float, metavar="N", help="of hf:DIR: tokens it has seen")
    runtime.add_host_flags(flags)
    return flags


if __name__ == "__main__":
    cli.run(main)
