"""BoolQ, `boolq`: yes/no questions about a passage (Clark et al. 2019, arXiv 1905.10044).

Files: EVAL_DIR/superglue/BoolQ/{train,val}.jsonl, from SuperGLUE's archive of version 2 (its
passages begin with their title, unlike those of google-research-datasets/boolean-questions);
CC BY-SA 3.0. The val split, 3,270 questions; shots drawn from train.
Prompt: the passage, "Question: …?", "Answer:"; scored on no and yes. Metric: accuracy; chance 1/2
(62 % are yes). As lm-evaluation-harness' `boolq`.
"""

from __future__ import annotations

from collections.abc import Iterator

from etils import epath

from jaxllm.evals.rows import field, index_of, question, read_rows
from jaxllm.evaluation.download import FileSource
from jaxllm.evaluation.tasks import Choice, FewShot, multiple_choice

SOURCES = (
    FileSource(
        "superglue/BoolQ/",
        "https://dl.fbaipublicfiles.com/glue/superglue/data/v2/BoolQ.zip",
        sha256="853fbe7922f70c59629f06a39e8d9ca440c3d740e760fd3b87a5ddf3dcba2436",
        inside="BoolQ/",
    ),
)


def examples(path: epath.Path) -> Iterator[Choice]:
    """The questions of one file."""
    for row in read_rows(path):
        context = f"{field(row, 'passage')}\nQuestion: {field(row, 'question')}?\nAnswer:"
        yield question(row, context, (" no", " yes"), index_of(row, "label", (False, True)))


multiple_choice(
    "boolq",
    examples,
    domain="reading",
    files=("superglue/BoolQ/val.jsonl",),
    few_shot=FewShot(examples, ("superglue/BoolQ/train.jsonl",), exclude_self=True),
    chance=1 / 2,
    version="2",
)
