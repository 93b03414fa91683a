"""What a look at a run's health returns, and the trend that several of them judge by.

Every check states a null hypothesis under which the run is healthy and raises its alarm when that
is rejected at `ALPHA`: of a hundred healthy runs one raises it. Seven checks then find something
in at most seven of a hundred.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pandas as pd
from scipy import stats

ALPHA = 0.01


@dataclasses.dataclass(frozen=True)
class Check:
    """One look at the health of one run.

    Attributes:
      name: What was looked at.
      run: Whose.
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
    def sentence(self) -> str:
        """The check in one line, or two when there is something to do."""
        if self.refused:
            return f"{_capital(self.name)} could not be checked: {self.refused}."
        return f"{self.reason} {self.advice}".strip() if self.raised else self.reason


@dataclasses.dataclass(frozen=True)
class Trend:
    """A straight line through points, with its doubt.

    Attributes:
      slope: Per unit of x.
      stderr: Standard error of the slope.
      scatter: Standard deviation of the points around the line.
      dof: Degrees of freedom of both.
      end: The line at the largest x.
      span: Largest x minus the smallest.
    """

    slope: float
    stderr: float
    scatter: float
    dof: int
    end: float
    span: float

    def p_below(self, bound: float) -> float:
        """p-value of the null hypothesis slope >= bound (small: the slope is below it)."""
        return float(stats.t.cdf(self._t(bound), self.dof))

    def p_above(self, bound: float) -> float:
        """p-value of the null hypothesis slope <= bound (small: the slope is above it)."""
        return float(stats.t.sf(self._t(bound), self.dof))

    def gain(self, further: float, level: float = 0.9) -> tuple[float, float, float]:
        """How much the value will change over `further` units of x: estimate, low, high.

        The interval is for a value that will be measured, at `level`.
        """
        expected = self.slope * further
        doubt = math.hypot(self.stderr * further, self.scatter)
        half = float(stats.t.ppf((1 + level) / 2, self.dof)) * doubt
        return expected, expected - half, expected + half

    def _t(self, bound: float) -> float:
        difference = self.slope - bound
        if self.stderr == 0:
            return math.copysign(math.inf, difference) if difference else 0.0
        return difference / self.stderr


def trend(x: np.ndarray, y: np.ndarray, noise: float = 0.0) -> Trend | None:
    """The least-squares line through finite points; None for fewer than four of them.

    Args:
      x: Shape [n].
      y: Shape [n].
      noise: Known standard error of every y; the scatter counts as no less than it.
    """
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    keep = np.isfinite(x) & np.isfinite(y)
    x, y = x[keep], y[keep]
    if len(x) < 4 or np.ptp(x) == 0:
        return None
    centred = x - x.mean()
    spread = float(centred @ centred)
    slope = float(centred @ y) / spread
    residuals = y - y.mean() - slope * centred
    dof = len(x) - 2
    scatter = max(math.sqrt(float(residuals @ residuals) / dof), noise if noise > 0 else 0.0)
    end = float(y.mean() + slope * centred.max())
    return Trend(slope, scatter / math.sqrt(spread), scatter, dof, end, float(np.ptp(x)))


def discoveries(p_values: np.ndarray, rate: float = ALPHA) -> np.ndarray:
    """Which of many null hypotheses are rejected at false-discovery rate `rate`.

    The procedure of Benjamini and Hochberg (1995); NaN is never rejected.
    """
    p_values = np.asarray(p_values, np.float64)
    valid = np.isfinite(p_values)
    rejected = np.zeros(len(p_values), bool)
    if valid.any():
        rejected[valid] = stats.false_discovery_control(p_values[valid]) <= rate
    return rejected


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
