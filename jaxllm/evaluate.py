"""Scores the checkpoints that a run has saved, as the run itself does.

    python -m jaxllm.evaluate --model_dir=runs/mine
    python -m jaxllm.evaluate --model_dir=runs/mine --steps=100,200 --tasks=lambada,piqa \\
        --gin.EvalConfig.data_dir=data/evals

The model, the data and the tasks are those of MODEL_DIR/config.gin, unless gin flags say
otherwise. Records go to MODEL_DIR/trajectory, in place of earlier ones of the same checkpoint and
task; for the run's own tasks they are bitwise the same.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from jaxllm import cli
from jaxllm.errors import UserError

if TYPE_CHECKING:
    from jax.sharding import Mesh

    from jaxllm.checkpoints.manifest import Entry
    from jaxllm.evaluation.evaluator import Evaluator
    from jaxllm.models.config import ModelConfig


def main(argv: Sequence[str] | None = None) -> int:
    """Flags and gin in, records and the table of capabilities out."""
    flags = cli.parser(__doc__ or "")
    flags.add_argument("--model_dir", required=True, metavar="DIR", help="the run")
    flags.add_argument(
        "--steps", metavar="STEP,STEP",
        help="the checkpoints to score (default: all but those saved by a preemption)",
    )  # fmt: skip
    flags.add_argument(
        "--tasks", metavar="TASK,TASK", help="what to score them on (default: the run's tasks)"
    )
    flags.add_argument(
        "--missing", action="store_true", help="leave out what has been scored already"
    )
    args = cli.parse(flags, argv)
    load_run(args)

    from jaxllm.checkpoints.manager import available
    from jaxllm.evaluation.config import EvalConfig
    from jaxllm.evaluation.resolve import resolve
    from jaxllm.sharding.mesh import MeshConfig, make_mesh
    from jaxllm.training.config import TrainConfig

    config = EvalConfig()
    if args.tasks:
        config = dataclasses.replace(config, tasks=tuple(args.tasks.split(",")))
    if not config.tasks:
        raise UserError("the run has no evaluation tasks: name some with --tasks=TASK,TASK")
    resolve(config)
    entries = select(available(args.model_dir), args.steps, args.model_dir)

    from jaxllm.train import join_hosts

    # Orbax warns about what it does not find in a checkpoint's item; errors come as errors.
    logging.getLogger("absl").setLevel(logging.ERROR)
    join_hosts(TrainConfig().coordinator)
    mesh = make_mesh(MeshConfig())
    failed = score(args.model_dir, entries, config, mesh, missing_only=args.missing)

    from jaxllm.report import terminal

    print(terminal.of_run(args.model_dir))
    return 1 if failed else 0


def load_run(args: Any) -> None:
    """Parses MODEL_DIR/config.gin, then the gin flags of the command line.

    Raises:
      UserError: the directory holds no run.
    """
    from etils import epath

    path = epath.Path(args.model_dir) / "config.gin"
    if not path.exists():
        raise UserError(f"{args.model_dir} is no run: it has no config.gin")
    cli.load_gin(args, [str(path)])


def select(entries: Sequence[Entry], steps: str | None, model_dir: str) -> list[Entry]:
    """The checkpoints to score: those of `steps`, or all that the run itself would score.

    Raises:
      UserError: there are none, or a step has no checkpoint.
    """
    if steps is None:
        chosen = [entry for entry in entries if entry.kind != "preempted"]
        if not chosen:
            raise UserError(f"{model_dir} has no checkpoints to score")
        return chosen
    by_step = {entry.step: entry for entry in entries}
    try:
        wanted = [int(step) for step in steps.split(",")]
    except ValueError as error:
        raise UserError(f"--steps={steps}: write numbers, as --steps=100,200") from error
    for step in wanted:
        if step not in by_step:
            known = ", ".join(str(entry.step) for entry in entries) or "none"
            raise UserError(f"{model_dir} has no checkpoint of step {step}; it has {known}")
    return [by_step[step] for step in wanted]


def score(
    model_dir: str, entries: Sequence[Entry], config: Any, mesh: Mesh, missing_only: bool
) -> int:
    """Scores checkpoints on the tasks of `config`; returns how many (checkpoint, task) failed."""
    from jaxllm.checkpoints.manager import restore_model
    from jaxllm.models.config import ModelConfig

    model = ModelConfig()
    evaluator = make_evaluator(model_dir, model, config, mesh)
    abstract = abstract_params(model, mesh)
    failed = 0
    for entry in entries:
        tasks = evaluator.missing(entry.step) if missing_only else config.tasks
        if not tasks:
            continue
        params = restore_model(model_dir, entry.step, abstract)
        for task in tasks:
            records = evaluator.evaluate(
                params, entry.step, entry.tokens, entry.flops, tasks=(task,)
            )
            main = next(record for record in records if record.primary)
            failed += main.status != "ok"
            print(describe(main))
    return failed


def describe(record: Any) -> str:
    """One line for what a task gave at a checkpoint."""
    head = f"step {record.step}  {record.task}"
    if record.status != "ok":
        return f"{head}  failed: {record.status}"
    return (
        f"{head}  {record.metric} {record.value:.4f} ± {record.stderr:.4f}  "
        f"n {record.n}  {record.seconds:.1f} s"
    )


def make_evaluator(model_dir: str, model: ModelConfig, config: Any, mesh: Mesh) -> Evaluator:
    """The evaluator that the run in `model_dir` has."""
    from jaxllm.checkpoints.config import CheckpointConfig
    from jaxllm.data import corpora
    from jaxllm.data.config import DataConfig
    from jaxllm.train import make_evaluator as evaluator_of
    from jaxllm.training.config import OptimizerConfig, ScheduleConfig, TrainConfig
    from jaxllm.training.experiment import Experiment

    experiment = Experiment(
        model=model,
        data=DataConfig(),
        train=dataclasses.replace(TrainConfig(), model_dir=model_dir),
        optimizer=OptimizerConfig(),
        schedule=ScheduleConfig(),
        checkpoints=CheckpointConfig(),
    )
    corpora.resolve(experiment.data)  # tasks on the run's own corpora look for them there
    return evaluator_of(experiment, mesh, config)


def abstract_params(model: ModelConfig, mesh: Mesh) -> Any:
    """The parameters' shapes with their shardings on `mesh`, without boxes."""
    import flax.linen as nn
    import jax

    from jaxllm.models import decoder
    from jaxllm.sharding.rules import param_shardings

    boxed = decoder.abstract_params(model)
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        nn.unbox(boxed),
        param_shardings(mesh, boxed),
    )


if __name__ == "__main__":
    cli.run(main)
