"""From the names in an EvalConfig to declared tasks and the files they read.

Nothing heavy is imported, so that a misspelt task or a wrong directory is answered at once.
"""

from __future__ import annotations

import os

from etils import epath

from jaxllm import evals
from jaxllm.errors import UserError
from jaxllm.evals._sums import SUMS
from jaxllm.evaluation import download
from jaxllm.evaluation.config import EvalConfig
from jaxllm.evaluation.download import Fetched
from jaxllm.evaluation.tasks import TaskDefinition, split_shots


def resolve(config: EvalConfig) -> dict[str, tuple[TaskDefinition, tuple[epath.Path, ...]]]:
    """The tasks of a run by name, each with its files.

    Raises:
      UserError: no such task, with the nearest names; a file is not there; or a task runs code
        and must not.
    """
    tasks = evals.load(config.tasks)
    for task in tasks:
        if task.runs_code and not config.run_code:
            raise UserError(
                f"task {task.name} runs programs that the model writes: allow it with "
                "--gin.EvalConfig.run_code=True"
            )
    return {task.name: (task, files(task, config)) for task in tasks}


def files(task: TaskDefinition, config: EvalConfig) -> tuple[epath.Path, ...]:
    """Where the files of a task are: those that it reads, then those of its solved examples.

    Raises:
      UserError: the directory is not set, or a file is not there.
    """
    names = task.reads + (task.few_shot.reads if task.few_shot and task.shots else ())
    if not names:
        return ()
    root = _directory(config, f"task {task.name} reads {names[0]}")
    return tuple(_find(task.name, root, name) for name in names)


def download_files(config: EvalConfig) -> Fetched:
    """Fetches the files of the run's tasks, or of all that have a name, at any number of shots.

    Raises:
      UserError: the directory is not set, or a file cannot be had or is another than was pinned.
    """
    root = _directory(config, "--download needs a place")
    wanted = config.tasks or tuple(n for n in evals.names() if not n.endswith("…"))
    names = dict.fromkeys(
        name
        for task in evals.load(wanted)
        for name in task.reads + (task.few_shot.reads if task.few_shot else ())
    )
    return download.fetch(tuple(names), root, evals.sources(), SUMS)


def _directory(config: EvalConfig, what_for: str) -> epath.Path:
    directory = config.data_dir or os.environ.get("JAXLLM_DATA_DIR")
    if not directory:
        raise UserError(
            f"{what_for}: set EvalConfig.data_dir (macro EVAL_DIR, or the environment's "
            "JAXLLM_DATA_DIR) to the directory with the evaluation data"
        )
    return epath.Path(directory)


def _find(task: str, root: epath.Path, name: str) -> epath.Path:
    """The file as it is named, else packed (.gz)."""
    for path in (root / name, root / f"{name}.gz"):
        if path.exists():
            return path
    source = download.source_of(name, evals.sources())
    if source and (source.sha256 or download.packed(name, SUMS)):
        base, _ = split_shots(task)
        way = f"`python -m jaxllm.evaluate --download --tasks={base}` brings it"
    else:
        way = f"get it by hand from {source.url}" if source else "it comes from nowhere known"
    raise UserError(f"task {task}: no file {root / name}; {way}")
