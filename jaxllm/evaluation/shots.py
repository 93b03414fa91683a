"""Few-shot examples of prompts.

They are drawn as in lm-evaluation-harness 0.4 (`api/samplers.py`), so that k-shot scores are
comparable: one `random.Random(1234)` per task, for its questions in their order.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Sequence

from jaxllm.errors import UserError
from jaxllm.evaluation.tasks import Document, Example, FewShot, Question, TaskDefinition

HARNESS_SEED = 1234


def add_few_shot(
    task: TaskDefinition, examples: Sequence[Example], pool: Sequence[Example]
) -> list[Example]:
    """Add the description and few-shot examples to each example of `task`.

    Args:
      task: the task; sets their number and selection.
      examples: all of the task's examples, in their order.
      pool: candidates; empty if the task's own examples are the pool.

    Raises:
      UserError: the pool has fewer than `task.shots` examples.
    """
    few_shot = task.few_shot if task.shots else None
    if few_shot is None:  # 0 shots, or they are part of the task's contexts
        chosen: list[list[int]] = [[] for _ in examples]
    else:
        chosen = _choose(task, few_shot, examples, pool)
    shown = [_as_shot(example) for example in pool or examples] if few_shot else []
    separator = few_shot.separator if few_shot else ""
    return [
        example
        if isinstance(example, Document)
        else dataclasses.replace(
            example,
            description=example.description or task.description,
            shots=tuple(shown[i] + separator for i in numbers),
        )
        for example, numbers in zip(examples, chosen, strict=True)
    ]


def _choose(
    task: TaskDefinition, few_shot: FewShot, examples: Sequence[Example], pool: Sequence[Example]
) -> list[list[int]]:
    """For each question the indices of its few-shot examples in the pool."""
    own, pool = not pool, pool or examples
    exclude_self = own or few_shot.exclude_self
    available = len(pool) - exclude_self
    if available < task.shots:
        raise UserError(
            f"task {task.name}: {task.shots} shots, and only {available} few-shot examples to "
            "choose from"
        )
    if few_shot.order == "first":
        return [
            [i for i in range(task.shots + 1) if not own or i != question][: task.shots]
            for question in range(len(examples))
        ]
    rng = random.Random(HARNESS_SEED)
    numbers = range(len(pool))
    if not exclude_self:
        return [rng.sample(numbers, task.shots) for _ in examples]
    chosen = []
    for question in examples:
        drawn = [i for i in rng.sample(numbers, task.shots + 1) if pool[i] != question]
        if len(drawn) < task.shots:  # duplicates of the question, drawn more than once
            drawn = rng.sample([i for i in numbers if pool[i] != question], task.shots)
        chosen.append(drawn[: task.shots])
    return chosen


def _as_shot(example: Example) -> str:
    assert not isinstance(example, Document), "documents have no solution to show"
    question: Question = example
    return question.as_shot
