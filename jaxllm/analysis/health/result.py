"""The result of a health check; `checks` examines a run by those of `loss` and `tasks`.

Every check has a null hypothesis under which the run is healthy, and raises an alarm when that is
rejected at level `ALPHA`: a false alarm in one of a hundred healthy runs.
"""

from __future__ import annotations

import dataclasses
import math

import pandas as pd

ALPHA = 0.01
WARNING, CRITICAL = "warning", "critical"  # severities; critical: the run is lost without action


@dataclasses.dataclass(frozen=True)
class Check:
    """One check of one run."""

    name: str
    raised: bool = False
    number: float = math.nan  # test quantity; NaN when refused
    reason: str = ""  # the observation with its number, one sentence
    advice: str = ""  # suggested action for an alarm
    step: float = math.nan  # of the observation; NaN where it is not a single one
    p_value: float = math.nan  # of the null hypothesis that the run is healthy; NaN without a test
    table: pd.DataFrame = dataclasses.field(default_factory=pd.DataFrame)  # the numbers behind it
    refused: str = ""  # reason why the check was not possible
    subjects: tuple[str, ...] = ()  # of an alarm, where there can be several: tasks, or a spike
    severity: str = WARNING

    @property
    def state(self) -> str:
        """`refused`, `alarm` or `fine`."""
        return "refused" if self.refused else "alarm" if self.raised else "fine"

    @property
    def sentence(self) -> str:
        """Result as one sentence, with the advice for an alarm."""
        if self.refused:
            name = self.name[:1].upper() + self.name[1:]
            return f"{name} could not be checked: {self.refused}."
        return f"{self.reason} {self.advice}".strip() if self.raised else self.reason
