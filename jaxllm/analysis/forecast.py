"""Forecasts of the final value of every task of a run in progress.

Runs are aligned by progress (tokens seen / tokens of the whole run), because the learning-rate
schedule ends with the run: at equal progress two runs of a suite are at the same point of it.
"""

from __future__ import annotations

import collections
import dataclasses
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from jaxllm.analysis.baselines import BASELINES, by_size
from jaxllm.analysis.benchmarks import benchmarks
from jaxllm.analysis.curves import Array, Curve, curves, is_share, of_metric
from jaxllm.analysis.finding import Finding
from jaxllm.analysis.forecast_methods import (
    RECENT,
    SAME_SIZE,
    Batch,
    damped_trends,
    forecast_batches,
)
from jaxllm.analysis.registry import AHEAD, Study, analysis
from jaxllm.analysis.stats import near_equal

# Columns in which two curves must agree to be comparable.
KEY_COLUMNS = ["task", "shots", "metric", "task_version"]
COLUMNS = (
    "run", *KEY_COLUMNS, "domain", "size", "progress", *BASELINES, "forecast", "low", "high",
    "stderr", "finished_runs", "distance", "method",
)  # fmt: skip
LEVEL = 0.9  # coverage of the prediction intervals
TRANSFER, ALONE = "other runs", "this run alone"
_LATER = 4  # number of points between the cut and the end at which finished runs are interpolated
_LATE = 0.03  # checkpoints closer than this in log tokens are averaged, the final ones among them
_EXAMPLES = 1000  # assumed where their number is unknown
_EPSILON = 1e-9


@dataclasses.dataclass(frozen=True)
class AlignedCurve:
    """A curve over the share of its run's tokens."""

    curve: Curve
    size: int  # index of the run's model size
    tokens: float  # of the whole run
    progress: Array  # [points] shares of the run's tokens, ascending
    values: Array  # [points] the metric
    stderr: Array  # [points], NaN where unknown

    @property
    def key(self) -> tuple[str, int, str, str]:
        """Values of the `KEY_COLUMNS`."""
        curve = self.curve
        return curve.task, curve.shots, curve.metric, curve.task_version

    @property
    def finished(self) -> bool:
        """Whether it reaches the last tokens of its run, which are averaged to its final value."""
        return -math.log(self.progress[-1]) < _LATE

    @property
    def model(self) -> tuple[float, float]:
        """Logarithms of the parameter count, 0 where it is unknown, and of the run's tokens."""
        params = self.curve.params if self.curve.params > 0 else 1.0
        return math.log(params), math.log(self.tokens)

    def until(self, cut: float) -> AlignedCurve:
        """The points up to and including the share `cut` of the training."""
        known = self.progress <= cut * (1 + _EPSILON)
        arrays = {name: getattr(self, name)[known] for name in ("progress", "values", "stderr")}
        return dataclasses.replace(self, **arrays)

    def smooth(self) -> AlignedCurve:
        """Means over checkpoints that are close to each other, such as the last ones."""
        bins = np.unique(np.floor(-np.log(self.progress) / _LATE), return_inverse=True)[1]
        count = np.bincount(bins)
        if count.max() == 1:
            return self
        means = [np.bincount(bins, each)[::-1] / count[::-1] for each in
                 (np.log(self.progress), self.values, self.stderr)]  # fmt: skip
        return dataclasses.replace(self, progress=np.exp(means[0]), values=means[1],
                                   stderr=means[2])  # fmt: skip

    def free(self) -> AlignedCurve:
        """The curve on a scale without bounds: see `Scale`."""
        values, slope = self.scale.free(self.values)
        return dataclasses.replace(self, values=values, stderr=self.stderr * slope)

    @property
    def scale(self) -> Scale:
        """The scale on which the curve is forecast."""
        return Scale(self.curve.metric, self.curve.n or _EXAMPLES)

    def at(self, positions: Array) -> Array:
        """Values at these shares of the training, interpolated linearly in its logarithm."""
        return np.interp(np.log(positions), np.log(self.progress), self.values)


