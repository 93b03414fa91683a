"""Extrapolation of learning curves in tokens by a power law, log-linear law or sigmoid.

The laws are fitted to the early checkpoints of a run and compared on its late ones, since in-sample
errors favour laws with more parameters. All are linear in two parameters given their shape, so the
optimum is found by a grid of shapes with a closed form in each cell (variable projection, Golub and
Pereyra 1973), and the cells that an F test does not reject are the interval of the shape.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy import special, stats

from jaxllm.analysis.curves import Array, is_share
from jaxllm.analysis.finding import Finding
from jaxllm.analysis.registry import AHEAD, Study, analysis
from jaxllm.analysis.scaling.fit import DRAWS, LEVEL, IntervalEstimate

LAWS = ("power law", "log-linear", "sigmoid")
LAST_VALUE = "last value"
_MIN_EARLY, _MIN_LATE = 6, 2
_MIN_TASKS = 5
_WARM_UP = 0.01
"""Share of the tokens left out at the start: warm-up and checkpoints at chance follow no law."""
_POWERS = np.geomspace(0.05, 3.0, 60)
_STEEPNESS = np.geomspace(0.3, 6.0, 12)
_MIDDLES = np.linspace(-7.0, 3.0, 31)  # in ln(tokens / last early tokens)
_OUTSIDE = 0.02
"""Distance beyond 0 and 1 at which the asymptote of a share may lie."""


@dataclasses.dataclass(frozen=True)
class LearningCurveFits(Finding):
    """Fitted laws of every task of every run, with their extrapolation errors.

    The table has a row per run, task and law: value(D) = level + gain * f(D; shape), with D in
    units of the last early checkpoint (`unit`). f is -D^-shape for the power law, ln D for the
    log-linear law, 1 / (1 + (D / shape)^-k) for the sigmoid with steepness k = `steepness`. `low`
    and `high` are the interval of the shape, NaN where the data do not bound it; `early_error` and
    `late_error` the mean absolute errors on fitted and on held-out checkpoints.

    Attributes:
      summary: a row per law: mean `late_error`, `difference` to that of the last value with its
        interval (bootstrap over tasks), and share of curves where it is `best`.
    """

    summary: pd.DataFrame = dataclasses.field(default_factory=pd.DataFrame)


@analysis(
    AHEAD,
    "Learning-curve fits",
    place=40,
    caption="Fitted to the early checkpoints of a run and scored on its late ones; left is better.",
)
def learning_curve_fits(study: Study, *, holdout: float = 0.3) -> LearningCurveFits:
    """Fit each law to the early checkpoints of every curve and score it on the late ones.

    `holdout` is the share of the tokens held out at the end.
    """
    rows, short = [], 0
    for curve in study.curves:
        late = curve.tokens > _WARM_UP * curve.tokens.max()
        tokens, values = curve.tokens[late], curve.values[late]
        early = tokens <= (1 - holdout) * tokens.max(initial=0.0)
        if early.sum() < _MIN_EARLY or (~early).sum() < _MIN_LATE:
            short += 1
            continue
        ends = (0.0, 1.0) if is_share(curve.metric) else (-math.inf, math.inf)
        fits = _fits(tokens, values, early, ends)
        rows += [{"run": curve.run, "task": curve.task, **row} for row in fits]
    few = f"fewer than {_MIN_EARLY} early or {_MIN_LATE} late checkpoints"
    notes = (f"{short} curves have {few}",) if short else ()
    if not rows:
        return LearningCurveFits.refuse(f"all curves have {few}", notes)
    table = pd.DataFrame(rows)
    errors = table.pivot(index=["run", "task"], columns="law", values="late_error")
    summary = _summary(errors)
    best = summary[summary.law != LAST_VALUE].sort_values("late_error").iloc[0]
    verdict = "is not told apart from"
    if best.high < 0 or best.low > 0:
        verdict = "beats" if best.high < 0 else "does worse than"
    sentence = (
        f"On held-out late checkpoints of {len(errors)} curves, the best law, the {best.law} "
        f"(mean absolute error {best.late_error:.3f}), {verdict} staying at the last value "
        f"({errors[LAST_VALUE].mean():.3f}; difference {best.difference:+.4f}, {LEVEL:.0%} "
        f"interval {best.low:+.4f} to {best.high:+.4f})."
    )
    return LearningCurveFits(sentence, table, notes=notes, summary=summary)


def _fits(
    tokens: Array, values: Array, early: npt.NDArray[np.bool_], ends: tuple[float, float]
) -> list[dict[str, object]]:
    """Fit one curve with values between `ends`; a row per law, and one for the last value."""
    unit, y = tokens[early][-1], values[early]
    x = np.log(tokens / unit)
    steepness, middle = (grid.ravel() for grid in np.meshgrid(_STEEPNESS, _MIDDLES, indexing="ij"))
    sigmoids = special.expit(steepness[:, None] * (x - middle[:, None]))
    candidates = {  # functions [shapes, points], shapes, steepness
        "power law": (-np.exp(-np.outer(_POWERS, x)), _POWERS, None),
        "log-linear": (x[None], np.array([math.nan]), None),
        "sigmoid": (sigmoids, np.exp(middle), steepness),
    }
    last = {"law": LAST_VALUE, "level": y[-1], "gain": 0.0}
    last |= dict.fromkeys(("shape", "steepness", "low", "high"), math.nan)
    fits = [(last, np.full(len(x), y[-1]))]
    for law, (functions, shape, steep) in candidates.items():
        level, gain, squares = _project(functions[:, early], y)
        if law != "log-linear":
            # Asymptotes (for the sigmoid both) have to be possible values, too.
            limits = np.stack([level, level + gain * (law == "sigmoid")])
            allowed = (limits >= ends[0] - _OUTSIDE).all(axis=0)
            allowed &= (limits <= ends[1] + _OUTSIDE).all(axis=0)
            squares = np.where(allowed | ~allowed.any(), squares, math.inf)
        at = int(squares.argmin())
        low, high = _interval(squares, shape, len(y), 3 if steep is None else 4)
        row = {"law": law, "level": level[at], "gain": gain[at], "shape": shape[at]}
        row |= {"steepness": math.nan if steep is None else steep[at], "low": low, "high": high}
        fits.append((row, level[at] + gain[at] * functions[at]))
    rows = []
    for row, fitted in fits:
        errors = np.abs(fitted - values)
        rows.append(
            {**row, "unit": unit, "early_error": errors[early].mean(),
             "late_error": errors[~early].mean(), "n_early": int(early.sum()),
             "n_late": int((~early).sum())}
        )  # fmt: skip
    return rows


def _project(functions: Array, y: Array) -> tuple[Array, Array, Array]:
    """Least-squares level, gain and squares [S] of y = level + gain * function, per row [S, n]."""
    centred = functions - functions.mean(axis=1, keepdims=True)
    spread = (centred**2).sum(axis=1)
    gain = np.where(spread > 1e-12, centred @ (y - y.mean()) / np.maximum(spread, 1e-12), 0.0)
    level = y.mean() - gain * functions.mean(axis=1)
    squares = ((y - level[:, None] - gain[:, None] * functions) ** 2).sum(axis=1)
    return level, gain, squares


def _interval(squares: Array, shape: Array, n: int, count: int) -> tuple[float, float]:
    """Profile interval of the shape (F test); NaN for an end at the edge of the grid."""
    if n <= count or len(shape) < 2:
        return math.nan, math.nan
    limit = squares.min() * (1 + stats.f.ppf(LEVEL, 1, n - count) / (n - count))
    inside = shape[squares <= limit + 1e-15]
    low, high = float(inside.min()), float(inside.max())
    return low if low > shape.min() else math.nan, high if high < shape.max() else math.nan


def _summary(errors: pd.DataFrame) -> pd.DataFrame:
    """Mean late errors per law and against the last value, with a bootstrap over tasks."""
    gains = errors.sub(errors[LAST_VALUE], axis=0).groupby("task")
    sums, counts = gains.sum(), gains.size().to_numpy()
    drawn = np.random.default_rng(0).integers(len(sums), size=(DRAWS, len(sums)))
    best = errors.idxmin(axis=1)
    rows = []
    for law in (LAST_VALUE, *LAWS):
        means = sums[law].to_numpy()[drawn].sum(axis=1) / counts[drawn].sum(axis=1)
        enough = len(sums) >= _MIN_TASKS and law != LAST_VALUE
        difference = (errors[law] - errors[LAST_VALUE]).mean()
        estimate = IntervalEstimate.of(np.array([difference, *(means if enough else ())]))
        rows.append(
            {"law": law, "late_error": float(errors[law].mean()), "difference": estimate.value,
             "low": estimate.low, "high": estimate.high, "best": float((best == law).mean())}
        )  # fmt: skip
    return pd.DataFrame(rows)
