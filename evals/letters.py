"""Questions whose options are listed in the prompt and answered by letter."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from jaxllm.evaluation.tasks import Choice, FewShot, multiple_choice

LETTERS = "ABCDEFGHIJ"


def lettered(question: str, options: Sequence[str], cue: str) -> str:
    """The question, a line `A. …` for each option, and the cue for the answer."""
    lines = [f"{letter}. {text}" for letter, text in zip(LETTERS, options, strict=False)]
    return "\n".join([question.strip(), *lines, cue])


def letters(count: int) -> tuple[str, ...]:
    """The options ` A`, ` B`, …"""
    return tuple(f" {letter}" for letter in LETTERS[:count])


def exam(
    name: str,
    examples: Callable[..., Iterable[Choice]],
    file: str,
    few_shot_file: str,
    description: str,
) -> None:
    """Declare a four-option exam in MMLU's format, with the first 5 few-shot examples of a file.

    Args:
      name: name of the task.
      examples: reads a file.
      file: file of the questions.
      few_shot_file: file of the few-shot examples.
      description: the line that names the subject.
    """
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
