"""WinoGrande, `winogrande`: which of two names fills a blank (Sakaguchi et al. 2019, 1907.10641).

Files: EVAL_DIR/winogrande/{train_xl,dev}.jsonl of the authors' release winogrande_1.1; CC BY 4.0.
Partial evaluation (Trinh and Le 2018): each name fills the blank, and the text after it is scored,
so that the contexts differ and the continuation is the same. The dev split, shots drawn from
train_xl. Metric: accuracy; chance 1/2. As lm-evaluation-harness' `winogrande`; the paper fine-tunes
classifiers instead.
"""

from __future__ import annotations

from collections.abc import Iterator

from etils import epath

from jaxllm.errors import UserError
from jaxllm.evals.rows import field, index_of, question, read_rows
from jaxllm.evaluation.download import FileSource
from jaxllm.evaluation.tasks import Choice, FewShot, multiple_choice

SOURCES = (
    FileSource(
        "winogrande/",
        "https://storage.googleapis.com/ai2-mosaic/public/winogrande/winogrande_1.1.zip",
        sha256="3619ab104d8be2977b25c90ff420cb42d491707dcc75362a1e5d22bc082b7318",
        inside="winogrande_1.1/",
    ),
)


def examples(path: epath.Path) -> Iterator[Choice]:
    """The sentences of one file."""
    for row in read_rows(path):
        before, blank, after = field(row, "sentence").partition("_")
        if not blank:
            raise UserError(f"{row.where}: field 'sentence' has no blank (_)")
        names = field(row, "option1"), field(row, "option2")
        yield question(
            row,
            "",
            [f" {after.strip()}"] * 2,
            index_of(row, "answer", ("1", "2")),
            id=row.get("qID", ""),
            contexts=tuple(before + name for name in names),
        )


multiple_choice(
    "winogrande",
    examples,
    domain="commonsense",
    files=("winogrande/dev.jsonl",),
    few_shot=FewShot(examples, ("winogrande/train_xl.jsonl",), exclude_self=True),
    chance=1 / 2,
)
