"""AI2's basic skills: short completions that small models come to know one after the other."""

from __future__ import annotations

from collections.abc import Iterator

from etils import epath

from evals._rows import read_rows
from jaxllm.evaluation.tasks import Choice, multiple_choice

DOMAINS = {
    "arithmetic": "math",
    "coding": "code",
    "common_knowledge": "knowledge",
    "logical_reasoning": "reasoning",
    "pattern": "reasoning",
    "string_operations": "reasoning",
}


def examples(path: epath.Path) -> Iterator[Choice]:
    """The question is the beginning of a sentence, and each option its end."""
    for row in read_rows(path):
        options = tuple(f" {text}" for text in row["choices"])
        yield Choice(row["question"], options, row["gold"], row["id"])


for _skill, _domain in DOMAINS.items():
    multiple_choice(
        f"basic_skills_{_skill}",
        examples,
        domain=_domain,
        reads=(f"basic_skills/{_skill}.jsonl.gz",),
    )
