"""What a check of a run's health returns.

Every check states a null hypothesis under which the run is healthy and raises its alarm when that
is rejected at `ALPHA`: of a hundred healthy runs one raises it.
"""

from __future__ import annotations

import dataclasses
import math

import pandas as pd

ALPHA = 0.01


@dataclasses.dataclass(frozen=True)
class Check:
    """One check of one run.

    Attributes:
      name: What is checked.
      run: Name of the run.
      raised: Whether there is cause for alarm.
      number: The figure that it was judged by; NaN when refused.
      reason: What was seen, with its number: one sentence.
      advice: What to do, when raised.
      step: Where it was seen; NaN when it is no single place.
      p_value: Of the null hypothesis that the run is healthy; NaN where none is computed.
      table: The numbers behind it.
      refused: Why the check could not be made; empty when it was.
      subjects: What an alarm is about, where it can be several things: tasks, or a spike.
    """

    name: str
    run: str
    raised: bool = False
    number: float = math.nan
    reason: str = ""
    advice: str = ""
    step: float = math.nan
    p_value: float = math.nan
    table: pd.DataFrame = dataclasses.field(default_factory=pd.DataFrame)
    refused: str = ""
    subjects: tuple[str, ...] = ()

    @property
    def state(self) -> str:
        """`refused`, `alarm` or `fine`."""
        return "refused" if self.refused else "alarm" if self.raised else "fine"

    @property
    def sentence(self) -> str:
        """The check in one line, or two when there is something to do."""
        if self.refused:
            name = self.name[:1].upper() + self.name[1:]
            return f"{name} could not be checked: {self.refused}."
        return f"{self.reason} {self.advice}".strip() if self.raised else self.reason
