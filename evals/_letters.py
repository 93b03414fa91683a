"""Questions whose options are listed in the prompt and answered by their letter."""

from __future__ import annotations

from collections.abc import Sequence

LETTERS = "ABCDEFGHIJ"


def lettered(question: str, options: Sequence[str], cue: str) -> str:
    """The question, a line `A. …` for each option, and the cue for the answer."""
    lines = [f"{letter}. {text}" for letter, text in zip(LETTERS, options, strict=False)]
    return "\n".join([question.strip(), *lines, cue])


def letters(count: int) -> tuple[str, ...]:
    """The options ` A`, ` B`, …"""
    return tuple(f" {letter}" for letter in LETTERS[:count])
