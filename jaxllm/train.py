"""Trains a model, scores every checkpoint, and shows how its capabilities grew.

    python -m jaxllm.train --gin_file=quickstart.gin --gin.MODEL_DIR=runs/mine

Start it again after whatever stopped it, and it goes on from the newest checkpoint. SIGTERM saves
and ends it with exit code 0.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from jaxllm import cli

if TYPE_CHECKING:
    from jax.sharding import Mesh

    from jaxllm.evaluation.config import EvalConfig
    from jaxllm.training.experiment import Experiment
    from jaxllm.training.loop import Outcome


def main(argv: Sequence[str] | None = None) -> int:
    """Flags and gin in, a trained and scored run out."""
    args = cli.parse(cli.parser(__doc__ or ""), argv)
    cli.load_gin(args)

    from jaxllm.checkpoints.config import CheckpointConfig
    from jaxllm.checkpoints.manager import check_writable
    from jaxllm.data.config import DataConfig
    from jaxllm.models.config import ModelConfig
    from jaxllm.sharding.mesh import MeshConfig, make_mesh
    from jaxllm.training.config import OptimizerConfig, ScheduleConfig, TrainConfig
    from jaxllm.training.experiment import Experiment

    experiment = Experiment(
        model=ModelConfig(),
        data=DataConfig(),
        train=TrainConfig(),
        optimizer=OptimizerConfig(),
        schedule=ScheduleConfig(),
        checkpoints=CheckpointConfig(),
    )
    join_hosts(experiment.train.coordinator)
    check_writable(experiment.model_dir, 0)
    mesh = make_mesh(MeshConfig())
    outcome = run(experiment, mesh)
    print(timing(outcome))
    if not outcome.finished:
        print(f"stopped at step {outcome.step} and saved: the same command goes on from there")
        return 0
    return 0


def join_hosts(coordinator: str | None) -> None:
    """Joins the hosts of a pod: 'auto' on TPU pods and Slurm, or process 0's address:port.

    The address needs the environment's JAX_PROCESS_ID and JAX_NUM_PROCESSES as well.
    """
    import jax

    if coordinator == "auto":
        jax.distributed.initialize()
    elif coordinator:
        jax.distributed.initialize(
            coordinator,
            num_processes=int(os.environ["JAX_NUM_PROCESSES"]),
            process_id=int(os.environ["JAX_PROCESS_ID"]),
        )


def run(experiment: Experiment, mesh: Mesh) -> Outcome:
    """Prepares what is missing, then trains and scores."""
    import jax

    from jaxllm.data.loader import Loader, open_source
    from jaxllm.evaluation.config import EvalConfig
    from jaxllm.training.loop import train

    source = open_source(experiment.data)
    tasks = EvalConfig()
    first = jax.process_index() == 0
    if first:
        write_config(experiment.model_dir)
    return train(
        experiment,
        mesh,
        source,
        lambda start: Loader(
            source,
            experiment.data.batch_size,
            start,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
        ),
        evaluator=make_evaluator(experiment, mesh, tasks) if tasks.tasks else None,
    )


def make_evaluator(experiment: Experiment, mesh: Mesh, config: EvalConfig) -> Any:
    """Scores the run's tasks with its vocabulary, into its trajectory store."""
    from jaxllm.data.vocabularies import build_vocabulary
    from jaxllm.evaluation.evaluator import Evaluator
    from jaxllm.trajectory.store import TrajectoryStore

    return Evaluator(
        config,
        experiment.model,
        build_vocabulary(experiment.data),
        mesh,
        TrajectoryStore(experiment.model_dir),
        experiment.run_info,
    )


def write_config(model_dir: str) -> None:
    """MODEL_DIR/config.gin: what this process does, defaults included."""
    from etils import epath

    import gin
    from jaxllm.checkpoints.jsonl import replace_text

    replace_text(epath.Path(model_dir) / "config.gin", gin.operative_config_str())


def timing(outcome: Outcome) -> str:
    """Where the time of this process went, in one line."""
    from jaxllm.training.progress import duration

    seconds = outcome.seconds
    parts = {
        "steps": seconds.steps - seconds.data,
        "evaluation": seconds.evaluation,
        "checkpoints": seconds.checkpoint,
        "waiting for data": seconds.data,
        "start": seconds.setup,
    }
    shares = ", ".join(f"{name} {part / seconds.wall:.1%}" for name, part in parts.items())
    return f"step {outcome.step} after {duration(seconds.wall)}: {shares}"


if __name__ == "__main__":
    cli.run(main)
