"""Which law of the token count extrapolates a task: power law, log-linear or sigmoid.

The laws are fitted to the early checkpoints of a run and compared on its late ones, never by
their fit to what they have seen: with more parameters that always looks better. All are linear in
two parameters once their shape is chosen, so that a grid of shapes with a closed form in each
cell finds the optimum of every task at once (variable projection, Golub and Pereyra 1973), and
the cells that fit about as well are the interval of the shape.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pandas as pd
from scipy import special, stats

from jaxllm.analysis.capabilities import is_share
from jaxllm.analysis.scaling_fit import DRAWS, LEVEL, MIN_DRAWS, Estimate

LAWS = ("power law", "log-linear", "sigmoid")
LAST_VALUE = "last value"
_MIN_EARLY, _MIN_LATE = 6, 2
_POWERS = np.geomspace(0.05, 3.0, 60)
_STEEPNESS = np.geomspace(0.3, 6.0, 12)
_MIDDLES = np.linspace(-7.0, 3.0, 31)  # in ln(tokens / last early tokens)
_COLUMNS = ("run", "task", "law", "level", "gain", "shape", "low", "high", "early_error",
            "late_error", "n_early", "n_late")  # fmt: skip


@dataclasses.dataclass(frozen=True)
class TokenLaws:
    """The laws of every task of every run, and how well they extrapolated.

    Attributes:
      table: A row per run, task and law: value(D) = level + gain * f(D; shape), with D in
        units of the last early checkpoint (`unit`). f is -D^-shape for the power law, ln D for
        the log-linear law, 1 / (1 + (D / shape)^-k) for the sigmoid with steepness `steepness`.
        `low`, `high`: interval of the shape, an end is NaN where the data do not bound it.
        `early_error`, `late_error`: mean absolute errors on fitted and on held-out checkpoints.
      summary: A row per law: mean `late_error`, `difference` to the last value with its interval
        (bootstrap over tasks), share of series where it is `best`.
      n: Series (run x task) compared.
      refused: Why nothing was compared, "" where something was.
      notes: Series that were left out, and why.
    """

    table: pd.DataFrame
    summary: pd.DataFrame
    n: int
    refused: str = ""
    notes: tuple[str, ...] = ()

    @property
    def sentence(self) -> str:
        """What was found, in one sentence."""
        if self.refused:
            return f"No law of the token count could be tested: {self.refused}."
        laws = self.summary[self.summary.law != LAST_VALUE].sort_values("late_error")
        best, base = laws.iloc[0], self.summary[self.summary.law == LAST_VALUE].iloc[0]
        if best.high < 0:
            verdict = "beats"
        elif best.low > 0:
            verdict = "does worse than"
        else:
            verdict = "is not told apart from"
        return (
            f"On held-out late checkpoints of {self.n} series, the best law, the {best.law} "
            f"(mean absolute error {best.late_error:.3f}), {verdict} staying at the last value "
            f"({base.late_error:.3f}; difference {best.difference:+.4f}, {LEVEL:.0%} interval "
            f"{best.low:+.4f} to {best.high:+.4f})."
        )


def token_laws(
    trajectories: pd.DataFrame,
    *,
    holdout: float = 0.3,
    skip: float = 0.01,
    draws: int = DRAWS,
    seed: int = 0,
) -> TokenLaws:
    """Fits each law to the first part of every series and scores it on the rest.

    Args:
      trajectories: What `capabilities.charted` returns: one metric per run and task.
      holdout: The last part of the tokens that is held out.
      skip: The first part that is left out: warm-up, and checkpoints dense in log tokens at which
        nothing can be done yet, follow no law of the rest.
      draws: Bootstrap draws of tasks.
      seed: Of the bootstrap.
    """
    rows, short = [], 0
    for (run, task), points in trajectories.groupby(["run", "task"], sort=False):
        good = np.isfinite(points.value) & (points.tokens > skip * points.tokens.max())
        series = points[good].groupby("tokens", as_index=False).value.mean().sort_values("tokens")
        tokens, values = series.tokens.to_numpy("float64"), series.value.to_numpy("float64")
        early = tokens <= (1 - holdout) * tokens.max() if len(tokens) else np.empty(0, bool)
        if early.sum() < _MIN_EARLY or (~early).sum() < _MIN_LATE:
            short += 1
            continue
        ends = (0.0, 1.0) if is_share(str(points.metric.iloc[0])) else (-math.inf, math.inf)
        found = _laws(tokens, values, early, ends)
        rows += [{"run": run, "task": task, **row} for row in found]
    notes: tuple[str, ...] = ()
    if short:
        notes = (
            f"{short} series have fewer than {_MIN_EARLY} early or {_MIN_LATE} late checkpoints",
        )
    if not rows:
        return TokenLaws(
            pd.DataFrame(columns=[*_COLUMNS, "unit", "steepness"]), pd.DataFrame(), 0,
            f"a series needs {_MIN_EARLY} early and {_MIN_LATE} late checkpoints", notes,
        )  # fmt: skip
    table = pd.DataFrame(rows)
    errors = table.pivot(index=["run", "task"], columns="law", values="late_error")
    return TokenLaws(table, _summary(errors, draws, seed), len(errors), "", notes)


def predict(row: pd.Series, tokens: np.ndarray) -> np.ndarray:
    """The value of a law (a row of `TokenLaws.table`) at `tokens`."""
    d = np.asarray(tokens, "float64") / row.unit
    if row.law == "power law":
        shape = -(d ** -row["shape"])
    elif row.law == "log-linear":
        shape = np.log(d)
    elif row.law == "sigmoid":
        shape = special.expit(row.steepness * np.log(d / row["shape"]))
    else:
        shape = np.zeros_like(d)
    return np.asarray(row.level + row.gain * shape)


def _laws(
    tokens: np.ndarray, values: np.ndarray, early: np.ndarray, ends: tuple[float, float]
) -> list[dict[str, object]]:
    """One row per law, the last value among them, for one series with values between `ends`."""
    unit = tokens[early][-1]
    x = np.log(tokens / unit)
    flat = {"level": values[early][-1], "gain": 0.0, "shape": math.nan, "steepness": math.nan}
    found = [{"law": LAST_VALUE, **flat, "low": math.nan, "high": math.nan}]
    steepness, middle = (grid.ravel() for grid in np.meshgrid(_STEEPNESS, _MIDDLES, indexing="ij"))
    shapes = {
        "power law": (-np.exp(-np.outer(_POWERS, x[early])), _POWERS, None),
        "log-linear": (x[early][None], np.array([math.nan]), None),
        "sigmoid": (
            special.expit(steepness[:, None] * (x[early] - middle[:, None])),
            np.exp(middle),
            steepness,
        ),
    }
    for law, (basis, shape, steep) in shapes.items():
        level, gain, squares = _project(basis, values[early])
        if law != "log-linear":
            # Where the law levels off (in the end; for the sigmoid also before) is a value, too.
            limits = np.stack([level, level + gain * (law == "sigmoid")])
            allowed = ((limits >= ends[0] - 0.02) & (limits <= ends[1] + 0.02)).all(axis=0)
            squares = np.where(allowed | ~allowed.any(), squares, math.inf)
        at = int(squares.argmin())
        low, high = _interval(squares, shape, len(values[early]), 3 if steep is None else 4)
        found.append(
            {"law": law, "level": level[at], "gain": gain[at], "shape": shape[at],
             "steepness": math.nan if steep is None else steep[at], "low": low, "high": high}
        )  # fmt: skip
    rows = []
    for row in found:
        errors = np.abs(predict(pd.Series({**row, "unit": unit}), tokens) - values)
        rows.append(
            {**row, "unit": unit, "early_error": errors[early].mean(),
             "late_error": errors[~early].mean(), "n_early": int(early.sum()),
             "n_late": int((~early).sum())}
        )  # fmt: skip
    return rows


def _project(basis: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Least squares y = level + gain * basis for each row [S, n]: level, gain, squares [S]."""
    centred = basis - basis.mean(axis=1, keepdims=True)
    spread = (centred**2).sum(axis=1)
    gain = np.where(spread > 1e-12, centred @ (y - y.mean()) / np.maximum(spread, 1e-12), 0.0)
    level = y.mean() - gain * basis.mean(axis=1)
    squares = ((y - level[:, None] - gain[:, None] * basis) ** 2).sum(axis=1)
    return level, gain, squares


