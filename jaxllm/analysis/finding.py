"""What every analysis returns."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TypeVar

import pandas as pd


@dataclasses.dataclass(frozen=True)
class Finding:
    """The answer of an analysis; one with more to say has a subclass whose fields have defaults.

    Attributes:
      sentence: The result in one plain sentence made from the numbers.
      table: The numbers, a tidy row each; the analysis says what the columns mean.
      refused: Why there is no answer; empty where there is one.
      notes: What of the input was left out or mended, a sentence each.
      lines: More sentences, such as one for each check.
      title: Of this answer, where an analysis gives several; else the title of the analysis.
    """

    sentence: str
    table: pd.DataFrame = dataclasses.field(default_factory=pd.DataFrame)
    refused: str = ""
    notes: tuple[str, ...] = ()
    lines: tuple[str, ...] = ()
    title: str = ""


F = TypeVar("F", bound=Finding)


def refusal(
    reason: str,
    columns: Sequence[str] = (),
    notes: tuple[str, ...] = (),
    kind: type[F] = Finding,  # type: ignore[assignment]
) -> F:
    """The finding that there is no answer, and why; its table has `columns` and no rows."""
    return kind(f"No answer: {reason}.", pd.DataFrame(columns=list(columns)), reason, notes)


def amount(number: float) -> str:
    """Tokens, FLOPs or parameters as people say them: 300B, 2.1M."""
    for size, suffix in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "K")):
        if abs(number) >= size:
            return f"{number / size:.3g}{suffix}"
    return f"{number:.3g}"
