"""Arithmetic: AI2's four-way questions, and llm-foundry's completions."""

from __future__ import annotations

from collections.abc import Iterator

from etils import epath

from evals._rows import read_rows
from jaxllm.evaluation.tasks import Choice, Prompt, cloze, multiple_choice


def basic(path: epath.Path) -> Iterator[Choice]:
    """`Question: Calculate 5 + 91 =` and four numbers, prompted as OLMo's harness does."""
    for row in read_rows(path):
        yield Choice(
            f"Question: {row['question']}\nAnswer:",
            tuple(f" {text}" for text in row["choices"]["text"]),
            row["choices"]["label"].index(row["answerKey"]),
            row["id"],
        )


def simple(path: epath.Path) -> Iterator[Prompt]:
    """`25 - 759 =`: is the number the model's first choice, token by token?"""
    for row in read_rows(path):
        yield Prompt(row["context"], (row["continuation"],))


multiple_choice(
    "basic_arithmetic", basic, domain="math", reads=("basic_arithmetic/validation.jsonl.gz",)
)
for _form in ("withspaces", "nospaces"):
    cloze(
        f"simple_arithmetic_{_form}",
        simple,
        domain="math",
        reads=(f"simple_arithmetic/simple_arithmetic_{_form}.jsonl.gz",),
    )
