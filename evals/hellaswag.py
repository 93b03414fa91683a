"""HellaSwag, `hellaswag`: continuing a description (Zellers et al. 2019, arXiv 1905.07830).

Files: EVAL_DIR/hellaswag/hellaswag_{train,val}.jsonl, the folder data/ of rowanz/hellaswag at
commit a29ff8e9a04bba4bd6588223785ce105328adc57; MIT.
Prompt: "<activity>: " and the beginning, without WikiHow's markup ("[title]" becomes ". "); scored
on four endings. The val split, shots drawn from train. Metrics: accuracy, and accuracy_per_char
(the harness' acc_norm, the usually reported one); chance 1/4.
As lm-evaluation-harness' `hellaswag`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from etils import epath

from jaxllm.evals.rows import field, index_of, question, read_rows, texts
from jaxllm.evaluation.download import FileSource, github
from jaxllm.evaluation.tasks import Choice, FewShot, multiple_choice

SOURCES = (
    FileSource(
        "hellaswag/",
        github("rowanz/hellaswag", "a29ff8e9a04bba4bd6588223785ce105328adc57", "data/"),
    ),
)


def clean(text: str) -> str:
    """Strip WikiHow's markup."""
    text = re.sub(r"\[.*?\]", "", text.strip().replace(" [title]", ". "))
    return text.replace("  ", " ")


def examples(path: epath.Path) -> Iterator[Choice]:
    """The descriptions of one file."""
    for row in read_rows(path):
        beginning = f"{field(row, 'ctx_a')} {field(row, 'ctx_b').capitalize()}"
        yield question(
            row,
            clean(f"{field(row, 'activity_label')}: {beginning}"),
            [f" {clean(ending)}" for ending in texts(row, "endings")],
            index_of(row, "label", range(4)),
            id=str(row.get("ind", "")),
        )


multiple_choice(
    "hellaswag",
    examples,
    domain="commonsense",
    files=("hellaswag/hellaswag_val.jsonl",),
    few_shot=FewShot(examples, ("hellaswag/hellaswag_train.jsonl",), exclude_self=True),
    chance=1 / 4,
    version="2",
)
