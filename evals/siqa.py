"""Social IQa, `siqa`: motives, reactions and intentions in short stories (Sap et al. 2019).

Files: EVAL_DIR/siqa/{train,dev}.jsonl and {train,dev}-labels.lst of AI2's release
socialiqa-train-dev; CC BY 4.0 (arXiv 1904.09728).
Prompt: "Q: …", the story and the question, "A:"; scored on the texts of three answers. The dev
split, shots drawn from train. Metric: accuracy; chance 1/3. As lm-evaluation-harness' `social_iqa`.
"""

from __future__ import annotations

from collections.abc import Iterator

from etils import epath

from jaxllm.evals.rows import field, index_of, question, read_labelled
from jaxllm.evaluation.download import FileSource
from jaxllm.evaluation.tasks import Choice, FewShot, multiple_choice

SOURCES = (
    FileSource(
        "siqa/",
        "https://storage.googleapis.com/ai2-mosaic/public/socialiqa/socialiqa-train-dev.zip",
    ),
)


def examples(path: epath.Path, labels: epath.Path) -> Iterator[Choice]:
    """The questions of one file, with the answers from the other."""
    for row in read_labelled(path, labels):
        context = f"Q: {field(row, 'context')} {field(row, 'question')}\nA:"
        options = [f" {field(row, f'answer{letter}')}" for letter in "ABC"]
        yield question(row, context, options, index_of(row, "label", ("1", "2", "3")))


multiple_choice(
    "siqa",
    examples,
    domain="commonsense",
    files=("siqa/dev.jsonl", "siqa/dev-labels.lst"),
    few_shot=FewShot(examples, ("siqa/train.jsonl", "siqa/train-labels.lst"), exclude_self=True),
    chance=1 / 3,
    version="2",
)
