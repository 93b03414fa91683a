"""ARC (Clark et al. 2018, 1803.05457) and OpenBookQA (Mihaylov et al. 2018, 1809.02789).

`arc_easy`, `arc_challenge`: EVAL_DIR/arc/ARC-{Easy,Challenge}-{Train,Test}.jsonl of AI2's release
ARC-V1-Feb2018-2; CC BY-SA 4.0. Prompt: "Question: …", "Answer:".
`openbookqa`: EVAL_DIR/openbookqa/{train,test}.jsonl, the folder Data/Main of AI2's release
OpenBookQA-V1-Sep2018; Apache-2.0. Prompt: the question alone, without its supporting fact.
Both are scored on the texts of the options, not on their letters; the test split, shots drawn from
train. Metrics: accuracy, and accuracy_per_char (the harness' acc_norm); chance: 1 / options (four,
except in a few questions of ARC). As lm-evaluation-harness' tasks of these names.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator

from etils import epath

from jaxllm.evals.rows import field, index_of, objects, question, read_rows
from jaxllm.evaluation.download import FileSource
from jaxllm.evaluation.tasks import Choice, FewShot, multiple_choice

SOURCES = (
    *(
        FileSource(
            f"arc/ARC-{level}-",
            "https://ai2-public-datasets.s3-us-west-2.amazonaws.com/arc/ARC-V1-Feb2018.zip",
            sha256="6d2d5ab50b2ceec6ba5f79c921be77cf2de712ea25a2b3f4fff3acc101cecfa0",
            inside=f"ARC-V1-Feb2018-2/ARC-{level}/ARC-{level}-",
        )
        for level in ("Easy", "Challenge")
    ),
    FileSource(
        "openbookqa/",
        "https://s3-us-west-2.amazonaws.com/ai2-website/data/OpenBookQA-V1-Sep2018.zip",
        sha256="82368cf05df2e3b309c17d162e10b888b4d768fad6e171e0a041954c8553be46",
        inside="OpenBookQA-V1-Sep2018/Data/Main/",
    ),
)


def examples(path: epath.Path, *, prompt: str) -> Iterator[Choice]:
    """The questions of one file, formatted with `prompt`."""
    for row in read_rows(path):
        asked = field(row, "question", dict)
        choices = objects(asked, "choices")
        answer = index_of(row, "answerKey", [field(choice, "label") for choice in choices])
        options = [f" {field(choice, 'text')}" for choice in choices]
        context = prompt.format(field(asked, "stem"))
        yield question(row, context, options, answer, id=field(row, "id"))


_arc = functools.partial(examples, prompt="Question: {}\nAnswer:")
_openbookqa = functools.partial(examples, prompt="{}")

for level in ("Easy", "Challenge"):
    multiple_choice(
        f"arc_{level.lower()}",
        _arc,
        domain="commonsense",
        files=(f"arc/ARC-{level}-Test.jsonl",),
        few_shot=FewShot(_arc, (f"arc/ARC-{level}-Train.jsonl",)),
    )
multiple_choice(
    "openbookqa",
    _openbookqa,
    domain="commonsense",
    files=("openbookqa/test.jsonl",),
    few_shot=FewShot(_openbookqa, ("openbookqa/train.jsonl",)),
    version="2",
)