def _interval(squares: np.ndarray, shape: np.ndarray, n: int, count: int) -> tuple[float, float]:
    """Profile interval of the shape (F test); an end at the border of the grid is NaN."""
    if n <= count or len(shape) < 2:
        return math.nan, math.nan
    limit = squares.min() * (1 + stats.f.ppf(LEVEL, 1, n - count) / (n - count))
    inside = shape[squares <= limit + 1e-15]
    low, high = float(inside.min()), float(inside.max())
    return (
        math.nan if low <= shape.min() else low,
        math.nan if high >= shape.max() else high,
    )


def _summary(errors: pd.DataFrame, draws: int, seed: int) -> pd.DataFrame:
    """Mean late errors per law, against the last value; tasks are resampled, not series."""
    gains = errors.sub(errors[LAST_VALUE], axis=0).groupby("task")
    sums, counts = gains.sum(), gains.size().to_numpy()
    drawn = np.random.default_rng(seed).integers(len(sums), size=(draws, len(sums)))
    best = errors.idxmin(axis=1)
    rows = []
    for law in (LAST_VALUE, *LAWS):
        means = sums[law].to_numpy()[drawn].sum(axis=1) / counts[drawn].sum(axis=1)
        enough = len(sums) >= 5 and draws >= MIN_DRAWS and law != LAST_VALUE
        difference = float((errors[law] - errors[LAST_VALUE]).mean())
        estimate = Estimate.of(difference, means) if enough else Estimate(difference)
        rows.append(
            {"law": law, "late_error": float(errors[law].mean()), "difference": difference,
             "low": estimate.low, "high": estimate.high, "best": float((best == law).mean())}
        )  # fmt: skip
    return pd.DataFrame(rows)
