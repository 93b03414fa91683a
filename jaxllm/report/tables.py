"""Run directories -> the tidy tables of a report, and a note for everything that they lack."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Sequence

import numpy as np
import pandas as pd

from jaxllm.analysis import capabilities as analysis
from jaxllm.report import numbers
from jaxllm.report.axes import CLOCKS
from jaxllm.trajectory.records import OK
from jaxllm.trajectory.run import Run

BAND = 1.96
_POINTS_PER_CURVE = 1200
HEALTH = {
    "grad_norm": "Gradient norm",
    "learning_rate": "Learning rate",
    "tokens_per_second": "Tokens per second",
    "mfu": "Model FLOPs utilisation",
}


@dataclasses.dataclass(frozen=True)
class Overview:
    """One run at a glance; NaN where the run directory does not say."""

    run: str
    params: float
    tokens: float
    flops: float
    wall_seconds: float
    evaluation_share: float
    final_loss: float
    checkpoints: int
    restarts: int


@dataclasses.dataclass(frozen=True)
class Tables:
    """What a report shows.

    Attributes:
      overviews: One per run, in the order given.
      points: The charted trajectories with `low`, `high` (±1.96 SE), `left_chance`, `series`.
      findings: When each task left chance; see `jaxllm.analysis.capabilities.onsets`.
      shares: `points` with the share of each task's gain and the cells of the gain chart.
      metrics: metrics.jsonl in long form: `run, step, tokens, flops, name, value, series`.
      series: Names that the colours stand for: runs if there are several, else domains.
      notes: What is missing or wrong in the data, one sentence each.
    """

    overviews: tuple[Overview, ...]
    points: pd.DataFrame
    findings: pd.DataFrame
    shares: pd.DataFrame
    metrics: pd.DataFrame
    series: tuple[str, ...]
    notes: tuple[str, ...]

    @property
    def several_runs(self) -> bool:
        """Whether colours stand for runs."""
        return len(self.overviews) > 1

    @functools.cached_property
    def domains(self) -> dict[str, list[str]]:
        """Tasks by domain, both in the order in which they first left chance."""
        grouped: dict[str, list[str]] = {}
        for task, domain in zip(self.findings.task, self.findings.domain, strict=True):
            if task not in grouped.setdefault(domain, []):
                grouped[domain].append(task)
        return grouped


def gather(runs: Sequence[Run]) -> Tables:
    """Reads `runs` into the tables of one report; runs of the same name are numbered."""
    notes: list[str] = []
    overviews, all_records, all_metrics = [], [], []
    for run, label in zip(runs, _labels(runs), strict=True):
        records = run.records().assign(run=label)
        metrics = run.metrics()
        notes += [problem.replace(f"{run.path}/", f"{label}: ", 1) for problem in run.problems()]
        if records.empty:
            notes.append(f"{label}: no checkpoint has been scored yet.")
        if metrics.empty:
            notes.append(
                f"{label}: metrics.jsonl is missing or empty, so no loss and no health is shown."
            )
        overviews.append(_overview(label, run, records, metrics))
        all_records.append(records)
        all_metrics.append(_long(label, metrics, notes))
    records = pd.concat(all_records, ignore_index=True)
    metrics = pd.concat(all_metrics, ignore_index=True)
    points = analysis.charted(records)
    findings = analysis.onsets(points)
    notes += _trajectory_notes(records, points, findings, several=len(runs) > 1)
    if len(runs) > 1:
        series = [overview.run for overview in overviews]
        points, metrics = points.assign(series=points.run), metrics.assign(series=metrics.run)
    else:
        domains = metrics.name[metrics.name.str.startswith("loss/")].str.removeprefix("loss/")
        series = list(dict.fromkeys([*findings.domain, *domains]))
        points = points.assign(series=points.domain)
        metrics = metrics.assign(series=metrics.name.str.removeprefix("loss/"))
    points = _with_bands(points, findings)
    shares = _cells(analysis.gain_share(points, findings))
    return Tables(tuple(overviews), points, findings, shares, metrics, tuple(series), tuple(notes))


def _labels(runs: Sequence[Run]) -> list[str]:
    labels: list[str] = []
    for run in runs:
        number = 1 + sum(label.split(" (")[0] == run.name for label in labels)
        labels.append(run.name if number == 1 else f"{run.name} ({number})")
    return labels


def _overview(label: str, run: Run, records: pd.DataFrame, metrics: pd.DataFrame) -> Overview:
    def last(column: str) -> float:
        values = _numbers(metrics, column).dropna()
        return float(values.iloc[-1]) if len(values) else math.nan

    def largest(column: str) -> float:
        tables = (records, metrics, run.checkpoints())
        values = [_numbers(table, column).max() for table in tables]
        return float(np.nanmax(values)) if not np.isnan(values).all() else math.nan

    scoring = records.groupby(["step", "task"])["seconds"].max().sum()
    wall = last("wall_seconds")
    return Overview(
        run=label,
        params=largest("params"),
        tokens=largest("tokens"),
        flops=largest("flops"),
        wall_seconds=wall,
        evaluation_share=float(scoring / wall) if wall > 0 else math.nan,
        final_loss=last("loss"),
        checkpoints=records.step.nunique(),
        restarts=int(last("restarts")) if last("restarts") >= 0 else 0,
    )


def _numbers(frame: pd.DataFrame, column: str) -> pd.Series:
    """A column as finite floats; empty when there is no such column."""
    if column not in frame:
        return pd.Series(dtype="float64")
    values = pd.to_numeric(frame[column], errors="coerce").astype("float64")
    return values.where(np.isfinite(values))


def _long(label: str, metrics: pd.DataFrame, notes: list[str]) -> pd.DataFrame:
    """The charted columns of metrics.jsonl as rows of (name, value), thinned where dense."""
    names = [c for c in metrics if c == "loss" or c.startswith("loss/") or c in HEALTH]
    rows = [pd.DataFrame(columns=["run", *CLOCKS, "name", "value"])]
    for name in names:
        given = metrics[name].notna() | (name == "loss")
        logged = pd.DataFrame({clock: _numbers(metrics, clock) for clock in CLOCKS})
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
    return pd.concat([part for part in rows if len(part)] or rows, ignore_index=True)


def _thinned(logged: pd.DataFrame) -> pd.DataFrame:
    """Means over bins, half of them equal in steps and half in log steps, early ones finer."""
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


def _with_bands(points: pd.DataFrame, findings: pd.DataFrame) -> pd.DataFrame:
    share = points.metric.map(analysis.is_share).astype(bool)
    low, high = points.value - BAND * points.stderr, points.value + BAND * points.stderr
    onset = findings[["run", "task", "step"]].rename(columns={"step": "onset"})
    onset = onset.assign(onset=onset.onset.astype("float64"))
    merged = points.merge(onset, on=["run", "task"], how="left")
    return points.assign(
        low=low.where(~share, low.clip(0, 1)),
        high=high.where(~share, high.clip(0, 1)),
        left_chance=(merged.step == merged.onset).to_numpy(),
    )


def _cells(shares: pd.DataFrame) -> pd.DataFrame:
    """The gain chart's cells: each checkpoint's colour fills the time since the one before."""
    shares = shares.sort_values("step", ignore_index=True)
    grouped = shares.groupby(["run", "task"], sort=False)
    cells = {f"{clock}_from": grouped[clock].shift().fillna(0.0) for clock in CLOCKS}
    final = grouped["step"].transform("max")
    text = [numbers.value(v, m) for v, m in zip(shares.value, shares.metric, strict=True)]
    return shares.assign(**cells, is_last=shares.step == final, final_text=text)


def _trajectory_notes(
    records: pd.DataFrame, points: pd.DataFrame, findings: pd.DataFrame, several: bool
) -> list[str]:
    notes = []
    for (run, task), rows in points.groupby(["run", "task"], sort=False):
        name = f"{run}: {task}" if several else str(task)
        failed = rows[~rows.status.isin([OK, "no record"])]
        if len(failed):
            notes.append(f"{name} failed at {_steps(failed)}: {failed.status.iloc[-1]}")
        missing = rows[rows.status == "no record"]
        if len(missing):
            notes.append(f"{name} has no record at {_steps(missing)}.")
        wrong = rows[(rows.status == OK) & rows.value.isna()]
        if len(wrong):
            notes.append(f"{name} is not a finite number at {_steps(wrong)}.")
        good = rows.dropna(subset="value")
        if len(good) and good.stderr.isna().any():
            notes.append(f"{name} has no standard error at {_steps(good[good.stderr.isna()])}.")
        if len(good) and good.chance.isna().all() and not analysis.lower_is_better(
            good.metric.iloc[0]
        ):  # fmt: skip
            notes.append(f"{name} states no chance level, so it is not said when it left chance.")
        if rows.task_version.nunique() > 1:
            versions = numbers.join(sorted(rows.task_version.unique()))
            notes.append(f"{name} was scored as versions {versions}, which are not comparable.")
        mine = records[(records.run == run) & (records.task == task) & (records.status == OK)]
        if len(mine) and not mine.primary.any():
            notes.append(f"{name} has no primary metric; {rows.metric.iloc[0]} is shown.")
    for task, rows in findings.groupby("task", sort=False):
        for column in ("task_version", "metric", "domain"):
            if several and rows[column].nunique() > 1:
                kinds = numbers.join(sorted(rows[column].astype(str).unique()))
                notes.append(f"{task} differs between the runs in its {column}: {kinds}.")
    scored = points.groupby("run", sort=False).step.nunique()
    for run, count in scored.items():
        if count == 1:
            notes.append(f"{run}: one checkpoint has been scored, which shows no growth yet.")
    return notes


def _steps(rows: pd.DataFrame) -> str:
    steps = sorted(int(step) for step in rows.step)
    shown = ", ".join(f"{step:,}" for step in steps[:6]) + (", …" if len(steps) > 6 else "")
    return f"step {shown}" if len(steps) == 1 else f"{len(steps)} checkpoints (steps {shown})"
