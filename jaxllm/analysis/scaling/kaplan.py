"""Kaplan's power laws of the loss in one quantity: L(N), L(D) and L(C).

Kaplan et al., "Scaling Laws for Neural Language Models" (arXiv 2001.08361), equations 1.1 to 1.3:
L(X) = (X_c / X)^alpha, a straight line of log L over log X, whose slope has an exact t-interval.
Where the line bends as an irreducible loss E would bend it, L(X) = E + (X_c / X)^alpha.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pandas as pd
from scipy import stats

from jaxllm.analysis.curves import Array
from jaxllm.analysis.finding import Finding, amount, power_of_ten
from jaxllm.analysis.registry import SIZES, Study, analysis
from jaxllm.analysis.scaling.fit import (
    LEVEL,
    UNKNOWN,
    IntervalEstimate,
    family_losses,
    outliers,
    usable,
)
from jaxllm.analysis.stats import line_fit, near_equal

_MIN_POINTS = 4
_MIN_RANGE = 4.0
_SAME_TOKENS = 1.1  # ratio up to which runs saw the same number of tokens
_EXPONENTS = np.geomspace(0.01, 3.0, 2000)  # of a law with an irreducible loss, that are tried
_EXACT = 1e-14  # sum of squared relative errors, below which all laws are exact
_NONE = IntervalEstimate(0.0, 0.0, 0.0)
_NAMES = {"params": "parameters", "tokens": "training tokens", "flops": "training FLOPs"}
_SEVERAL = {
    "params": "parameter counts at equal tokens",
    "tokens": "token counts of one size",
    "flops": "budgets of runs on unequal tokens",
}


@dataclasses.dataclass(frozen=True)
class PowerLaw(Finding):
    """L(X) = E + (X_c / X)^alpha; the table has X, `loss`, `fitted` and the log `residual`."""

    measure: str = "loss"  # what the loss is
    alpha: IntervalEstimate = UNKNOWN
    floor: IntervalEstimate = _NONE  # E; 0 where it is not identifiable, and left out
    constant: float = math.nan  # X_c, where the fitted loss is 1 above E
    curvature_p: float = math.nan  # of a curved log-log line; small: no pure power law


@analysis(
    SIZES,
    "Laws of the loss",
    needs=Study.several_sizes,
    place=30,
    caption="Of finished runs of one family only. Over parameters: runs on equally many tokens. "
    "Over tokens: runs of one size that end there. Over FLOPs: the runs that no cheaper one beats.",
    method="Power laws of Kaplan et al. (2020, arXiv 2001.08361), equations 1.1 to 1.3.",
)
def loss_laws(study: Study) -> list[Finding]:
    """Fit L(N), L(D) and L(C) to a study, with a finding each."""
    losses = family_losses(study)
    laws = kaplan(losses.points, losses.name)
    return [
        dataclasses.replace(
            law,
            title=f"{losses.name.capitalize()} and {_NAMES[name]}",
            notes=(*losses.notes, *law.notes),
        )
        for name, law in laws.items()
    ]


def kaplan(points: pd.DataFrame, measure: str = "loss") -> dict[str, PowerLaw]:
    """Fit L(N), L(D) and L(C) to finished runs, `params, tokens, flops, loss`; keyed by variable.

    L(N) is fitted to the runs on the token count that most sizes were trained on, L(D) to the size
    that was trained on most token counts, L(C) to the Pareto front of loss and compute.
    """
    frame, notes = usable(points, ("params", "tokens", "flops", "loss"))
    equal = _most(frame, "tokens", "params")
    of_tokens, of_size = notes, notes
    if len(equal):
        tokens = amount(equal.tokens.mean())
        of_size += (f"{len(equal)} of {len(frame)} runs are on {tokens} tokens.",)
    one_size = _most(frame, "params", "tokens")
    if len(one_size):
        size = amount(one_size.params.mean())
        of_tokens += (f"{len(one_size)} of {len(frame)} runs have {size} parameters.",)
    by_cost = frame.sort_values(["flops", "loss"])
    frontier = by_cost[by_cost.loss < by_cost.loss.cummin().shift(fill_value=math.inf)]
    if frontier.tokens.nunique() and np.ptp(np.log(frontier.tokens)) < math.log(_SAME_TOKENS):
        frontier = frontier[:0]  # a law of size only: no run is nearer to its optimum for its FLOPs
    return {
        "params": power_law(equal, "params", of_size, measure),
        "tokens": power_law(one_size, "tokens", of_tokens, measure),
        "flops": power_law(frontier, "flops", notes, measure),
    }


def _most(frame: pd.DataFrame, fixed: str, varied: str) -> pd.DataFrame:
    """Runs of about one value of `fixed`: that with most values of `varied`, ties to the largest.

    The best of several runs with the same value of `varied`.
    """
    rows = frame.sort_values(fixed)
    value = near_equal(rows[fixed], _SAME_TOKENS)
    groups = [rows[value == one] for one in value.unique()[::-1]]
    largest = max(groups, key=lambda group: group[varied].nunique(), default=rows)
    return largest.sort_values("loss").drop_duplicates(varied).sort_values(varied)


def power_law(
    points: pd.DataFrame, variable: str, notes: tuple[str, ...] = (), measure: str = "loss"
) -> PowerLaw:
    """Fit a power law of `loss` in the column `variable` of `points`."""
    frame, more = usable(points, (variable, "loss"))
    notes += more
    distinct, several = frame[variable].nunique(), _SEVERAL[variable]
    if distinct < _MIN_POINTS:
        reason = f"{_MIN_POINTS} different {several} are needed, not {distinct}"
        return PowerLaw.refuse(reason, notes)
    x, loss = np.log(frame[variable].to_numpy()), frame.loss.to_numpy()
    line = line_fit(x, np.log(loss))
    if np.ptp(x) < math.log(_MIN_RANGE) or line is None:
        reason = (
            f"the {several} span a factor of {np.exp(np.ptp(x)):.2g} only, not {_MIN_RANGE:.0f}"
        )
        return PowerLaw.refuse(reason, notes)
    half = float(stats.t.ppf((1 + LEVEL) / 2, line.dof)) * line.stderr
    alpha = IntervalEstimate(-line.slope, -line.slope - half, -line.slope + half)
    if not alpha.low > 0:
        reason = f"the {measure} does not fall significantly: the exponent is {alpha}"
        return PowerLaw.refuse(reason, notes)
    floor, constant = _NONE, float(line.at(0.0)) / alpha.value
    p, bend = _bend(x, loss, line.dof * line.scatter**2)
    name, above = _NAMES[variable], ""
    if bend and variable != "flops":  # runs of a front are not equally near the optimum
        floor, alpha, constant = bend
        above = f" above an irreducible {floor}"
    elif p < 1 - LEVEL:
        above = f" (but the line is curved, p = {p:.2g})"
    else:
        notes += ("An irreducible loss is not identifiable from these points, and left out.",)
    fitted, half_way = (
        floor.value + np.exp(alpha.value * (constant - at)) for at in (x, x.max() - math.log(2))
    )
    write = power_of_ten if variable == "flops" else amount
    middle = stats.theilslopes(np.log(loss), x)
    off = outliers(np.log(loss) - middle.slope * x, 2)
    if off.any():
        far = ", ".join(map(write, frame[variable][off]))
        notes += (f"Far off the line: the runs of {far} {name}.",)
    sentence = (
        f"The {measure} falls as a power of {name} with exponent {alpha}{above}: the last doubling "
        f"takes {1 - fitted[x.argmax()] / half_way:.1%} off it ({len(x)} runs, "
        f"{write(frame[variable].min())} to {write(frame[variable].max())})."
    )
    table = frame[[variable, "loss"]].assign(fitted=fitted, residual=np.log(loss / fitted))
    return PowerLaw(
        sentence, table, notes=notes, measure=measure, alpha=alpha, floor=floor,
        constant=math.exp(constant), curvature_p=p,
    )  # fmt: skip


def _bend(
    x: Array, loss: Array, line: float
) -> tuple[float, tuple[IntervalEstimate, IntervalEstimate, float] | None]:
    """Fit E + exp(alpha (c - x)) by least squares of relative errors, given a line's squares.

    The p-value of the line (F test), and (E, alpha, c), with intervals of the profile likelihood
    over alpha; None where E is not identifiable: not above 0 by more than its interval, or with an
    exponent of unknown size.
    """
    dof, center = len(x) - 3, x.mean()
    if dof < 2:
        return math.nan, None
    u = np.exp(-np.outer(_EXPONENTS, x - center))
    weight = loss**-2 / (loss**-2).sum()
    away = u - (u @ weight)[:, None]
    a = away @ (weight * loss) / (away**2 @ weight)
    e = weight @ loss - a * (u @ weight)
    squares = (((e[:, None] + a[:, None] * u) / loss - 1) ** 2).sum(axis=1) + _EXACT
    best = int(squares.argmin())
    gain = (line + _EXACT) / squares[best] - 1
    p = float(stats.f.sf(gain * dof, 1, dof))
    slack = squares[best] * (1 + stats.f.ppf(LEVEL, 1, dof) / dof) - squares
    inside = slack >= 0
    known = (loss**-2).sum() * (1 - (u @ weight) ** 2 / (u**2 @ weight))  # curvature over E
    reach = np.sqrt(slack[inside] / known[inside])
    low, high = (e[inside] - reach).min(), (e[inside] + reach).max()
    if p >= 1 - LEVEL or low <= 0 or inside[[0, -1]].any():
        return p, None
    floor = IntervalEstimate(e[best], low, high)
    alpha = IntervalEstimate(_EXPONENTS[best], *_EXPONENTS[inside][[0, -1]])
    return p, (floor, alpha, center + math.log(a[best]) / alpha.value)
