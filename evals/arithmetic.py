"""Arithmetic expressions: `basic_arithmetic`, `simple_arithmetic_{withspaces,nospaces}`.

basic_arithmetic: EVAL_DIR/basic_arithmetic/validation.jsonl, AI2's allenai/basic_arithmetic, from
  olmo_data/hf_datasets of allenai/OLMo at commit 59a53e3f68e546330ca5a99ec626e58f9ab96494;
  Apache-2.0. 3,000 problems of one to five digits with four options; "Question: Calculate 5 + 91
  =", "Answer:", as in OLMo's in-loop evaluation. Metric: accuracy; chance 1/4.
simple_arithmetic: EVAL_DIR/simple_arithmetic/simple_arithmetic_{withspaces,nospaces}.jsonl, the
  folder scripts/eval/local_data/symbolic_problem_solving of mosaicml/llm-foundry at commit
  8c8dd48f72168c5d51e2f7b151595892a8fba43d; Apache-2.0. 1,000 expressions to complete. Metric:
  exact_match, every token of the number is the argmax; chance 0.
lm-evaluation-harness has neither.
"""

from __future__ import annotations

from collections.abc import Iterator

from etils import epath

from jaxllm.evals.rows import field, index_of, question, read_rows, texts
from jaxllm.evaluation.download import FileSource, github
from jaxllm.evaluation.tasks import Choice, FewShot, Prompt, cloze, multiple_choice

SOURCES = (
    FileSource(
        "simple_arithmetic/",
        github(
            "mosaicml/llm-foundry",
            "8c8dd48f72168c5d51e2f7b151595892a8fba43d",
            "scripts/eval/local_data/symbolic_problem_solving/",
        ),
    ),
    FileSource(
        "basic_arithmetic/", "https://github.com/allenai/OLMo/tree/main/olmo_data/hf_datasets"
    ),
)


def basic(path: epath.Path) -> Iterator[Choice]:
    """The problems of one file, with four options each."""
    for row in read_rows(path):
        choices = field(row, "choices", dict)
        answer = index_of(row, "answerKey", texts(choices, "label"))
        options = [f" {text}" for text in texts(choices, "text")]
        context = f"Question: {field(row, 'question')}\nAnswer:"
        yield question(row, context, options, answer, id=field(row, "id"))


def simple(path: epath.Path) -> Iterator[Prompt]:
    """The expressions of one file as prompts, with their values as targets."""
    for row in read_rows(path):
        yield Prompt(field(row, "context"), (field(row, "continuation"),))


multiple_choice(
    "basic_arithmetic",
    basic,
    domain="math",
    files=("basic_arithmetic/validation.jsonl",),
    few_shot=FewShot(),
    chance=1 / 4,
)
for _form in ("withspaces", "nospaces"):
    cloze(
        f"simple_arithmetic_{_form}",
        simple,
        domain="math",
        files=(f"simple_arithmetic/simple_arithmetic_{_form}.jsonl",),
        few_shot=FewShot(separator="\n"),
    )
