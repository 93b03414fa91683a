"""Statistics shared by several analyses."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy import stats

Array = npt.NDArray[np.float64]
Z95 = 1.96  # half-width of a normal 95 % interval, in standard errors


@dataclasses.dataclass(frozen=True)
class Line:
    """A straight line through points; see `line_fit`."""

    slope: float
    stderr: float  # of the slope
    scatter: float  # standard deviation of the points around the line
    dof: int  # degrees of freedom of both
    center: tuple[float, float]  # weighted means of x and y, a point on the line
    end: float  # value of the line at the largest x
    span: float  # largest x minus the smallest

    def at(self, x: npt.ArrayLike) -> Array:
        """Value of the line at `x`."""
        return self.center[1] + self.slope * (np.asarray(x, np.float64) - self.center[0])

    def p_below(self, bound: float) -> float:
        """p-value of the null hypothesis slope >= bound (small: the slope is below it)."""
        return float(stats.t.cdf(self._t(bound), self.dof))

    def p_above(self, bound: float) -> float:
        """p-value of the null hypothesis slope <= bound (small: the slope is above it)."""
        return float(stats.t.sf(self._t(bound), self.dof))

    def _t(self, bound: float) -> float:
        difference = self.slope - bound
        if self.stderr == 0:
            return math.copysign(math.inf, difference) if difference else 0.0
        return difference / self.stderr


def line_fit(
    x: npt.ArrayLike,
    y: npt.ArrayLike,
    weights: npt.ArrayLike | None = None,
    *,
    fewest: int = 2,
    noise: float = 0.0,
) -> Line | None:
    """Fit a line to the finite ones of n points by weighted least squares.

    In closed form: `scipy.stats.linregress` has no weights, and statsmodels' WLS is 30 times
    slower. `weights` are inverse variances up to a factor, or counts; `noise`, the known standard
    error of every y, is a lower bound of the scatter. None for less than `fewest` points, or where
    all x are equal; without degrees of freedom (two points) the errors are NaN.
    """
    points = np.array([x, y, np.ones_like(x, float) if weights is None else weights], np.float64)
    points = points[:, np.isfinite(points).all(axis=0) & (points[2] > 0)]
    count = points.shape[1]
    if count < max(fewest, 2) or np.ptp(points[0]) == 0:
        return None
    w = points[2] / points[2].mean()
    center_x, center_y = points[:2] @ w / count
    dx, dy = points[0] - center_x, points[1] - center_y
    spread = float(w @ dx**2)
    slope = float(w @ (dx * dy)) / spread
    dof = count - 2
    squares = float(w @ (dy - slope * dx) ** 2)
    scatter = max(math.sqrt(squares / dof), noise) if dof else math.nan
    center, end = (float(center_x), float(center_y)), float(center_y + slope * dx.max())
    return Line(slope, scatter / math.sqrt(spread), scatter, dof, center, end, float(np.ptp(dx)))


def near_equal(values: pd.Series, ratio: float) -> pd.Series:
    """Ascending class numbers: equal within a `ratio` of the least of a class; unknown: unique."""
    order = np.log(values.where(values > 0)).sort_values(kind="stable")
    number, least, numbers = 0, math.nan, []
    for value in order:
        if not value - least <= math.log(ratio):
            number, least = number + 1, value
        numbers.append(number)
    return pd.Series(numbers, order.index).reindex(values.index)


def false_discovery(p_values: npt.ArrayLike) -> Array:
    """Adjust p-values for multiple tests (Benjamini and Hochberg 1995); NaN stays NaN."""
    values = np.array(p_values, np.float64)
    known = np.isfinite(values)
    if known.any():
        values[known] = stats.false_discovery_control(values[known])
    return values
