"""Finding: the result type of every analysis."""

from __future__ import annotations

import dataclasses
from typing import Self

import pandas as pd


@dataclasses.dataclass(frozen=True)
class Finding:
    """Result of an analysis; subclasses add fields, with defaults.

    Attributes:
      sentence: the result in one plain sentence, with its numbers.
      table: the numbers in tidy form, as documented by the analysis.
      refused: reason why there is no answer; empty where there is one.
      notes: input left out or corrected, a sentence each.
      lines: further sentences, such as one for each check.
      title: title of this finding; empty for the title of the analysis.
    """

    sentence: str
    table: pd.DataFrame = dataclasses.field(default_factory=pd.DataFrame)
    refused: str = ""
    notes: tuple[str, ...] = ()
    lines: tuple[str, ...] = ()
    title: str = ""

    @classmethod
    def refuse(cls, reason: str, notes: tuple[str, ...] = ()) -> Self:
        """Finding without an answer, for the given reason."""
        return cls(f"No answer: {reason}.", refused=reason, notes=notes)


def amount(number: float) -> str:
    """Format tokens, FLOPs or parameters to three digits: 300B, 2.1M."""
    for size, suffix in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "K")):
        if abs(number) >= size:
            return f"{number / size:.3g}{suffix}"
    return f"{number:.3g}"
