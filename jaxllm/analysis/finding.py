"""Finding: the result type of every analysis."""

from __future__ import annotations

import dataclasses
import math
from typing import Self

import pandas as pd


@dataclasses.dataclass(frozen=True)
class Finding:
    """Result of an analysis; subclasses add fields, with defaults."""

    sentence: str  # the result in one plain sentence, with its numbers
    table: pd.DataFrame = dataclasses.field(default_factory=pd.DataFrame)  # the numbers, tidy
    refused: str = ""  # reason why there is no answer
    notes: tuple[str, ...] = ()  # input left out or corrected, a sentence each
    lines: tuple[str, ...] = ()  # further sentences, such as one for each check
    title: str = ""  # of this finding, instead of the title of the analysis

    @classmethod
    def refuse(cls, reason: str, notes: tuple[str, ...] = ()) -> Self:
        """Finding without an answer, for the given reason."""
        return cls(f"No answer: {reason}.", refused=reason, notes=notes)


_SUPERSCRIPTS = str.maketrans("0123456789-", "⁰¹²³⁴⁵⁶⁷⁸⁹⁻")


def power_of_ten(number: float) -> str:
    """Format FLOPs to two digits: 3.4 × 10¹⁸."""
    mantissa, exponent = f"{number:.1e}".split("e")
    return f"{mantissa} × 10{str(int(exponent)).translate(_SUPERSCRIPTS)}"


def amount(number: float) -> str:
    """Format tokens or parameters to three digits: 300B, 2.1M; an unknown one as a dash."""
    if not math.isfinite(number):
        return "–"
    rounded = max(abs(float(f"{number:.3g}")), 1.0)
    thousands = min(int(math.log10(rounded)) // 3, 4)
    scaled = float(f"{number / 1000**thousands:.3g}")
    return f"{scaled:g}{' KMBT'[thousands].strip()}"
