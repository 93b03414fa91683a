"""PIQA, `piqa`: which of two solutions reaches a goal (Bisk et al. 2020, arXiv 1911.11641).

Files: EVAL_DIR/piqa/{train,dev}.jsonl and {train,dev}-labels.lst of the authors' release
physicaliqa-train-dev; AFL-3.0.
Prompt: "Question: …", "Answer:"; scored on the texts of the two solutions. The dev split, shots
drawn from train. Metrics: accuracy, and accuracy_per_char (the harness' acc_norm); chance 1/2.
As lm-evaluation-harness' `piqa`.
"""

from __future__ import annotations

from collections.abc import Iterator

from etils import epath

from jaxllm.evals.rows import field, index_of, question, read_labelled
from jaxllm.evaluation.download import FileSource
from jaxllm.evaluation.tasks import Choice, FewShot, multiple_choice

SOURCES = (
    FileSource(
        "piqa/",
        "https://storage.googleapis.com/ai2-mosaic/public/physicaliqa/physicaliqa-train-dev.zip",
        sha256="54d32a04f59a7e354396f321723c8d7ec35cc6b08506563d8d1ffcc15ce98ddd",
        inside="physicaliqa-train-dev/",
    ),
)


def examples(path: epath.Path, labels: epath.Path) -> Iterator[Choice]:
    """The questions of one file, with the answers from the other."""
    for row in read_labelled(path, labels):
        options = [f" {field(row, name)}" for name in ("sol1", "sol2")]
        context = f"Question: {field(row, 'goal')}\nAnswer:"
        yield question(row, context, options, index_of(row, "label", ("0", "1")))


multiple_choice(
    "piqa",
    examples,
    domain="commonsense",
    files=("piqa/dev.jsonl", "piqa/dev-labels.lst"),
    few_shot=FewShot(examples, ("piqa/train.jsonl", "piqa/train-labels.lst"), exclude_self=True),
    chance=1 / 2,
)
