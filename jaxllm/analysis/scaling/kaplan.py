"""Kaplan's power laws of the loss in one quantity: L(N), L(D) and L(C).

Kaplan et al., "Scaling Laws for Neural Language Models" (arXiv 2001.08361), equations 1.1 to 1.3:
L(X) = (X_c / X)^alpha, a straight line of log L over log X; the slope has an exact t-interval.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pandas as pd
from scipy import stats

from jaxllm.analysis.curves import Array
from jaxllm.analysis.finding import Finding
from jaxllm.analysis.registry import SIZES, Study, analysis
from jaxllm.analysis.scaling.fit import (
    LEVEL,
    UNKNOWN,
    IntervalEstimate,
    loss_points,
    squared_errors,
    usable,
)
from jaxllm.analysis.stats import line_fit

_MIN_POINTS = 4
_MIN_RANGE = 4.0
_SAME_TOKENS = 2.0
_NAMES = {"params": "parameters", "tokens": "tokens", "flops": "FLOPs"}


@dataclasses.dataclass(frozen=True)
class PowerLaw(Finding):
    """L(X) = (X_c / X)^alpha; the table has X, `loss`, `fitted` and the log `residual`.

    Attributes:
      alpha: the exponent.
      constant: X_c, where the fitted loss is 1.
      curvature_p: p-value of a curved log-log line; small where the loss follows no power law.
    """

    alpha: IntervalEstimate = UNKNOWN
    constant: float = math.nan
    curvature_p: float = math.nan


@analysis(
    SIZES,
    "Laws of the loss",
    needs=Study.several_sizes,
    place=30,
    caption="Over parameters: each size at the most tokens it saw. Over tokens: checkpoints of one "
    "size, at which the learning rate had not fallen yet; runs that end there lie lower. Over "
    "FLOPs: the runs that no cheaper one beats.",
)
def loss_laws(study: Study) -> list[Finding]:
    """Fit L(N), L(D) and L(C) to a study, with a finding each."""
    points, note = loss_points(study)
    titles = {"params": "parameters", "tokens": "training tokens", "flops": "training FLOPs"}
    return [
        dataclasses.replace(law, title=f"Loss and {titles[name]}", notes=(note, *law.notes))
        for name, law in kaplan(points).items()
    ]


def kaplan(points: pd.DataFrame) -> dict[str, PowerLaw]:
    """Fit L(N), L(D) and L(C); keyed by variable.

    L(N) is fitted to each size at its most tokens, L(D) to the largest size with enough token
    counts, L(C) to the Pareto front of loss and compute. L(N) requires sizes with about the same
    number of tokens, since it would otherwise depend on both.

    Args:
      points: a row per run or checkpoint: `params, tokens, flops, loss`.
    """
    frame, notes = usable(points, ("params", "tokens", "flops", "loss"))
    longest = frame.sort_values("tokens").groupby("params", as_index=False).last()
    equal = longest[longest.tokens * _SAME_TOKENS >= longest.tokens.max()]
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
    """Fit a power law of `loss` in the column `variable` of `points`."""
    frame, more = usable(points, (variable, "loss"))
    notes += more
    distinct = frame[variable].nunique()
    if distinct < _MIN_POINTS:
        reason = f"{_MIN_POINTS} different values of X are needed, not {distinct}"
        return PowerLaw.refuse(reason, notes)
    x, y = np.log(frame[variable].to_numpy()), np.log(frame.loss.to_numpy())
    line = line_fit(x, y)
    if np.ptp(x) < math.log(_MIN_RANGE) or line is None:
        reason = f"X spans a factor of {np.exp(np.ptp(x)):.2g} only, {_MIN_RANGE:.0f} are needed"
        return PowerLaw.refuse(reason, notes)
    half = float(stats.t.ppf((1 + LEVEL) / 2, line.dof)) * line.stderr
    alpha = IntervalEstimate(-line.slope, -line.slope - half, -line.slope + half)
    if not alpha.low > 0:
        reason = f"the loss does not fall significantly: the exponent is {alpha}"
        return PowerLaw.refuse(reason, notes)
    curvature_p = _curvature(x, y)
    name = _NAMES[variable]
    sentence = (
        f"The loss falls as a power of {name} with exponent {alpha}: twice the {name} "
        f"take {1 - 2**-alpha.value:.1%} off it ({len(x)} points)"
    )
    if curvature_p < 1 - LEVEL:
        sentence += f", but the line is curved (p = {curvature_p:.2g})"
    fitted = line.at(x)
    table = frame[[variable, "loss"]].assign(fitted=np.exp(fitted), residual=y - fitted)
    constant = math.exp(float(line.at(0.0)) / alpha.value)
    return PowerLaw(
        f"{sentence}.", table, notes=notes, alpha=alpha, constant=constant, curvature_p=curvature_p
    )


def _curvature(x: Array, y: Array) -> float:
    """p-value of a line instead of a parabola (F test)."""
    dof = len(x) - 3
    if dof < 2:
        return math.nan
    parabola = max(squared_errors(x, y, 2), 1e-300)
    return float(stats.f.sf((squared_errors(x, y, 1) - parabola) / parabola * dof, 1, dof))
