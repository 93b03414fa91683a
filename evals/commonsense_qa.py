"""CommonsenseQA, `commonsense_qa`: a question and five words (Talmor et al. 2019, 1811.00937).

Files: EVAL_DIR/commonsense_qa/{train,dev}_rand_split.jsonl of the authors' release 1.11; MIT.
Prompt: "Question: …", the options listed as "A. …", "Answer:"; scored on the letters. The dev
split (the test split has no answers), shots drawn from train. Metric: accuracy; chance 1/5.
As lm-evaluation-harness' `commonsense_qa`.
"""

from __future__ import annotations

from collections.abc import Iterator

from etils import epath

from jaxllm.evals.letters import lettered, letters
from jaxllm.evals.rows import field, index_of, objects, question, read_rows
from jaxllm.evaluation.download import FileSource
from jaxllm.evaluation.tasks import Choice, FewShot, multiple_choice

SOURCES = (FileSource("commonsense_qa/", "https://www.tau-nlp.sites.tau.ac.il/commonsenseqa"),)


def examples(path: epath.Path) -> Iterator[Choice]:
    """The questions of one file."""
    for row in read_rows(path):
        asked = field(row, "question", dict)
        choices = objects(asked, "choices")
        answer = index_of(row, "answerKey", [field(choice, "label") for choice in choices])
        options = [field(choice, "text") for choice in choices]
        context = lettered(f"Question: {field(asked, 'stem').strip()}", options, "Answer:")
        yield question(row, context, letters(len(options)), answer, id=field(row, "id"))


multiple_choice(
    "commonsense_qa",
    examples,
    domain="commonsense",
    files=("commonsense_qa/dev_rand_split.jsonl",),
    few_shot=FewShot(examples, ("commonsense_qa/train_rand_split.jsonl",), exclude_self=True),
    chance=1 / 5,
    version="2",
)
