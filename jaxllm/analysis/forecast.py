"""Forecasts of the final value of every task of a run in progress.

Runs are aligned by progress (tokens seen / tokens of the whole run), because the learning-rate
schedule ends with the run: at equal progress two runs of a suite are at the same point of it.
"""

from __future__ import annotations

import collections
import dataclasses
import math
from collections.abc import Mapping

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
    predictions,
)
from jaxllm.analysis.registry import AHEAD, Study, analysis
from jaxllm.analysis.stats import line_fit

# Columns in which two curves must agree to be comparable.
KEY_COLUMNS = ["task", "shots", "metric", "task_version"]
COLUMNS = (
    "run", *KEY_COLUMNS, "domain", "size", "progress", "last", "log_linear", "forecast", "low",
    "high", "stderr", "finished_runs", "method",
)  # fmt: skip
LEVEL = 0.9  # coverage of the prediction intervals
TRANSFER, ALONE = "other runs", "this run alone"
_MIN_FOLDS = 3  # minimum number of finished sizes (or, of fewer sizes, runs) to cross-validate on
_SAME_SIZE = 0.10  # relative difference in parameter count below which two runs are of one size
_LATER = 4  # number of points between the cut and the end at which finished runs are interpolated
_EPSILON = 1e-9


@dataclasses.dataclass(frozen=True)
class AlignedCurve:
    """A curve over the share of its run's tokens."""

    curve: Curve
    size: int  # index of the run's model size
    progress: Array  # [points] shares of the run's tokens, ascending
    values: Array  # [points] the metric
    stderr: Array  # [points], NaN where unknown

    @property
    def key(self) -> tuple[str, int, str, str]:
        """Values of the `KEY_COLUMNS`."""
        curve = self.curve
        return curve.task, curve.shots, curve.metric, curve.task_version

    @property
    def log_params(self) -> float:
        """Natural logarithm of the parameter count; 0 where it is unknown."""
        return math.log(self.curve.params) if self.curve.params > 0 else 0.0

    def until(self, cut: float) -> AlignedCurve:
        """The points up to and including the share `cut` of the training."""
        known = self.progress <= cut * (1 + _EPSILON)
        arrays = {name: getattr(self, name)[known] for name in ("progress", "values", "stderr")}
        return dataclasses.replace(self, **arrays)

    def at(self, positions: Array) -> Array:
        """Values at these shares of the training, interpolated linearly in its logarithm."""
        return np.interp(np.log(positions), np.log(self.progress), self.values)

    def log_linear(self) -> float:
        """Final value by a least-squares line in log tokens."""
        line = line_fit(np.log(self.progress), self.values)
        return float(self.values[-1]) if line is None else float(line.at(0.0))


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
    planned = study.planned_tokens
    titles = {run: f"Forecast for {run}" if study.several_runs() else "" for run in planned}
    return [
        dataclasses.replace(forecast(study.records, run, planned), title=title)
        for run, title in titles.items()
    ]


def forecast(records: pd.DataFrame, run: str, planned_tokens: Mapping[str, float]) -> Finding:
    """Forecast the value of every task of `run` at the end of its training.

    `planned_tokens` are the totals of all runs in progress; the forecast is fitted to the others.

    Returns:
      `COLUMNS`, a row per task: `finished_runs` is the number of runs that the forecast was fitted
      to, `low` and `high` the prediction interval of the final checkpoint's value, including its
      sampling noise.
    """
    aligned_curves, notes = aligned(records, planned_tokens)
    targets = [one for one in aligned_curves if one.curve.run == run]
    others = [one for one in aligned_curves if one.curve.run not in planned_tokens]
    if not targets:
        return Finding.refuse(f"no task of {run} has a value", notes)
    progress = max(float(one.progress[-1]) for one in targets)
    table = predict(targets, others, progress)
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
        f"({LEVEL:.0%} interval, median ± {(shown.high - shown.low).median() / 2:.3f}); the "
        f"largest expected change is {shown.task[best]}, from {shown['last'][best]:.3f} to "
        f"{shown.forecast[best]:.3f}."
    )
    return Finding(sentence, table, notes=notes)


