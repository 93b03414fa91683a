"""The tasks of an EvalConfig: definitions, files, limits and few-shot examples.

Nothing heavy is imported, so that a misspelt task or a wrong directory fails immediately.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import random
from collections.abc import Sequence

import numpy as np
from etils import epath

from jaxllm.errors import UserError
from jaxllm.evaluation import download
from jaxllm.evaluation.config import TOKEN_SET, EvalConfig
from jaxllm.evaluation.registry import benchmarks
from jaxllm.evaluation.tasks import OF_RUN, Choice, Example, FewShot, Prompt, Sample, TaskDefinition
from jaxllm.run.records import split_shots

HARNESS_SEED = 1234
MAX_TOKENS = 10_000_000  # of a token set


@dataclasses.dataclass(frozen=True)
class SelectedTask:
    """A task of a run."""

    definition: TaskDefinition  # the declared task
    files: tuple[epath.Path, ...] = ()  # its files, then those of its few-shot examples
    max_examples: int | None = None  # maximum number of examples; None is all
    group: str = ""  # its name in `EvalConfig.tasks`: its own, or that of a mixture
    # of a token set: number of tokens of each document that are scored, at most
    max_tokens: int | None = None
    missing: str = ""  # why there are no files, where EvalConfig.on_unrunnable skips the task

    def of_run(self, sample: Sample | None) -> SelectedTask:
        """The task with examples from the run's training data, if it is on these."""
        if self.definition.kind not in OF_RUN or sample is None:
            return self
        examples = functools.partial(self.definition.examples, sample)
        return dataclasses.replace(
            self, definition=dataclasses.replace(self.definition, examples=examples)
        )

    def read_examples(self) -> list[Example]:
        """Read the examples and add their few-shot examples; an empty id becomes the index."""
        task = self.definition
        if self.missing:
            raise UserError(self.missing)
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

    UserError for an unknown task (the message suggests the closest names), a missing file, a task
    that executes code where that is not allowed, or a token set of no text.
    """
    registry, directory = benchmarks(config.modules), data_dir(config)
    selected: dict[str, SelectedTask] = {}
    for group in config.names:
        size = TOKEN_SET.fullmatch(group)
        for task in registry.load([size[1] if size else group], directory):
            if task.runs_code and not config.run_code:
                raise UserError(
                    f"task {task.name} runs programs that the model writes: allow it with "
                    "--gin.EvalConfig.run_code=True"
                )
            try:
                own = SelectedTask(task, locate(task, config), config.max_examples, group)
            except UserError as error:
                if config.on_unrunnable == "refuse":
                    raise
                own = SelectedTask(task, (), config.max_examples, group, missing=str(error))
            if size:
                own = _token_set(own, int(size[2]), int(size[3]))
            selected.setdefault(own.definition.name, own)
    return selected


def _token_set(task: SelectedTask, documents: int, tokens: int) -> SelectedTask:
    """The token set of a task; UserError if it is no text."""
    of, name = task.definition, f"{task.definition.name}:{documents}x{tokens}"
    if of.kind != "perplexity" or documents * tokens > MAX_TOKENS:
        raise UserError(f"token set {name}: must be held-out text, up to {MAX_TOKENS:,} tokens")
    of = dataclasses.replace(of, name=name, examples=of.documents or of.examples)
    return dataclasses.replace(task, definition=of, max_examples=documents, max_tokens=tokens)


def file_names(task: TaskDefinition, every: bool = False) -> tuple[str, ...]:
    """The files of a task, relative to the evaluation data directory.

    With `every`, those of few-shot examples are included even at 0 shots.
    """
    few_shot = task.few_shot if task.shots or every else None
    return task.files + (few_shot.files if few_shot else ())


def locate(task: TaskDefinition, config: EvalConfig) -> tuple[epath.Path, ...]:
    """The files of a task, or their forms in .gz; UserError if one is missing."""
    found = []
    for name in file_names(task):
        root = _required_data_dir(config, f"task {task.name} reads {name}")
        paths = [path for path in (root / name, root / f"{name}.gz") if path.exists()]
        if not paths:
            origin = benchmarks(config.modules).origin(name)
            if origin == "--download":
                base, _ = split_shots(task.name)
                origin = f"`python -m jaxllm.evaluate --download --tasks={base}` brings it"
            elif origin:
                origin = f"get it {origin}"
            raise UserError(
                f"task {task.name}: no file {root / name}; {origin or 'its origin is unknown'}"
            )
        found.append(paths[0])
    return tuple(found)


def download_files(config: EvalConfig) -> download.DownloadResult:
    """Download the files of the run's tasks, or else of all named tasks, at any number of shots.

    UserError if the directory is not set, a download fails, or a hash is not the pinned one.
    """
    registry = benchmarks(config.modules)
    root = _required_data_dir(config, "--download needs a place")
    names = [TOKEN_SET.sub(r"\1", name) for name in config.names]
    tasks = registry.load(names or registry.names(), root)
    files = dict.fromkeys(name for task in tasks for name in file_names(task, every=True))
    return download.download(tuple(files), root, registry.sources, registry.sha256)


def data_dir(config: EvalConfig) -> epath.Path | None:
    """The evaluation data directory, if set."""
    directory = config.data_dir or os.environ.get("JAXLLM_DATA_DIR")
    return epath.Path(directory) if directory else None


def _required_data_dir(config: EvalConfig, purpose: str) -> epath.Path:
    if directory := data_dir(config):
        return directory
    raise UserError(
        f"{purpose}: set EvalConfig.data_dir (macro EVAL_DIR, or the environment's "
        "JAXLLM_DATA_DIR) to the directory with the evaluation data"
    )


def _subset(examples: list[Example], limit: int | None) -> list[Example]:
    """A fixed random subset, in the file's order (random, because files are often sorted)."""
    if limit is None or limit >= len(examples):
        return examples
    chosen = np.random.RandomState(0).permutation(len(examples))[:limit]
    return [examples[i] for i in sorted(chosen)]


