"""From the names in an EvalConfig to declared tasks and the files they read.

Nothing heavy is imported, so that a misspelt task or a wrong directory is answered at once.
"""

from __future__ import annotations

from etils import epath

import evals
from jaxllm.errors import UserError
from jaxllm.evaluation.config import EvalConfig
from jaxllm.evaluation.tasks import TaskDefinition


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
    if config.data_dir is None:
        raise UserError(
            f"task {task.name} reads {names[0]}: set EvalConfig.data_dir (macro EVAL_DIR) "
            "to the directory with the evaluation data"
        )
    return tuple(_find(task.name, epath.Path(config.data_dir) / name) for name in names)


def _find(task: str, path: epath.Path) -> epath.Path:
    """`path` as it is named, else packed (.gz)."""
    for candidate in (path, path.with_name(f"{path.name}.gz")):
        if candidate.exists():
            return candidate
    raise UserError(f"task {task}: no file {path}; is EVAL_DIR the right directory?")
