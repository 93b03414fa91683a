"""How good the forecasts would have been on runs whose end is known.

Each size is left out in turn, with all its variants: a run trained on the same data in the same
order is no independent evidence. Everything the forecaster learns (weights, interval widths) it
learns from the other sizes, by leaving out each of them in turn.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import pandas as pd

from jaxllm.analysis import forecast_curves
from jaxllm.analysis.benchmarks import benchmarks
from jaxllm.analysis.curves import is_share
from jaxllm.analysis.forecast import COLUMNS, TRANSFER, predict
from jaxllm.analysis.forecast_curves import KEY_COLUMNS

FRACTIONS = (0.1, 0.2, 0.3, 0.5)
VISIBLE = 2.0
"""A change is real, and its sign counts, beyond this many standard errors."""


@dataclasses.dataclass(frozen=True)
class Backtest:
    """Forecasts beside what came.

    Attributes:
      points: A row per fraction, run and task: `forecast.COLUMNS`, `fraction`, `benchmark`,
        `truth`.
      level: Nominal coverage of the intervals.
      notes: What was left out.
      refused: Why there is no backtest; empty where there is one.
    """

    points: pd.DataFrame
    level: float
    notes: tuple[str, ...] = ()
    refused: str = ""

    @property
    def table(self) -> pd.DataFrame:
        """Per metric, benchmark and fraction: see `summary`."""
        return self.summary(["metric", "benchmark", "fraction"])

    def summary(self, by: Sequence[str]) -> pd.DataFrame:
        """Scores per group of rows that agree in `by`.

        Returns:
          `n` forecasts; `mae` of the forecast, of the last value and of the log-linear line;
          `reduction` of the error against the better of these two; `coverage` and median half
          `width` of the interval; `sign`, the share of visible changes (beyond `VISIBLE`
          standard errors) whose direction was foretold, and `sign_log_linear`; `ranking`, the
          share of pairs of runs that came in the foretold order in the same task, and the same by
          last value and log-linear line.
        """
        rows = [
            {**dict(zip(by, key, strict=True)), **_scores(group)}
            for key, group in self.points.groupby(list(by), sort=True)
        ]
        return pd.DataFrame(rows)

    @property
    def sentence(self) -> str:
        """One sentence for the report."""
        if self.refused:
            return f"No backtest: {self.refused}."
        shares = self.points[[is_share(metric) for metric in self.points.metric]]
        points = shares if len(shares) else self.points
        nearest = min(points.fraction.unique(), key=lambda fraction: abs(fraction - 0.3))
        at = points[points.fraction == nearest]
        scores = _scores(at)
        better = min(scores["mae_last"], scores["mae_log_linear"])
        verb = "below" if scores["reduction"] >= 0 else "above"
        basis = (
            "each model size forecast from the others"
            if (at.method == TRANSFER).any()
            else "each run forecast from itself alone"
        )
        return (
            f"From {nearest:.0%} of training, with {basis} "
            f"({at.run.nunique()} runs, {at.task.nunique()} tasks), the mean error is "
            f"{scores['mae']:.4f}, {abs(scores['reduction']):.0%} {verb} the better of last value "
            f"and log-linear line ({better:.4f}); {scores['coverage']:.0%} of the "
            f"{self.level:.0%} intervals hold the final value."
        )


def backtest(
    records: pd.DataFrame,
    *,
    fractions: Sequence[float] = FRACTIONS,
    level: float = 0.9,
    mode: str = TRANSFER,
) -> Backtest:
    """Forecasts every run of the table from its beginning, learning from runs of other sizes.

    Args:
      records: The trajectory table, of finished runs.
      fractions: Shares of the training after which to forecast; nothing later is read of a run.
      level: Coverage of the intervals.
      mode: `forecast.TRANSFER`, or `forecast.ALONE` for the method without other runs.
    """
    all_curves, notes = forecast_curves.curves(records)
    whole = [curve for curve in all_curves if len(curve.values) > 1 and curve.progress[-1] == 1]
    if len(whole) < len(all_curves):
        left = len(all_curves) - len(whole)
        notes += (f"{left} trajectories have one point or stop before their run's end: left out",)
    truths = {(curve.run, *curve.key): curve.final for curve in whole}
    parts = []
    for fraction in fractions:
        for size in sorted({curve.size for curve in whole}):
            held_out = [curve for curve in whole if curve.size == size]
            rest = [curve for curve in whole if curve.size != size]
            made = predict(held_out, rest, fraction, level, mode)
            parts.append(made.assign(fraction=fraction))
    points = pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=list(COLUMNS))
    if points.empty:
        empty = points.assign(fraction=0.0, truth=0.0, benchmark="")
        return Backtest(empty, level, notes, refused="no run has a checkpoint early enough")
    keys = zip(*(points[column] for column in ("run", *KEY_COLUMNS)), strict=True)
    names = points.task.map(benchmarks(points.task.unique()))
    return Backtest(
        points.assign(truth=[truths[key] for key in keys], benchmark=names), level, notes
    )


def _scores(points: pd.DataFrame) -> dict[str, float]:
    truth, last, made = points.truth, points["last"], points.forecast
    errors = {
        "mae": float((made - truth).abs().mean()),
        "mae_last": float((last - truth).abs().mean()),
        "mae_log_linear": float((points.log_linear - truth).abs().mean()),
    }
    better = min(errors["mae_last"], errors["mae_log_linear"])
    change = truth - last
    visible = change.abs() > VISIBLE * points.stderr.fillna(0.0)
    return {
        "n": len(points),
        **errors,
        "reduction": 1 - errors["mae"] / better if better > 0 else float("nan"),
        "coverage": float(((points.low <= truth) & (truth <= points.high)).mean()),
        "width": float((points.high - points.low).median() / 2),
        "visible": int(visible.sum()),
        "sign": _agreement(made - last, change, visible),
        "sign_log_linear": _agreement(points.log_linear - last, change, visible),
        **_rankings(points),
    }


def _agreement(foretold: pd.Series, came: pd.Series, counted: pd.Series) -> float:
    same = np.sign(foretold[counted]) == np.sign(came[counted])
    return float(same.mean()) if len(same) else float("nan")


def _rankings(points: pd.DataFrame) -> dict[str, float]:
    """The share of pairs of runs in the right order; a foretold tie counts half."""
    columns = {"ranking": "forecast", "ranking_last": "last", "ranking_log_linear": "log_linear"}
    right, pairs = dict.fromkeys(columns, 0.0), 0
    for _, group in points.groupby(["fraction", *KEY_COLUMNS], sort=False):
        first, second = np.triu_indices(len(group), 1)
        truth = group.truth.to_numpy()
        order = np.sign(truth[first] - truth[second])
        pairs += int((order != 0).sum())
        for name, column in columns.items():
            values = group[column].to_numpy()
            product = order * np.sign(values[first] - values[second])
            right[name] += float((product > 0).sum() + 0.5 * ((product == 0) & (order != 0)).sum())
    return {name: count / pairs if pairs else float("nan") for name, count in right.items()}
