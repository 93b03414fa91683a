"""Backtest of the forecasts on finished runs.

Each size is held out in turn, with all its runs: a run trained on the same data in the same order
is not independent evidence. The forecaster's weights and interval widths are estimated from the
other sizes, again by leave-one-size-out cross-validation.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import pandas as pd

from jaxllm.analysis.benchmarks import benchmarks
from jaxllm.analysis.curves import is_share, of_metric
from jaxllm.analysis.finding import Finding
from jaxllm.analysis.forecast import KEY_COLUMNS, LEVEL, TRANSFER, aligned, predict
from jaxllm.analysis.registry import AHEAD, Study, analysis

FRACTIONS = (0.1, 0.2, 0.3, 0.5)
_SENTENCE_FRACTION = 0.3  # the sentence reports the fraction nearest to this one


@dataclasses.dataclass(frozen=True)
class Backtest(Finding):
    """Forecasts and final values; the table scores them per metric, benchmark and fraction."""

    # A row per fraction, run and task: `forecast.COLUMNS`, `fraction`, `benchmark`, `truth`.
    points: pd.DataFrame = dataclasses.field(default_factory=pd.DataFrame)

    def summary(self, by: Sequence[str]) -> pd.DataFrame:
        """Score the forecasts, grouped by the columns `by`.

        Returns:
          A row per group: number `n` of forecasts; `mae` of the forecast, of the last value and of
          the log-linear line; `reduction` of the error against the better of these two; `coverage`
          and median half `width` of the interval.
        """
        rows = [
            {**dict(zip(by, key, strict=True)), **_scores(group)}
            for key, group in self.points.groupby(list(by), sort=True)
        ]
        return pd.DataFrame(rows)


@analysis(
    AHEAD,
    "Backtest of the forecasts",
    needs=lambda study: study.backtested,
    place=30,
    caption="Of a tested run only its first part is known, and no run of its size; the others are "
    "known to their end.",
)
def backtest(
    study: Study, *, fractions: Sequence[float] = FRACTIONS, level: float = LEVEL
) -> Backtest:
    """Forecast every finished run from its first checkpoints, fitted to runs of other sizes.

    Tasks are forecast one by one, not pooled, after these `fractions` of the training.
    """
    records = study.records if study.raw_records is None else study.raw_records
    aligned_curves, notes = aligned(records)
    whole = [one for one in aligned_curves if len(one.progress) > 1 and one.progress[-1] == 1]
    if len(whole) < len(aligned_curves):
        left = len(aligned_curves) - len(whole)
        notes += (f"{left} trajectories have one point or stop before their run's end: left out",)
    tables = []
    for fraction in fractions:
        for size in sorted({one.size for one in whole}):
            held_out = [one for one in whole if one.size == size]
            rest = [one for one in whole if one.size != size]
            tables.append(predict(held_out, rest, fraction, level).assign(fraction=fraction))
    tables = [table for table in tables if len(table)]
    if not tables:
        return Backtest.refuse("no run has a checkpoint early enough", notes)
    points = pd.concat(tables, ignore_index=True)
    finals = {(one.curve.run, *one.key): float(one.values[-1]) for one in whole}
    keys = zip(*(points[column] for column in ("run", *KEY_COLUMNS)), strict=True)
    points = points.assign(
        truth=[finals[key] for key in keys],
        benchmark=points.task.map(benchmarks(points.task.unique())),
    )
    result = Backtest(_sentence(points, level), notes=notes, points=points)
    table = result.summary(["metric", "benchmark", "fraction"])
    return dataclasses.replace(result, table=table)


def _sentence(points: pd.DataFrame, level: float) -> str:
    shares = points[of_metric(is_share, points.metric)]
    points = shares if len(shares) else points
    fraction = min(points.fraction.unique(), key=lambda each: abs(each - _SENTENCE_FRACTION))
    at = points[points.fraction == fraction]
    scores = _scores(at)
    better = min(scores["mae_last"], scores["mae_log_linear"])
    verb = "below" if scores["reduction"] >= 0 else "above"
    transferred = (at.method == TRANSFER).any()
    basis = "model size forecast from the others" if transferred else "run forecast from itself"
    return (
        f"From {fraction:.0%} of training, with each {basis} ({at.run.nunique()} runs, "
        f"{at.task.nunique()} tasks), the mean error is {scores['mae']:.4f}, "
        f"{abs(scores['reduction']):.0%} {verb} the better of last value and log-linear line "
        f"({better:.4f}); {scores['coverage']:.0%} of the {level:.0%} intervals hold the final "
        "value."
    )


def _scores(points: pd.DataFrame) -> dict[str, float]:
    """Scores of one group of forecasts; see `Backtest.summary`."""
    errors = {
        "mae": float((points.forecast - points.truth).abs().mean()),
        "mae_last": float((points["last"] - points.truth).abs().mean()),
        "mae_log_linear": float((points.log_linear - points.truth).abs().mean()),
    }
    better = min(errors["mae_last"], errors["mae_log_linear"])
    inside = (points.low <= points.truth) & (points.truth <= points.high)
    return {
        "n": len(points),
        **errors,
        "reduction": 1 - errors["mae"] / better if better > 0 else math.nan,
        "coverage": float(inside.mean()),
        "width": float((points.high - points.low).median() / 2),
    }
