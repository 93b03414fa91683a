"""Any multiple-choice task.json of BIG-bench, as `bigbench_<name>`.

The file is EVAL_DIR/bigbench/multiple_choice/<name>.task.json.gz. Prompts are put together as
BIG-bench's own `json_task.py` does, zero-shot; choices are listed in the order of the file.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from etils import epath

from evals._rows import read_json
from jaxllm.errors import UserError
from jaxllm.evaluation.tasks import Choice, TaskDefinition, multiple_choice

PREFIX = "bigbench_"
DOMAINS = {
    "disambiguation_qa": "language",
    "implicatures": "language",
    "presuppositions_as_nli": "language",
    "movie_recommendation": "knowledge",
    "ruin_names": "knowledge",
    "sports_understanding": "knowledge",
    "causal_judgment": "commonsense",
}


def examples(path: epath.Path) -> Iterator[Choice]:
    """The questions of a task.json.

    Raises:
      UserError: the task is not multiple choice with one best answer.
    """
    task = read_json(path)
    for number, example in enumerate(task["examples"]):
        if "target_scores" not in example:
            raise UserError(f"{path}: example {number} has no target_scores: not multiple choice")
        scores = {**example["target_scores"]}
        best = [choice for choice, score in scores.items() if score == max(scores.values())]
        if len(best) != 1:
            raise UserError(f"{path}: example {number} has {len(best)} best answers")
        yield Choice(
            context(task, example["input"], tuple(scores)),
            tuple(scores),
            tuple(scores).index(best[0]),
            str(number),
        )


def context(task: dict[str, Any], question: str, choices: tuple[str, ...]) -> str:
    """Task prefix, question, choices where the task lists them, and the cue for the answer."""
    text = task.get("task_prefix", "") + task.get("example_input_prefix", "\nQ: ") + question
    if task.get("append_choices_to_input", True):
        prefix = task.get("choice_prefix", "\n  choice: ")
        text += "".join(prefix + choice for choice in choices)
    return text + task.get("example_output_prefix", "\nA: ")


def declare(name: str) -> TaskDefinition:
    """The task called `name`, which begins with PREFIX."""
    task = name.removeprefix(PREFIX)
    return multiple_choice(
        name,
        examples,
        domain=DOMAINS.get(task, "reasoning"),
        reads=(f"bigbench/multiple_choice/{task}.task.json.gz",),
    )


FAMILIES = {PREFIX: declare}
