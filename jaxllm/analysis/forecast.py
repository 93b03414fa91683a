"""Forecasts of the final value of every task of a run in progress.

Runs are aligned by progress (tokens seen / tokens of the whole run), because the learning-rate
schedule ends with the run: at equal progress two runs of a suite are at the same point of it.
The forecasting methods are in `jaxllm.analysis.forecast_methods`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping

import numpy as np
import pandas as pd

from jaxllm.analysis.benchmarks import benchmarks
from jaxllm.analysis.curves import Array, Curve, curves, is_share, of_metric
from jaxllm.analysis.finding import Finding
from jaxllm.analysis.forecast_methods import (
    METHODS,
    RECENT,
    CrossValidation,
    combine,
    damped_trends,
    guesses,
)
from jaxllm.analysis.registry import AHEAD, Study, analysis
from jaxllm.analysis.stats import line_fit

KEY_COLUMNS = ["task", "shots", "metric", "task_version"]
"""What has to agree before two values are comparable."""
COLUMNS = (
    "run", *KEY_COLUMNS, "domain", "size", "progress", "last", "log_linear", "forecast", "low",
    "high", "stderr", "finished_runs", "method",
)  # fmt: skip
TRANSFER, ALONE = "other runs", "this run alone"
MIN_FOLDS = 3
"""Sizes (or, of fewer sizes, runs) that must have finished before errors can be learned."""
_SAME_SIZE = 0.10
"""Runs whose parameter counts differ by less than this share are of one size."""
_LATER = 4
"""At so many moments between a forecast and the end finished runs are looked at."""
_EPSILON = 1e-9


@dataclasses.dataclass(frozen=True)
class AlignedCurve:
    """A curve over the share of its run's tokens.

    Attributes:
      curve: the curve.
      key: values of its `KEY_COLUMNS`.
      size: index of the run's model size.
      progress: [points] shares of the run's tokens, ascending.
    """

    curve: Curve
    key: tuple[object, ...]
    size: int
    progress: Array

    @property
    def log_params(self) -> float:
        """Natural logarithm of the parameter count; 0 where it is unknown."""
        return math.log(self.curve.params) if self.curve.params > 0 else 0.0

    @property
    def final(self) -> float:
        """The last value."""
        return float(self.curve.values[-1])

    def before(self, cut: float) -> Array:
        """Shares of the training at which the run was scored, up to and including `cut`."""
        return self.progress[self.progress <= cut * (1 + _EPSILON)]

    def recent(self, cut: float) -> Array:
        """Last `RECENT` values up to and including `cut`."""
        return self.curve.values[: len(self.before(cut))][-RECENT:]

    def at(self, positions: Array) -> Array:
        """Values at these shares of the training, interpolated linearly in its logarithm."""
        return np.interp(np.log(positions), np.log(self.progress), self.curve.values)

    def log_linear(self, cut: float) -> float:
        """Final value by a least-squares line in log tokens through the values up to `cut`."""
        x = np.log(self.before(cut))
        line = line_fit(x, self.curve.values[: len(x)])
        return float(self.curve.values[len(x) - 1]) if line is None else float(line.at(0.0))


@dataclasses.dataclass(frozen=True)
class Forecast(Finding):
    """Forecast of the final values of one run.

    The table has the `COLUMNS`, a row per task: `finished_runs` is the number of runs that the
    forecast was fitted to, `low` and `high` the prediction interval of the final checkpoint's
    value, including its sampling noise.

    Attributes:
      progress: share of the training completed.
    """

    progress: float = math.nan


@analysis(
    AHEAD,
    "Forecast",
    needs=Study.in_progress,
    place=20,
    caption="Made from the run's own past and from finished runs, if there are any; the interval "
    "holds the value of the final checkpoint, its sampling noise included.",
)
def forecasts(study: Study) -> list[Finding]:
    """Forecast every run in progress from the finished runs."""
    finished = [run for run in study.runs if run not in study.planned_tokens]
    return [
        dataclasses.replace(
            forecast(study.records, run, total_tokens=total, finished=finished),
            title=f"Forecast for {run}" if study.several_runs() else "Forecast",
        )
        for run, total in study.planned_tokens.items()
    ]


def forecast(
    records: pd.DataFrame,
    run: str,
    *,
    total_tokens: float | None = None,
    finished: Iterable[str] | None = None,
    level: float = 0.9,
) -> Forecast:
    """Forecast the value of every task of `run` at the end of its training.

    Args:
      records: trajectory table of `run` and the finished runs.
      run: the run in progress.
      total_tokens: tokens at its end.
      finished: names of the finished runs to fit to; by default all others in the table.
      level: coverage of the intervals.
    """
    if total_tokens is None or not total_tokens > 0:
        reason = f"how many tokens {run} will be trained for is not known"
        return Forecast.refuse(reason)
    everything, notes = aligned(records, {run: total_tokens})
    targets = [one for one in everything if one.curve.run == run]
    if not targets:
        return Forecast.refuse(f"no task of {run} has a value", notes)
    names = None if finished is None else set(finished)
    others = [
        one
        for one in everything
        if one.curve.run != run and (names is None or one.curve.run in names)
    ]
    progress = max(float(one.progress[-1]) for one in targets)
    table = predict(targets, others, progress, level)
    alone = int((table.method == ALONE).sum())
    if alone and others:
        notes += (f"{alone} tasks have too few finished runs: forecast from the run alone.",)
    shares = table[of_metric(is_share, table.metric)]
    shown = shares if len(shares) else table
    best = (shown.forecast - shown["last"]).abs().idxmax()
    count = int(shown.finished_runs.max())
    basis = f"learned from {count} other runs" if count else "from this run alone"
    sentence = (
        f"From {progress:.0%} of its training, {basis}: of {len(shown)} tasks, "
        f"{int((shown.low > shown['last']).sum())} will end above their present value "
        f"({level:.0%} interval, median ± {(shown.high - shown.low).median() / 2:.3f}); the "
        f"largest expected change is {shown.task[best]}, from {shown['last'][best]:.3f} to "
        f"{shown.forecast[best]:.3f}."
    )
    return Forecast(sentence, table, notes=notes, progress=progress)


def aligned(
    records: pd.DataFrame, totals: Mapping[str, float] | None = None
) -> tuple[list[AlignedCurve], tuple[str, ...]]:
    """Align the curves of every primary metric; with notes on dropped records.

    Args:
      records: the trajectory table.
      totals: planned training tokens of unfinished runs; the others end at their largest token
        count in the table.
    """
    primary = records[records.primary.astype(bool)] if records.primary.any() else records
    known = curves(primary[primary.tokens > 0]).comparable()
    notes, ends = list(known.notes), known.points.groupby("run").tokens.max().to_dict()
    for run, total in (totals or {}).items():
        if total < ends.get(run, 0):
            notes.append(f"{run} has {ends[run]:,.0f} tokens, more than the {total:,.0f} planned")
        ends[run] = max(total, ends.get(run, 0))
    sizes = _sizes(known.table.drop_duplicates("run").set_index("run").params)
    everything = [
        AlignedCurve(
            curve, (curve.task, curve.shots, curve.metric, curve.task_version),
            sizes[curve.run], curve.tokens / ends[curve.run],
        )
        for curve in known
    ]  # fmt: skip
    return everything, tuple(notes)


def _sizes(params: pd.Series) -> dict[str, int]:
    """Index of each run's model size; runs of unknown size each get their own."""
    sizes: dict[str, int] = {}
    number, smallest = -1, -math.inf
    for run, count in params.sort_values(kind="stable").items():
        log = math.log(count) if count > 0 else -math.inf
        if not log - smallest < math.log1p(_SAME_SIZE):
            number, smallest = number + 1, log
        sizes[str(run)] = number
    return sizes


