"""The tasks of an EvalConfig: definitions, files and limits.

Nothing heavy is imported, so that a misspelt task or a wrong directory is answered at once.
"""

from __future__ import annotations

import dataclasses
import os

import numpy as np
from etils import epath

from jaxllm.errors import UserError
from jaxllm.evaluation import download
from jaxllm.evaluation.config import EvalConfig
from jaxllm.evaluation.registry import Registry, benchmarks
from jaxllm.evaluation.shots import add_few_shot
from jaxllm.evaluation.tasks import Example, TaskDefinition, split_shots


@dataclasses.dataclass(frozen=True)
class SelectedTask:
    """A task of a run.

    Attributes:
      definition: the declared task.
      files: its files, then those of its few-shot examples.
      max_examples: at most so many examples; None is all.
      group: the name in `EvalConfig.tasks` that it comes from: its own, or a mixture's.
    """

    definition: TaskDefinition
    files: tuple[epath.Path, ...] = ()
    max_examples: int | None = None
    group: str = ""

    def read_examples(self) -> list[Example]:
        """The examples with their few-shot examples; an id that is empty becomes its number."""
        task = self.definition
        own, shared = self.files[: len(task.files)], self.files[len(task.files) :]
        pool = task.few_shot.pool if task.few_shot and task.shots else None
        examples = add_few_shot(
            task, list(task.examples(*own)), list(pool(*shared)) if pool else []
        )
        named = [
            example if example.id else dataclasses.replace(example, id=str(number))
            for number, example in enumerate(examples)
        ]
        return _subset(named, self.max_examples)


def select(config: EvalConfig) -> dict[str, SelectedTask]:
    """The tasks of a run by name.

    Raises:
      UserError: no such task, with the nearest names; a file is not there; or a task runs code
        and must not.
    """
    registry, directory = benchmarks(config.modules), data_dir(config)
    selected: dict[str, SelectedTask] = {}
    for group in config.tasks:
        definitions = registry.load([group], directory)
        limits = [config.max_examples]
        if config.max_mixture_examples and (group,) != tuple(t.name for t in definitions):
            limits.append(max(1, config.max_mixture_examples // len(definitions)))
        limit = min((n for n in limits if n is not None), default=None)
        for task in definitions:
            if task.runs_code and not config.run_code:
                raise UserError(
                    f"task {task.name} runs programs that the model writes: allow it with "
                    "--gin.EvalConfig.run_code=True"
                )
            found = SelectedTask(task, locate(task, config), limit, group)
            selected.setdefault(task.name, found)
    return selected


def file_names(task: TaskDefinition, every: bool = False) -> tuple[str, ...]:
    """The files that a task reads, relative to the evaluation data directory.

    With `every` also those of few-shot examples that its number of shots does not ask for.
    """
    few_shot = task.few_shot if task.shots or every else None
    return task.files + (few_shot.files if few_shot else ())


def locate(task: TaskDefinition, config: EvalConfig) -> tuple[epath.Path, ...]:
    """The files of a task: its own, then those of its few-shot examples.

    Raises:
      UserError: the directory is not set, or a file is not there.
    """
    names = file_names(task)
    if not names:
        return ()
    root = _required_data_dir(config, f"task {task.name} reads {names[0]}")
    return tuple(_find(task.name, root, name, benchmarks(config.modules)) for name in names)


def download_files(config: EvalConfig) -> download.DownloadResult:
    """Downloads the files of the run's tasks, or of all that have a name, at any number of shots.

    Raises:
      UserError: the directory is not set, or a file cannot be had or is another than was pinned.
    """
    registry = benchmarks(config.modules)
    root = _required_data_dir(config, "--download needs a place")
    tasks = registry.load(config.tasks or registry.names(), root)
    names = dict.fromkeys(name for task in tasks for name in file_names(task, every=True))
    return download.download(tuple(names), root, registry.sources, registry.sha256)


def data_dir(config: EvalConfig) -> epath.Path | None:
    """The evaluation data directory, where one is set."""
    directory = config.data_dir or os.environ.get("JAXLLM_DATA_DIR")
    return epath.Path(directory) if directory else None


def _required_data_dir(config: EvalConfig, purpose: str) -> epath.Path:
    directory = data_dir(config)
    if directory is None:
        raise UserError(
            f"{purpose}: set EvalConfig.data_dir (macro EVAL_DIR, or the environment's "
            "JAXLLM_DATA_DIR) to the directory with the evaluation data"
        )
    return directory


def _find(task: str, root: epath.Path, name: str, registry: Registry) -> epath.Path:
    """The file as it is named, else compressed (.gz)."""
    for path in (root / name, root / f"{name}.gz"):
        if path.exists():
            return path
    source = download.source_of(name, registry.sources)
    if source and (source.sha256 or download.pinned(name, registry.sha256)):
        base, _ = split_shots(task)
        way = f"`python -m jaxllm.evaluate --download --tasks={base}` brings it"
    else:
        way = f"get it by hand from {source.url}" if source else "it comes from nowhere known"
    raise UserError(f"task {task}: no file {root / name}; {way}")


def _subset(examples: list[Example], limit: int | None) -> list[Example]:
    """The same random `limit` examples every time, in their own order (files are often sorted)."""
    if limit is None or limit >= len(examples):
        return examples
    chosen = np.random.RandomState(0).permutation(len(examples))[:limit]
    return [examples[i] for i in sorted(chosen)]