def add_few_shot(
    task: TaskDefinition, examples: Sequence[Example], pool: Sequence[Example]
) -> list[Example]:
    """Add the description and few-shot examples to each of a task's `examples`, in their order.

    Few-shot examples are drawn as in lm-evaluation-harness 0.4 (`api/samplers.py`), so that k-shot
    scores are comparable: one `random.Random(1234)` per task, for its questions in their order.
    `pool` has the candidates; if it is empty, they are the task's own examples. UserError if the
    pool has fewer than `task.shots` examples.
    """
    few_shot = task.few_shot if task.shots else None
    chosen: list[Sequence[int]] = [()] * len(examples)
    texts: list[str] = []
    if few_shot:  # else at 0 shots, or they are part of the contexts
        chosen = _choose(task, few_shot, examples, pool)
        questions = [e for e in pool or examples if isinstance(e, Choice | Prompt)]
        texts = [question.as_shot + few_shot.separator for question in questions]
    return [
        dataclasses.replace(
            example,
            description=example.description or task.description,
            shots=tuple(texts[i] for i in indices),
        )
        if isinstance(example, Choice | Prompt)
        else example
        for example, indices in zip(examples, chosen, strict=True)
    ]


def _choose(
    task: TaskDefinition, few_shot: FewShot, examples: Sequence[Example], pool: Sequence[Example]
) -> list[Sequence[int]]:
    """For each question the indices of its few-shot examples in the pool."""
    own, pool = not pool, pool or examples
    exclude_self = own or few_shot.exclude_self
    if (available := len(pool) - exclude_self) < task.shots:
        raise UserError(
            f"task {task.name}: {task.shots} shots, and only {available} few-shot examples to "
            "choose from"
        )
    indices = range(len(pool))
    if few_shot.order == "first":
        firsts = indices[: task.shots + 1]
        return [
            [i for i in firsts if not (own and i == question)][: task.shots]
            for question in range(len(examples))
        ]
    rng = random.Random(HARNESS_SEED)
    if not exclude_self:
        return [rng.sample(indices, task.shots) for _ in examples]
    chosen: list[Sequence[int]] = []
    for question in examples:
        drawn = [i for i in rng.sample(indices, task.shots + 1) if pool[i] != question]
        if len(drawn) < task.shots:  # duplicates of the question, drawn more than once
            drawn = rng.sample([i for i in indices if pool[i] != question], task.shots)
        chosen.append(drawn[: task.shots])
    return chosen