@dataclasses.dataclass(frozen=True)
class Scale:
    """A scale without bounds: empirical logits of shares of `n` examples, logs of perplexities."""

    metric: str
    n: int

    def free(self, values: Array) -> tuple[Array, Array]:
        """Values on this scale, and its derivative."""
        if is_share(self.metric):
            share = (np.clip(values, 0.0, 1.0) * self.n + 0.5) / (self.n + 1)
            return np.log(share / (1 - share)), 1 / (share * (1 - share))
        if "perplexity" in self.metric:
            return np.log(np.maximum(values, 1e-9)), 1 / np.maximum(values, 1e-9)
        return values, np.ones_like(values)

    def bound(self, values: Array) -> Array:
        """The inverse of `free`."""
        if is_share(self.metric):
            share = 1 / (1 + np.exp(-values))
            return np.clip((share * (self.n + 1) - 0.5) / self.n, 0.0, 1.0)
        return np.exp(values) if "perplexity" in self.metric else values


@analysis(
    AHEAD,
    "Forecast",
    needs=lambda study: bool(study.planned_tokens),
    place=20,
    caption="Made from the run's own past and from finished runs, if there are any; the interval "
    "holds the value of the final checkpoint, its sampling noise included.",
    method="Kriging over size, tokens and training (Cressie 1993), combined by cross-validation "
    "(Bates and Granger 1969); alone, damped trends (Gardner and McKenzie 1985).",
)
def forecasts(study: Study) -> list[Finding]:
    """Forecast every run in progress from the finished runs."""
    planned = study.planned_tokens
    made = {run: forecast(study.records, run, planned) for run in planned}
    title = "Forecast for {}" if len(study.runs) > 1 else ""
    return [dataclasses.replace(one, title=title.format(run)) for run, one in made.items()]


