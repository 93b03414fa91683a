"""Backtest of the forecasts on finished runs, by distance in size.

Each size is held out in turn, with all its runs: a run trained on the same data in the same order
is not independent evidence. Then the largest two sizes, the largest three, and so on: forecasts
from ever farther away. Whatever the forecaster learns, it learns from the sizes that are left.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd

from jaxllm.analysis.baselines import BASELINES
from jaxllm.analysis.benchmarks import benchmarks
from jaxllm.analysis.curves import is_share, of_metric
from jaxllm.analysis.finding import Finding
from jaxllm.analysis.forecast import KEY_COLUMNS, LEVEL, TRANSFER, AlignedCurve, aligned, predict
from jaxllm.analysis.registry import AHEAD, Study, analysis

FRACTIONS = (0.1, 0.2, 0.3, 0.5)
_SENTENCE_FRACTION = 0.3  # the sentence reports the fraction nearest to this one
# Classes of the factor in parameters to the nearest finished size, and their upper bounds.
DISTANCES = {"×1.7": 2.6, "×4": 7.0, "×12": 19.0, "×30": math.inf}
NONE = "alone"


@dataclasses.dataclass(frozen=True)
class Backtest(Finding):
    """Forecasts and final values; the table scores them by what they are of and how far."""

    # A row per forecast: `forecast.COLUMNS`, `fraction`, `held_out` (number of sizes), `truth`,
    # `benchmark` and `far` (of `DISTANCES`).
    points: pd.DataFrame = dataclasses.field(default_factory=pd.DataFrame)

    def summary(self, by: Sequence[str]) -> pd.DataFrame:
        """Score the forecasts, a row per group of the columns `by`.

        Their number `n`; `mae`, and `mae_NAME` of every baseline; `best`, the baseline of least
        error, and `reduction`, by which share the forecast's error is below it; `coverage` and
        median half `width` of the interval.
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
    "known to their end. Final values are means over the last 3 % of the tokens.",
    method="Leave one size out; beyond the finished sizes, from those on the near side alone.",
)
def backtest(
    study: Study, *, fractions: Sequence[float] = FRACTIONS, level: float = LEVEL
) -> Backtest:
    """Forecast every finished run from its first checkpoints, fitted to runs of other sizes.

    What is shown is what is tested: tasks, or pooled benchmarks, after these `fractions`.
    """
    aligned_curves, notes = aligned(study.records)
    finished = [
        one
        for one in aligned_curves
        if len(one.progress) > 1 and one.finished and one.curve.run not in study.planned_tokens
    ]
    if len(finished) < len(aligned_curves):
        left = len(aligned_curves) - len(finished)
        notes += (f"{left} trajectories have one point or stop before their run's end: left out",)
    tables = [
        predict(held_out, rest, fraction, level).assign(fraction=fraction, held_out=count)
        for count, held_out, rest in _splits(finished)
        for fraction in fractions
    ]
    tables = [table for table in tables if len(table)]
    if not tables:
        return Backtest.refuse("no run has a checkpoint early enough", notes)
    points = pd.concat(tables, ignore_index=True)
    finals = {(one.curve.run, *one.key): one.smooth().values[-1] for one in finished}
    keys = zip(*(points[column] for column in ("run", *KEY_COLUMNS)), strict=True)
    classes = pd.cut(points.distance, [0.0, *DISTANCES.values()], right=False, labels=[*DISTANCES])
    points = points.assign(
        truth=[finals[key] for key in keys],
        benchmark=points.task.map(_groups(study)),
        far=classes.astype(object).fillna(NONE),
    )
    result = Backtest("", notes=notes, points=points)
    table = result.summary(["metric", "benchmark", "fraction", "far"])
    order = pd.Categorical(table.far, [*DISTANCES, NONE])
    table = table.assign(order=order).sort_values(["metric", "benchmark", "fraction", "order"])
    table = table.drop(columns="order").reset_index(drop=True)
    sentence, lines = _sentences(points, level)
    return dataclasses.replace(result, sentence=sentence, lines=lines, table=table)


def _groups(study: Study) -> dict[str, str]:
    """Benchmark of every task that is shown; a pooled benchmark is its own."""
    raw = study.records if study.raw_records is None else study.raw_records
    names = set(benchmarks(raw.task.unique()).values())
    known = benchmarks(study.records.task.unique())
    return {task: task if task.split(" ")[0] in names else name for task, name in known.items()}


def _splits(
    finished: list[AlignedCurve],
) -> Iterator[tuple[int, list[AlignedCurve], list[AlignedCurve]]]:
    """Number of sizes held out, their curves, and the others."""
    sizes = sorted({one.size for one in finished})
    of_sizes = [{size} for size in sizes] + [set(sizes[at:]) for at in range(1, len(sizes) - 1)]
    for held_out in of_sizes:
        parts: tuple[list[AlignedCurve], list[AlignedCurve]] = ([], [])
        for one in finished:
            parts[one.size not in held_out].append(one)
        yield len(held_out), *parts


def _sentences(points: pd.DataFrame, level: float) -> tuple[str, tuple[str, ...]]:
    """The result for one size held out, and a line for every distance."""
    shares = points[of_metric(is_share, points.metric)]
    points = shares if len(shares) else points
    fraction = min(points.fraction.unique(), key=lambda each: abs(each - _SENTENCE_FRACTION))
    at = points[points.fraction == fraction]
    near = at[at.held_out == 1]
    transferred = (near.method == TRANSFER).any()
    near = near[near.method == TRANSFER] if transferred else near
    basis = "model size forecast from the others" if transferred else "run forecast from itself"
    sentence = (
        f"From {fraction:.0%} of training, with each {basis} ({near.run.nunique()} runs, "
        f"{near.task.nunique()} tasks), {_told(near, level)}."
    )
    return sentence, tuple(
        f"×{group.distance.median():.2g} in size from the nearest finished run "
        f"({len(group)} forecasts): {_told(group, level)}."
        for name in DISTANCES
        if len(group := at[at.far == name])
    )


def _told(points: pd.DataFrame, level: float) -> str:
    scores = _scores(points)
    verb = "below" if scores["reduction"] >= 0 else "above"
    return (
        f"the mean error is {scores['mae']:.4f}, {abs(scores['reduction']):.0%} {verb} the best "
        f"simple forecast, the {scores['best']} ({scores['mae_best']:.4f}); "
        f"{scores['coverage']:.0%} of the {level:.0%} intervals hold the final value"
    )


def _scores(points: pd.DataFrame) -> dict[str, Any]:
    """Scores of one group of forecasts; see `Backtest.summary`."""
    off = points[["forecast", *BASELINES]].sub(points.truth, axis=0).abs()
    # A baseline that some of the forecasts lack is no baseline of them all.
    errors = off.mean(skipna=False)
    best = str(errors[[*BASELINES]].idxmin())
    inside = (points.low <= points.truth) & (points.truth <= points.high)
    return {
        "n": len(points),
        "mae": errors.forecast,
        **{f"mae_{name}": errors[name] for name in BASELINES},
        "best": BASELINES[best],
        "mae_best": errors[best],
        "reduction": 1 - errors.forecast / errors[best] if errors[best] > 0 else math.nan,
        "coverage": float(inside.mean()),
        "width": float(np.median(points.high - points.low) / 2),
    }