def aligned(
    records: pd.DataFrame, planned_tokens: Mapping[str, float] | None = None
) -> tuple[list[AlignedCurve], tuple[str, ...]]:
    """Align the curves of every primary metric; with notes on dropped records.

    Runs without `planned_tokens` end at their largest token count in the table.
    """
    primary = records[records.primary.astype(bool)] if records.primary.any() else records
    known = curves(primary[primary.tokens > 0]).comparable()
    notes, ends = list(known.notes), known.points.groupby("run").tokens.max().to_dict()
    for run, total in (planned_tokens or {}).items():
        if total < ends.get(run, 0):
            notes.append(f"{run} has {ends[run]:,.0f} tokens, more than the {total:,.0f} planned")
        ends[run] = max(total, ends.get(run, 0))
    sizes = _sizes(known.table.drop_duplicates("run").set_index("run").params)
    return [
        AlignedCurve(c, sizes[c.run], c.tokens / ends[c.run], c.values, c.stderr) for c in known
    ], tuple(notes)


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
    targets: list[AlignedCurve], others: list[AlignedCurve], cut: float, level: float = LEVEL
) -> pd.DataFrame:
    """Forecast final values of `targets`, of runs of one size, from their first share `cut`.

    Where too few of the `others` are finished, the forecast uses the run's own past only.

    Returns:
      `COLUMNS`, a row per target with a point before the cut, in the order of `targets`.
    """
    known = [past for past in (target.until(cut) for target in targets) if len(past.progress)]
    expected = _from_others(known, others, level)
    alone: dict[str, list[int]] = collections.defaultdict(list)
    for i, past in enumerate(known):
        if i not in expected:
            alone[past.curve.run].append(i)
    for members in alone.values():
        trends = damped_trends(
            [(np.log(known[i].progress), known[i].values, known[i].stderr[-1]) for i in members],
            level,
        )
        expected |= {i: (*trend, 0) for i, trend in zip(members, trends, strict=True)}
    rows = [_row(past, *expected[i]) for i, past in enumerate(known)]
    return pd.DataFrame(rows, columns=list(COLUMNS))


def _from_others(
    targets: list[AlignedCurve], others: list[AlignedCurve], level: float
) -> dict[int, tuple[float, float, int]]:
    """Final value, half interval and number of runs fitted to, by index of the target.

    Targets with too few finished runs are left out.
    """
    finished: dict[tuple[object, ...], list[AlignedCurve]] = collections.defaultdict(list)
    for other in others:
        if len(other.progress) > 1 and other.progress[-1] > 1 - _EPSILON:
            finished[other.key].append(other)
    groups: dict[tuple[object, ...], list[int]] = collections.defaultdict(list)
    for i, target in enumerate(targets):
        groups[(target.key, *target.progress[-RECENT:].round(6))].append(i)
    names = benchmarks(sorted({target.curve.task for target in targets}))
    tasks, predicted = [], []
    for members in groups.values():
        first = targets[members[0]]
        recent = first.progress[-RECENT:]
        runs = [o for o in finished[first.key] if o.progress[0] <= recent[-1] * (1 + _EPSILON)]
        folds = _folds(runs)
        if len(np.unique(folds)) < _MIN_FOLDS:
            continue
        times = np.concatenate([recent, np.linspace(recent[-1], 1.0, _LATER + 1)[1:]])
        values = np.array([run.at(times) for run in runs])
        sizes = np.array([run.log_params for run in runs])
        early = len(recent)
        errors = np.empty((len(runs), len(METHODS)))
        for fold in np.unique(folds):
            own, rest = folds == fold, folds != fold
            size = float(sizes[own].mean())
            errors[own] = predictions(values[own, :early], size, values[rest], sizes[rest], times)
        errors -= values[:, -1:]
        tasks.append(CrossValidation(errors, folds, names[first.curve.task]))
        now = np.array([targets[i].values[-RECENT:] for i in members])
        size = float(np.mean([targets[i].log_params for i in members]))
        predicted.append((members, predictions(now, size, values, sizes, times), len(runs)))
    if not tasks:
        return {}
    weights, halves = combine(tasks, level)
    return {
        i: (float(value), float(half), count)
        for own, half, (members, forecast, count) in zip(weights, halves, predicted, strict=True)
        for i, value in zip(members, forecast @ own, strict=True)
    }


def _folds(runs: list[AlignedCurve]) -> np.ndarray:
    """Cross-validation folds: sizes where there are enough of them, else runs."""
    sizes = np.array([run.size for run in runs], dtype=int)
    if len(np.unique(sizes)) >= _MIN_FOLDS:
        return sizes
    return np.unique([run.curve.run for run in runs], return_inverse=True)[1]


def _row(past: AlignedCurve, value: float, half: float, count: int) -> tuple[object, ...]:
    low, high = value - half, value + half
    if is_share(past.curve.metric):
        value, low, high = (min(max(each, 0.0), 1.0) for each in (value, low, high))
    return (
        past.curve.run, *past.key, past.curve.domain, past.size, past.progress[-1],
        past.values[-1], past.log_linear(), value, low, high, past.stderr[-1], count,
        TRANSFER if count else ALONE,
    )  # fmt: skip