def predict(
    targets: list[AlignedCurve],
    others: list[AlignedCurve],
    cut: float,
    level: float,
    mode: str = TRANSFER,
) -> pd.DataFrame:
    """Forecast the final values of `targets` from their values up to the share `cut`.

    Args:
      targets: curves of runs of one size.
      others: curves of finished runs; where they are too few or `mode` is ALONE, the forecast uses
        the run's own past only.
      cut: share of the training.
      level: coverage of the intervals.
      mode: TRANSFER or ALONE.

    Returns:
      `COLUMNS`, a row per target with a point before the cut, in the order of `targets`.
    """
    seen = [target for target in targets if len(target.before(cut))]
    rows = _transferred(seen, others, cut, level) if mode == TRANSFER else {}
    by_run: dict[str, list[int]] = {}
    for i, target in enumerate(seen):
        if i not in rows:
            by_run.setdefault(target.curve.run, []).append(i)
    for places in by_run.values():
        past = [(np.log(seen[i].before(cut)), seen[i].curve) for i in places]
        trends = damped_trends(
            [(x, curve.values[: len(x)], curve.stderr[len(x) - 1]) for x, curve in past], level
        )
        for i, (value, half) in zip(places, trends, strict=True):
            rows[i] = _row(seen[i], cut, value, half, 0, ALONE)
    return pd.DataFrame([rows[i] for i in range(len(seen))], columns=list(COLUMNS))