def forecast(records: pd.DataFrame, run: str, planned_tokens: Mapping[str, float]) -> Finding:
    """Forecast the value of every task of `run` at the end of its training, as `COLUMNS`.

    `planned_tokens` are the totals of all runs in progress; the forecast is fitted to the others.
    `low` to `high` holds the final checkpoint's value, its sampling noise included.
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
        notes += (f"{alone} tasks are of no finished run: forecast from the run alone.",)
    shares = table[of_metric(is_share, table.metric)]
    shown = shares if len(shares) else table
    best = (shown.forecast - shown["last"]).abs().idxmax()
    count = int(shown.finished_runs.max())
    basis = f"learned from {count} other run{'s' * (count > 1)}" if count else "from this run alone"
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
    """Align the curves of every primary metric; with notes on dropped records. Runs without
    `planned_tokens` end at their largest token count in the table.
    """
    primary = records[records.primary.astype(bool)] if records.primary.any() else records
    known = curves(primary[primary.tokens > 0]).comparable()
    notes, ends = list(known.notes), known.points.groupby("run").tokens.max().to_dict()
    for run, total in (planned_tokens or {}).items():
        if total < ends.get(run, 0):
            notes.append(f"{run} has {ends[run]:,.0f} tokens, more than the {total:,.0f} planned")
        ends[run] = max(total, ends.get(run, 0))
    params = known.table.drop_duplicates("run").set_index("run").params
    sizes = near_equal(params.astype(float), math.exp(SAME_SIZE))
    return [
        AlignedCurve(c, int(sizes[c.run]), ends[c.run], c.tokens / ends[c.run], c.values, c.stderr)
        for c in known
    ], tuple(notes)


def predict(
    targets: list[AlignedCurve], others: list[AlignedCurve], cut: float, level: float = LEVEL
) -> pd.DataFrame:
    """Forecast final values of `targets` from their first share `cut`, as `COLUMNS`.

    A row per target with a point before the cut, in their order. Where none of the `others` is
    finished, it is from the run's own past, and baselines that need other runs are NaN.
    """
    known = [past for past in (target.until(cut) for target in targets) if len(past.progress)]
    smooth = [past.smooth() for past in known]
    expected = _from_others([past.free() for past in smooth], others, level)
    alone: dict[str, list[int]] = collections.defaultdict(list)
    for i, past in enumerate(known):
        if i not in expected:
            alone[past.curve.run].append(i)
    for members in alone.values():
        own = [smooth[i].free() for i in members]
        trends = damped_trends(
            [(np.log(one.progress), one.values, one.stderr[-1]) for one in own], level
        )
        expected |= {i: Expected(*trend) for i, trend in zip(members, trends, strict=True)}
    rows = [_row(past, smooth[i], expected[i]) for i, past in enumerate(known)]
    return pd.DataFrame(rows, columns=list(COLUMNS))


class Expected(NamedTuple):
    """A forecast, on the scale of the task, and what it was made from."""

    value: float
    half: float  # of the interval
    runs: int = 0  # finished runs fitted to
    distance: float = math.nan  # factor in size to the nearest of them
    baselines: tuple[float, ...] = (math.nan,) * 3  # of `baselines.by_size`, final values


def _from_others(
    targets: list[AlignedCurve], others: list[AlignedCurve], level: float
) -> dict[int, Expected]:
    """Forecasts by index of the target; targets of which no other run is finished are left out."""
    finished: dict[tuple[object, ...], list[AlignedCurve]] = collections.defaultdict(list)
    for other in sorted(others, key=lambda one: one.model):
        if len(other.progress) > 1 and other.finished:
            finished[other.key].append(other.smooth().free())
    # Tasks of the same finished models at the same checkpoints share all matrices.
    grids: dict[tuple[Any, ...], dict[tuple[Any, ...], list[int]]] = {}
    begun: dict[tuple[Any, ...], list[AlignedCurve]] = {}
    for i, target in enumerate(targets):
        recent = tuple(target.progress[-RECENT:].round(6))
        runs = [
            other
            for other in finished[target.key]
            if other.progress[0] <= recent[-1] * (1 + _EPSILON)
            and (other.model[0] > 0) == (target.model[0] > 0)
        ]
        if runs:
            begun[target.key, recent] = runs
            grid = target.model, recent, tuple(run.model for run in runs)
            grids.setdefault(grid, {}).setdefault(target.key, []).append(i)
    names = benchmarks(sorted({target.curve.task for target in targets}))
    batches, members = [], []
    for (model, recent, models), of_key in grids.items():
        times = np.concatenate([recent, np.linspace(recent[-1], 1.0, _LATER + 1)[1:]])
        members.append([i for of in of_key.values() for i in of])
        batches.append(
            Batch(
                own=np.array([targets[i].values[-RECENT:] for i in members[-1]]),
                task=np.repeat(np.arange(len(of_key)), [len(of) for of in of_key.values()]),
                model=np.array(model),
                finished=np.array(
                    [[run.at(times) for run in begun[key, recent]] for key in of_key]
                ),
                models=np.array(models),
                times=times,
                benchmarks=np.array([f"{names[key[0]]} {key[2]}" for key in of_key]),
            )
        )
    expected: dict[int, Expected] = {}
    forecasts = forecast_batches(batches, level) if batches else []
    for batch, own, (values, halves) in zip(batches, members, forecasts, strict=True):
        size, sizes = batch.model[0], batch.models[:, 0]
        distance = math.exp(float(np.abs(sizes - size).min()))
        for i, task, value, half in zip(own, batch.task, values, halves, strict=True):
            scale = targets[i].scale
            now, end = (scale.bound(batch.finished[task, :, at]) for at in (-1 - _LATER, -1))
            last = float(scale.bound(targets[i].values[-1]))
            baselines = by_size(last, now, end, sizes, size)
            expected[i] = Expected(float(value), float(half), len(now), distance, baselines)
    return expected


def _row(past: AlignedCurve, smooth: AlignedCurve, made: Expected) -> tuple[object, ...]:
    """A row of `COLUMNS`."""
    span = np.array([0.0, -made.half, made.half])
    alone = past.values[-1], past.values[-RECENT:].mean()
    return (
        past.curve.run, *past.key, past.curve.domain, past.size, past.progress[-1], *alone,
        *made.baselines, *past.scale.bound(made.value + span), past.stderr[-1], made.runs,
        made.distance, TRANSFER if made.runs else ALONE,
    )  # fmt: skip
