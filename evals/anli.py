"""Adversarial NLI, `anli_r1`, `anli_r2`, `anli_r3` (Nie et al. 2020, arXiv 1910.14599).

Files: EVAL_DIR/anli/R{1,2,3}/{train,test}.jsonl of the authors' release anli_v1.0; CC BY-NC 4.0
(not for commercial use).
Prompt: the premise, "Question: … True, False, or Neither?", "Answer:"; scored on the three words.
The test split, shots drawn from train. Metric: accuracy; chance 1/3. As lm-evaluation-harness'
tasks of these names.
"""

from __future__ import annotations

from collections.abc import Iterator

from etils import epath

from jaxllm.evals.rows import field, index_of, question, read_rows
from jaxllm.evaluation.download import FileSource
from jaxllm.evaluation.tasks import Choice, FewShot, multiple_choice

SOURCES = (FileSource("anli/", "https://dl.fbaipublicfiles.com/anli/anli_v1.0.zip"),)


def examples(path: epath.Path) -> Iterator[Choice]:
    """The pairs of one file; labels are e(ntailment), n(eutral) and c(ontradiction)."""
    for row in read_rows(path):
        asked = f"Question: {field(row, 'hypothesis')} True, False, or Neither?"
        context = f"{field(row, 'context')}\n{asked}\nAnswer:"
        answer = index_of(row, "label", ("e", "n", "c"))
        options = (" True", " Neither", " False")
        yield question(row, context, options, answer, id=field(row, "uid"))


for part in ("r1", "r2", "r3"):
    multiple_choice(
        f"anli_{part}",
        examples,
        domain="reasoning",
        files=(f"anli/{part.upper()}/test.jsonl",),
        few_shot=FewShot(examples, (f"anli/{part.upper()}/train.jsonl",)),
        chance=1 / 3,
    )
