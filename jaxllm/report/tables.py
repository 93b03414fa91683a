"""Run directories and imported results -> the tidy tables of a report, with notes on gaps."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd

from jaxllm.analysis.benchmarks import pooled
from jaxllm.analysis.curves import curves, is_share, of_metric
from jaxllm.analysis.onsets import gain_share, trajectories
from jaxllm.analysis.registry import Study
from jaxllm.report import numbers
from jaxllm.report.charts.axes import CLOCKS
from jaxllm.report.notes import trajectory_notes
from jaxllm.report.theme import DISTINCT
from jaxllm.run.records import Results
from jaxllm.run.run import Run

LOGGED = {
    "grad_norm": "Gradient norm",
    "learning_rate": "Learning rate",
    "tokens_per_second": "Tokens per second",
    "mfu": "Model FLOPs utilisation",
}
"""The quantities of metrics.jsonl that are charted beside the losses, and their titles."""

_BAND = 1.96  # standard errors
_POINTS_PER_CURVE = 1200
_ALSO = "another run is called {} too; they are kept apart."


@dataclasses.dataclass(frozen=True)
class Overview:
    """Key figures of one run; NaN where unknown."""

    run: str
    params: float
    tokens: float
    flops: float
    wall_seconds: float
    evaluation_share: float
    final_loss: float
    checkpoints: int
    restarts: int
    family: str = ""
    planned_tokens: float = math.nan

    @property
    def in_progress(self) -> bool:
        """Whether the run has seen fewer tokens than planned."""
        return self.tokens < 0.999 * self.planned_tokens


@dataclasses.dataclass(frozen=True)
class Tables:
    """Data of a report.

    Attributes:
      overviews: one per run, in the order of the sources.
      points: charted trajectories with `low`, `high` (±1.96 stderr), `left_chance`, `series`, and
        the training `loss` at the checkpoint.
      findings: when each task left chance; see `jaxllm.analysis.onsets.trajectories`.
      shares: `points` with the share of each task's gain and the cells of the gain chart.
      metrics: metrics.jsonl in long form: `run, step, tokens, flops, loss, name, value, series`.
      series: names of the colours: runs if there are several, size classes if there are more
        runs than colours, else domains.
      notes: missing or inconsistent data, one sentence each.
      records: all metrics of the charted tasks (or benchmarks).
      all_records: trajectory table before tasks were pooled to benchmarks.
      logged: rows of metrics.jsonl, with a column `run`.
      colour_of: series of each run, where there are several runs.
    """

    overviews: tuple[Overview, ...]
    points: pd.DataFrame
    findings: pd.DataFrame
    shares: pd.DataFrame
    metrics: pd.DataFrame
    series: tuple[str, ...]
    notes: tuple[str, ...]
    records: pd.DataFrame
    all_records: pd.DataFrame
    logged: pd.DataFrame
    colour_of: dict[str, str]

    @property
    def several_runs(self) -> bool:
        """Whether there are several runs, so that colours stand for runs or sizes."""
        return len(self.overviews) > 1

    @property
    def many_runs(self) -> bool:
        """Whether there are more runs than colours, so that colours stand for size classes."""
        return len(self.overviews) > DISTINCT

    @property
    def palette(self) -> str:
        """Colour palette: "sizes", in the order of the sizes, or "series", distinct."""
        return "sizes" if self.many_runs else "series"

    def study(self, backtested: bool = False) -> Study:
        """Input of the analyses; `backtested` to backtest the forecasts."""
        params = {overview.run: overview.params for overview in self.overviews}
        losses = self.metrics[self.metrics.name == "loss"].assign(
            params=lambda rows: rows.run.map(params), loss=lambda rows: rows.value
        )
        return Study(
            records=self.records,
            raw_records=self.all_records,
            logged=self.logged,
            losses=losses[["run", "params", "tokens", "flops", "loss"]],
            planned_tokens={o.run: o.planned_tokens for o in self.overviews if o.in_progress},
            backtested=backtested,
        )

    def finals(self, task: str) -> Iterator[Any]:
        """Findings on one task, in the order of the runs."""
        order = [overview.run for overview in self.overviews]
        rows = self.findings[self.findings.task == task]
        return rows.sort_values("run", key=lambda run: run.map(order.index)).itertuples()

    @functools.cached_property
    def domains(self) -> dict[str, list[str]]:
        """Tasks by domain, both ordered by when they left chance."""
        grouped: dict[str, list[str]] = {}
        for task, domain in zip(self.findings.task, self.findings.domain, strict=True):
            if task not in grouped.setdefault(domain, []):
                grouped[domain].append(task)
        return grouped


@dataclasses.dataclass(frozen=True)
class _Part:
    """One run of one source, under a unique name."""

    label: str
    records: pd.DataFrame
    metrics: pd.DataFrame
    checkpoints: pd.DataFrame = dataclasses.field(default_factory=pd.DataFrame)
    planned_tokens: float = math.nan


def gather(sources: Sequence[Run | Results], budget_tokens: float = math.nan) -> Tables:
    """Read `sources` into the tables of one report; runs of the same name are numbered.

    Args:
      sources: run directories and imported results.
      budget_tokens: total tokens of the run directories, in place of those of their configs.
    """
    notes: list[str] = []
    parts: list[_Part] = []
    for source in sources:
        parts += _parts(source, parts, notes, budget_tokens)
    overviews = [_overview(part) for part in parts]
    long = [_long(part.label, part.metrics, notes) for part in parts]
    all_records = _joined([part.records for part in parts])
    logged = _joined([part.metrics.assign(run=part.label) for part in parts])
    records, pooling = pooled(all_records)
    metrics = _joined(long)
    main = curves(records).main()
    points, findings = trajectories(main, records)
    # The notes on the trajectories list records without a value, by task and checkpoint.
    notes += [*pooling, *(note for note in main.notes if "have no value" not in note)]
    notes += trajectory_notes(records, points, findings, len(parts))
    of_run: dict[str, str] = {}
    if len(parts) > 1:
        of_run, series = _run_series(overviews)
        points = points.assign(series=points.run.map(of_run))
        metrics = metrics.assign(series=metrics.run.map(of_run))
    else:
        domains = metrics.name[metrics.name.str.startswith("loss/")].str.removeprefix("loss/")
        series = list(dict.fromkeys([*findings.domain, *domains]))
        points = points.assign(series=points.domain)
        metrics = metrics.assign(series=metrics.name.str.removeprefix("loss/"))
    points = _with_bands(_with_loss(points, metrics))
    shares = _cells(gain_share(points, findings))
    return Tables(
        tuple(overviews), points, findings, shares, metrics, tuple(series), tuple(notes), records,
        all_records, logged, of_run,
    )  # fmt: skip


def _parts(
    source: Run | Results, before: Sequence[_Part], notes: list[str], budget_tokens: float
) -> list[_Part]:
    """Runs of a source, under names distinct from those of `before`."""
    labels = [part.label for part in before]
    if isinstance(source, Run):
        label = _numbered(source.name, labels)
        if label != source.name:
            notes.append(f"{label} is {source.path}: {_ALSO.format(source.name)}")
        records = source.records().assign(run=label)
        notes += [p.replace(f"{source.path}/", f"{label}: ", 1) for p in source.problems()]
        if records.empty:
            notes.append(f"{label}: no checkpoint has been scored yet.")
        if source.metrics().empty:
            notes.append(
                f"{label}: metrics.jsonl is missing or empty, so no loss and no health is shown."
            )
        planned = budget_tokens if budget_tokens > 0 else source.planned_tokens()
        return [_Part(label, records, source.metrics(), source.checkpoints(), planned)]
    notes += source.problems
    key = ["run", "family", "params"]
    grouped = source.records.groupby(key, sort=False, dropna=False)
    runs = [(str(name), records) for (name, _, _), records in grouped]
    only_logged = dict.fromkeys(source.metrics.run).keys() - {name for name, _ in runs}
    runs += [(str(name), source.records.iloc[:0]) for name in sorted(only_logged)]
    parts = []
    for name, records in runs:
        label = _numbered(name, labels)
        if label != name:
            notes.append(f"{label}: {_ALSO.format(name)}")
        labels.append(label)
        metrics = source.metrics[source.metrics.run == name].drop(columns="run")
        parts.append(_Part(label, records.assign(run=label), metrics))
    return parts


def _joined(frames: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """Concatenate frames, ignoring the column types of empty ones."""
    return pd.concat([frame for frame in frames if len(frame)] or frames[:1], ignore_index=True)


def _numbered(name: str, taken: Sequence[str]) -> str:
    numbered = (f"{name} ({number})" for number in itertools.count(2))
    return next(label for label in itertools.chain([name], numbered) if label not in taken)


def _run_series(overviews: Sequence[Overview]) -> tuple[dict[str, str], list[str]]:
    """Series (run or size class) of each run, and all series, smaller sizes first."""
    if len(overviews) <= DISTINCT:
        names = [overview.run for overview in overviews]
        return dict(zip(names, names, strict=True)), names
    known = sorted({o.params for o in overviews if o.params > 0})
    classes = [[params] for params in known]
    room = DISTINCT - (len(known) < len({o.params for o in overviews}))
    while len(classes) > room:  # merge the two nearest
        spans = [math.log(b[-1] / a[0]) for a, b in itertools.pairwise(classes)]
        at = spans.index(min(spans))
        classes[at : at + 2] = [classes[at] + classes[at + 1]]
    names_of: dict[float, str] = {}
    for of_class in classes:
        ends = dict.fromkeys(numbers.count(float(f"{p:.2g}")) for p in (of_class[0], of_class[-1]))
        names_of |= dict.fromkeys(of_class, "–".join(ends))
    of_run = {o.run: names_of.get(o.params, "size unknown") for o in overviews}
    order = list(dict.fromkeys([*names_of.values(), *of_run.values()]))
    return of_run, [name for name in order if name in of_run.values()]


def _with_loss(points: pd.DataFrame, metrics: pd.DataFrame) -> pd.DataFrame:
    """Training loss at each checkpoint, interpolated; NaN where none is logged."""
    losses = pd.Series(math.nan, index=points.index)
    for run, logged in metrics[metrics.name == "loss"].dropna(subset="value").groupby("run"):
        mine = points.run == run
        known = logged.sort_values("step")
        losses[mine] = np.interp(points.step[mine], known.step, known.value)
    return points.assign(loss=losses)


def _overview(part: _Part) -> Overview:
    records, metrics = part.records, part.metrics

    def last(column: str) -> float:
        values = _numbers(metrics, column).dropna()
        return float(values.iloc[-1]) if len(values) else math.nan

    def largest(column: str) -> float:
        tables = (records, metrics, part.checkpoints)
        return float(pd.concat([_numbers(table, column) for table in tables]).max())

    return Overview(
        run=part.label,
        params=largest("params"),
        tokens=largest("tokens"),
        flops=largest("flops"),
        wall_seconds=last("wall_seconds"),
        evaluation_share=last("time/evaluation"),
        final_loss=last("loss"),
        checkpoints=records.step.nunique(),
        restarts=int(last("restarts")) if last("restarts") >= 0 else 0,
        family=str(records.family.iloc[-1]) if len(records) else "",
        planned_tokens=part.planned_tokens,
    )


def _numbers(frame: pd.DataFrame, column: str) -> pd.Series:
    """Finite floats of a column; empty for a missing column."""
    if column not in frame:
        return pd.Series(dtype="float64")
    values = pd.to_numeric(frame[column], errors="coerce").astype("float64")
    return values.where(np.isfinite(values))


def _long(label: str, metrics: pd.DataFrame, notes: list[str]) -> pd.DataFrame:
    """Charted columns of metrics.jsonl in long form (name, value), thinned where dense."""
    names = [c for c in metrics if c == "loss" or c.startswith("loss/") or c in LOGGED]
    rows = [pd.DataFrame(columns=["run", *CLOCKS, "loss", "name", "value"])]
    for name in names:
        given = metrics[name].notna() | (name == "loss")
        logged = pd.DataFrame({clock: _numbers(metrics, clock) for clock in [*CLOCKS, "loss"]})
        logged["value"] = _numbers(metrics, name)
        logged = logged[given]
        wrong = logged.step[logged.value.isna()]
        if len(wrong):
            notes.append(
                f"{label}: {name} is not a finite number at {len(wrong)} logged "
                f"{'steps' if len(wrong) > 1 else 'step'} (first: {wrong.iloc[0]:.0f})."
            )
        if len(logged) > _POINTS_PER_CURVE and name == "loss":
            notes.append(
                f"{label}: {len(logged):,} steps were logged; the curves of loss and health show "
                f"means of neighbouring steps, {_POINTS_PER_CURVE:,} at most."
            )
        rows.append(_thinned(logged).assign(run=label, name=name))
    return _joined(rows)


def _thinned(logged: pd.DataFrame) -> pd.DataFrame:
    """Thin by means over bins, half of them equal in steps and half in log steps."""
    total = len(logged)
    if total <= _POINTS_PER_CURVE:
        return logged
    half = _POINTS_PER_CURVE // 2
    edges = np.unique(
        np.concatenate(
            [np.linspace(0, total, half + 1), np.geomspace(1, total, half), [0, total]]
        ).astype(int)
    )
    bins = np.searchsorted(edges, np.arange(total), side="right")
    return logged.groupby(bins).mean()


def _with_bands(points: pd.DataFrame) -> pd.DataFrame:
    share = of_metric(is_share, points.metric)
    low, high = points.value - _BAND * points.stderr, points.value + _BAND * points.stderr
    return points.assign(
        low=low.where(~share, low.clip(0, 1)), high=high.where(~share, high.clip(0, 1))
    )


def _cells(shares: pd.DataFrame) -> pd.DataFrame:
    """Cells of the gain chart, each from the previous checkpoint to its own."""
    shares = shares.sort_values("step", ignore_index=True)
    grouped = shares.groupby(["run", "task"], sort=False)
    cells = {f"{clock}_from": grouped[clock].shift().fillna(0.0) for clock in CLOCKS}
    cells["loss_from"] = grouped["loss"].shift().fillna(grouped["loss"].transform("max"))
    final = grouped["step"].transform("max")
    text = [numbers.value(v, m) for v, m in zip(shares.value, shares.metric, strict=True)]
    return shares.assign(**cells, is_last=shares.step == final, final_text=text)
