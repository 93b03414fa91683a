"""Few-shot examples of prompts.

They are drawn as in lm-evaluation-harness 0.4 (`api/samplers.py`), so that k-shot scores are
comparable: one `random.Random(1234)` per task, for its questions in their order.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Sequence

from jaxllm.errors import UserError
from jaxllm.evaluation.tasks import Document, Example, FewShot, TaskDefinition

HARNESS_SEED = 1234


def add_few_shot(
    task: TaskDefinition, examples: Sequence[Example], pool: Sequence[Example]
) -> list[Example]:
    """Add the description and few-shot examples to each of a task's `examples`, in their order.

    Args:
      task: sets the number and selection of few-shot examples.
      examples: all of the task's examples.
      pool: candidates; empty if the task's own examples are the pool.

    Raises:
      UserError: the pool has fewer than `task.shots` examples.
    """
    few_shot = task.few_shot if task.shots else None
    chosen = [()] * len(examples)  # at 0 shots, or where they are part of the contexts
    texts: list[str] = []
    if few_shot:
        chosen = _choose(task, few_shot, examples, pool)
        questions = [e for e in pool or examples if not isinstance(e, Document)]
        texts = [question.as_shot + few_shot.separator for question in questions]
    return [
        example
        if isinstance(example, Document)
        else dataclasses.replace(
            example,
            description=example.description or task.description,
            shots=tuple(texts[i] for i in indices),
        )
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
