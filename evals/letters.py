"""Questions whose options are listed in the prompt and answered by letter."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence

from etils import epath

from jaxllm.evals.rows import field, index_of, question, read_csv
from jaxllm.evaluation.tasks import Choice, FewShot, multiple_choice

LETTERS = "ABCDEFGHIJ"


def lettered(question: str, options: Sequence[str], cue: str) -> str:
    """The question, a line `A. …` for each option, and the cue for the answer."""
    lines = [f"{letter}. {text}" for letter, text in zip(LETTERS, options, strict=False)]
    return "\n".join([question.strip(), *lines, cue])


def letters(count: int) -> tuple[str, ...]:
    """The options ` A`, ` B`, …"""
    return tuple(f" {letter}" for letter in LETTERS[:count])


def csv_questions(
    path: epath.Path, *, cue: str, asked: str, answer: str, columns: Sequence[str] | None
) -> Iterator[Choice]:
    """The questions of a CSV file with the columns A to D, `asked` and `answer`, and maybe `id`."""
    options = LETTERS[:4]
    for row in read_csv(path, columns):
        context = lettered(field(row, asked), [field(row, letter) for letter in options], cue)
        right = index_of(row, answer, tuple(options))
        yield question(row, context, letters(4), right, id=row.get("id", ""))


def exam(
    name: str, file: str, few_shot_file: str, description: str, cue: str, *,
    asked: str = "question", answer: str = "answer", columns: Sequence[str] | None = None,
) -> None:  # fmt: skip
    """Declare a four-option exam in MMLU's format, with the first 5 few-shot examples of a file.

    `description` is the line that names the subject; the rest is as in `csv_questions`.
    """
    examples = functools.partial(
        csv_questions, cue=cue, asked=asked, answer=answer, columns=columns
    )
    multiple_choice(
        name,
        examples,
        domain="examination",
        files=(file,),
        few_shot=FewShot(examples, (few_shot_file,), order="first"),
        shots=5,
        chance=1 / 4,
        description=f"{description}\n\n",
    )