def _transferred(
    targets: list[AlignedCurve], others: list[AlignedCurve], cut: float, level: float
) -> dict[int, dict[str, object]]:
    """Rows by target index, for tasks with enough finished runs."""
    finished: dict[tuple[object, ...], list[AlignedCurve]] = {}
    for other in others:
        if len(other.progress) > 1 and other.progress[-1] > 1 - _EPSILON:
            finished.setdefault(other.key, []).append(other)
    groups: dict[tuple[object, ...], list[int]] = {}
    for i, target in enumerate(targets):
        moments = target.before(cut)[-RECENT:]
        groups.setdefault((target.key, *moments.round(6)), []).append(i)
    names = benchmarks(sorted({target.curve.task for target in targets}))
    tasks, forecast_of = [], []
    for places in groups.values():
        like = targets[places[0]]
        recent = like.before(cut)[-RECENT:]
        known = [
            other
            for other in finished.get(like.key, ())
            if other.progress[0] <= recent[-1] * (1 + _EPSILON)
        ]
        folds = _folds(known)
        if len(np.unique(folds)) < MIN_FOLDS:
            continue
        times = np.concatenate([recent, np.linspace(recent[-1], 1.0, _LATER + 1)[1:]])
        values = np.array([other.at(times) for other in known])
        sizes = np.array([other.log_params for other in known])

        early = len(recent)
        errors = np.empty((len(known), len(METHODS)))
        for fold in np.unique(folds):
            own, rest = folds == fold, folds != fold
            size = float(sizes[own].mean())
            errors[own] = guesses(values[own, :early], size, values[rest], sizes[rest], times)
        errors -= values[:, -1:]
        tasks.append(CrossValidation(errors, folds, names[like.curve.task]))
        now = np.array([targets[i].recent(cut) for i in places])
        size = float(np.mean([targets[i].log_params for i in places]))
        forecast_of.append((places, guesses(now, size, values, sizes, times), len(known)))
    if not tasks:
        return {}
    rows = {}
    for own, half, (places, made, count) in zip(*combine(tasks, level), forecast_of, strict=True):
        for i, value in zip(places, made @ own, strict=True):
            rows[i] = _row(targets[i], cut, float(value), float(half), count, TRANSFER)
    return rows


def _folds(some: list[AlignedCurve]) -> np.ndarray:
    """Cross-validation folds: sizes where there are enough of them, else runs."""
    sizes = np.array([one.size for one in some], dtype=int)
    if len(np.unique(sizes)) >= MIN_FOLDS:
        return sizes
    return np.unique([one.curve.run for one in some], return_inverse=True)[1]


def _row(
    target: AlignedCurve, cut: float, value: float, half: float, count: int, method: str
) -> dict[str, object]:
    curve, seen = target.curve, target.before(cut)
    low, high = value - half, value + half
    if is_share(curve.metric):
        value, low, high = (min(max(each, 0.0), 1.0) for each in (value, low, high))
    return {
        **dict(zip(KEY_COLUMNS, target.key, strict=True)),
        "run": curve.run, "domain": curve.domain, "size": target.size, "progress": seen[-1],
        "last": curve.values[len(seen) - 1], "log_linear": target.log_linear(cut),
        "forecast": value, "low": low, "high": high, "stderr": curve.stderr[len(seen) - 1],
        "finished_runs": count, "method": method,
    }  # fmt: skip
