"""LAMBADA (OpenAI's form): the last word of a passage that only its whole context gives away."""

from __future__ import annotations

from collections.abc import Iterator

from etils import epath

from evals._rows import read_rows
from jaxllm.evaluation.tasks import Prompt, cloze


def examples(path: epath.Path) -> Iterator[Prompt]:
    """The passage without its last word, and the word after a space."""
    for row in read_rows(path):
        yield Prompt(row["context"], (f" {row['continuation']}",))


cloze("lambada", examples, domain="reading", reads=("lambada/lambada_openai.jsonl.gz",))
