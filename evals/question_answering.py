"""Question sets in the form `Question: …\\nAnswer:`, scored on the texts of the answers.

ARC and OpenBookQA (school science), CommonsenseQA, Social IQa, PIQA, COPA, HellaSwag, BoolQ, and
AI2's copycolors (does the model copy the letter of the colour that the question names?). Prompts
are those of lm-evaluation-harness, or of OLMo's harness where it has no such task.
"""

from __future__ import annotations

from collections.abc import Iterator

from etils import epath

from evals._rows import read_rows, read_text
from jaxllm.errors import UserError
from jaxllm.evaluation.tasks import Choice, multiple_choice


def queries(path: epath.Path) -> Iterator[Choice]:
    """Rows that hold the prompt: query, choices, gold."""
    for number, row in enumerate(read_rows(path)):
        options = tuple(f" {text}" for text in row["choices"])
        yield Choice(row["query"], options, row["gold"], str(row.get("id", number)))


def commonsense_qa(path: epath.Path) -> Iterator[Choice]:
    """A question and five words."""
    for row in read_rows(path):
        answer = row["choices"]["label"].index(row["answerKey"])
        options = tuple(f" {text}" for text in row["choices"]["text"])
        yield Choice(f"Question: {row['question']}\nAnswer:", options, answer, row["id"])


def siqa(path: epath.Path) -> Iterator[Choice]:
    """What somebody in a small story feels, wants or did before."""
    for row in read_rows(path):
        options = tuple(f" {row[f'answer{letter}']}" for letter in "ABC")
        context = f"Question: {row['context']} {row['question']}\nAnswer:"
        yield Choice(context, options, int(row["label"]) - 1)


def piqa(path: epath.Path) -> Iterator[Choice]:
    """Which of two ways reaches a goal."""
    for row in read_rows(path):
        options = (f" {row['sol1']}", f" {row['sol2']}")
        yield Choice(f"Question: {row['goal']}\nAnswer:", options, row["label"])


def copa(path: epath.Path) -> Iterator[Choice]:
    """Which of two sentences is the cause or the effect of the first."""
    for row in read_rows(path):
        word = {"cause": "because", "effect": "therefore"}[row["question"]]
        endings = (row["choice1"], row["choice2"])
        options = tuple(f" {text[0].lower()}{text[1:]}" for text in endings)
        yield Choice(f"{row['premise'].strip()[:-1]} {word}", options, row["label"])


def boolq(path: epath.Path) -> Iterator[Choice]:
    """A passage and a question about it, yes or no."""
    for row in read_rows(path):
        context = f"{row['passage']}\nQuestion: {row['question']}?\nAnswer:"
        yield Choice(context, (" no", " yes"), int(row["answer"]))


def hellaswag(path: epath.Path) -> Iterator[Choice]:
    """How a description goes on: six lines each, the beginning, the answer, four endings."""
    lines = read_text(path).rstrip("\n").split("\n")
    if len(lines) % 6:
        raise UserError(f"{path}: {len(lines)} lines, which is not a multiple of 6")
    for start in range(0, len(lines), 6):
        context, answer, *endings = lines[start : start + 6]
        yield Choice(context, tuple(f" {text}" for text in endings), int(answer))


multiple_choice("arc_easy", queries, domain="knowledge", reads=("arc_easy/test.jsonl.gz",))
multiple_choice(
    "arc_challenge", queries, domain="knowledge", reads=("arc_challenge/test.jsonl.gz",)
)
multiple_choice("openbookqa", queries, domain="knowledge", reads=("openbookqa/test.jsonl.gz",))
multiple_choice("copycolors", queries, domain="reasoning", reads=("copycolors/xl_10way.jsonl.gz",))
multiple_choice(
    "commonsense_qa",
    commonsense_qa,
    domain="commonsense",
    reads=("commonsense_qa/validation.jsonl.gz",),
)
multiple_choice("siqa", siqa, domain="commonsense", reads=("siqa/validation.jsonl.gz",))
multiple_choice("piqa", piqa, domain="commonsense", reads=("piqa/validation.jsonl.gz",))
multiple_choice("copa", copa, domain="commonsense", reads=("copa/validation.jsonl.gz",))
multiple_choice(
    "hellaswag", hellaswag, domain="commonsense", reads=("hellaswag/hellaswag_val_full.txt.gz",)
)
multiple_choice("boolq", boolq, domain="reading", reads=("boolq/validation.jsonl.gz",))
