"""Kaplan's power laws of the loss in one quantity: L(N), L(D) and L(C).

Kaplan et al., "Scaling Laws for Neural Language Models" (arXiv 2001.08361), equations 1.1 to 1.3:
L(X) = (X_c / X)^alpha, a straight line of log L over log X, whose slope has an exact t interval.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pandas as pd
from scipy import stats

from jaxllm.analysis.scaling_fit import LEVEL, Estimate, usable

_MIN_POINTS = 4
_MIN_RANGE = 4.0
_SAME = 2.0
_NAMES = {"params": "parameters", "tokens": "tokens", "flops": "FLOPs"}


@dataclasses.dataclass(frozen=True)
class PowerLaw:
    """L(X) = (X_c / X)^alpha.

    Attributes:
      variable: "params", "tokens" or "flops".
      alpha: The exponent.
      constant: X_c, where the line would reach a loss of 1.
      curvature_p: p-value of a curved log-log line; small when the power law itself is in doubt.
      table: The points of the fit: X, `loss`, `fitted`, log `residual`.
      n: Number of points.
      refused: Why there is no law, "" where there is one.
      notes: What was left out of the data.
    """

    variable: str
    alpha: Estimate
    constant: Estimate
    curvature_p: float
    table: pd.DataFrame
    n: int
    refused: str = ""
    notes: tuple[str, ...] = ()

    def at(self, x: float) -> float:
        """The loss of the law at X = `x`; NaN when it was refused."""
        return (self.constant.value / x) ** self.alpha.value

    @property
    def sentence(self) -> str:
        """What was found, in one sentence."""
        name = _NAMES[self.variable]
        if self.refused:
            return f"No power law of the loss in {name}: {self.refused}."
        halved = 1 - 2**-self.alpha.value
        bent = self.curvature_p < 1 - LEVEL
        doubt = f", but the line is curved (p = {self.curvature_p:.2g})" if bent else ""
        return (
            f"The loss falls as a power of {name} with exponent {self.alpha}: twice the {name} "
            f"take {halved:.1%} off it ({self.n} points){doubt}."
        )


def kaplan(points: pd.DataFrame) -> dict[str, PowerLaw]:
    """L(N), L(D) and L(C), by variable.

    L(N) takes each size at the most tokens it saw, L(D) the largest size that saw enough token
    counts, L(C) the runs that no cheaper one beats. A law of N needs sizes that saw about the same
    number of tokens, for otherwise it is a law of both.

    Args:
      points: A row per run: `params, tokens, flops, loss`.
    """
    frame, notes = usable(points, ("params", "tokens", "flops", "loss"))
    if frame.empty:
        return {name: _refuse(name, "there are no points", 0, notes) for name in _NAMES}
    longest = frame.sort_values("tokens").groupby("params", as_index=False).last()
    equal = longest[longest.tokens * _SAME >= longest.tokens.max()]
    counts = frame.groupby("params").tokens.nunique()
    enough = counts[counts >= _MIN_POINTS]
    largest = frame[frame.params == (enough.index.max() if len(enough) else frame.params.max())]
    by_cost = frame.sort_values(["flops", "loss"])
    frontier = by_cost[by_cost.loss < by_cost.loss.cummin().shift(fill_value=math.inf)]
    of_size = notes
    if len(equal) < len(longest):
        of_size += (f"{len(longest) - len(equal)} sizes saw less than half the tokens of others",)
    return {
        "params": power_law(equal, "params", of_size),
        "tokens": power_law(largest.groupby("tokens", as_index=False).min(), "tokens", notes),
        "flops": power_law(frontier, "flops", notes),
    }


def power_law(points: pd.DataFrame, variable: str, notes: tuple[str, ...] = ()) -> PowerLaw:
    """The power law of `loss` in the column `variable` of `points`."""
    frame, more = usable(points.drop(columns="run", errors="ignore"), (variable, "loss"))
    notes += more
    distinct = frame[variable].nunique()
    if distinct < _MIN_POINTS:
        reason = f"{distinct} different values of X are too few, {_MIN_POINTS} are needed"
        return _refuse(variable, reason, len(frame), notes)
    span = math.exp(min(700.0, np.ptp(np.log(frame[variable]))))
    if span < _MIN_RANGE:
        reason = f"X spans a factor of {span:.2g} only, {_MIN_RANGE:.0f} are needed"
        return _refuse(variable, reason, len(frame), notes)
    x, y = np.log(frame[variable].to_numpy()), np.log(frame.loss.to_numpy())
    line = stats.linregress(x, y)
    reach = stats.t.ppf((1 + LEVEL) / 2, len(x) - 2) * line.stderr
    alpha = Estimate(-line.slope, -line.slope - reach, -line.slope + reach)
    if not alpha.low > 0:
        reason = f"the loss does not fall beyond doubt, the exponent is {alpha}"
        return _refuse(variable, reason, len(frame), notes)
    constant = math.exp(line.intercept / alpha.value)
    table = frame[[variable, "loss"]].assign(fitted=np.exp(line.intercept + line.slope * x))
    table = table.assign(residual=y - np.log(table.fitted))
    return PowerLaw(
        variable, alpha, _constant(x, y, constant), _curvature(x, y), table, len(x), "", notes
    )


def _constant(x: np.ndarray, y: np.ndarray, value: float) -> Estimate:
    """X_c with its interval: where the line's confidence band crosses log L = 0 (Fieller)."""
    n = len(x)
    slope, intercept = np.polyfit(x, y, 1)
    noise = ((y - intercept - slope * x) ** 2).sum() / (n - 2)
    reach = stats.t.ppf((1 + LEVEL) / 2, n - 2) ** 2 * noise
    spread = ((x - x.mean()) ** 2).sum()
    # (my + slope u)² = reach (1/n + u²/spread), a quadratic in u = log X_c - mean(x)
    roots = np.roots([slope**2 - reach / spread, 2 * slope * y.mean(), y.mean() ** 2 - reach / n])
    if np.iscomplex(roots).any() or slope**2 <= reach / spread:
        return Estimate(value)
    with np.errstate(over="ignore"):
        low, high = np.exp(x.mean() + np.sort(roots.real))
    return Estimate(value, float(low), float(high))


def _curvature(x: np.ndarray, y: np.ndarray) -> float:
    """p-value of the quadratic term (t test)."""
    if len(x) < 5:
        return math.nan
    u = (x - x.mean()) / x.std()
    design = np.stack([np.ones_like(u), u, u**2], axis=1)
    found, *_ = np.linalg.lstsq(design, y, rcond=None)
    noise = ((y - design @ found) ** 2).sum() / (len(x) - 3)
    error = math.sqrt(max(noise * np.linalg.inv(design.T @ design)[2, 2], 1e-300))
    return float(2 * stats.t.sf(abs(found[2]) / error, len(x) - 3))


def _refuse(variable: str, reason: str, n: int, notes: tuple[str, ...]) -> PowerLaw:
    nothing = Estimate(math.nan)
    return PowerLaw(variable, nothing, nothing, math.nan, pd.DataFrame(), n, reason, notes)
