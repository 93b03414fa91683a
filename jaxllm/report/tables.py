"""Run directories and imported results -> the tidy tables of a report, and what they lack."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections.abc import Sequence

import numpy as np
import pandas as pd

from jaxllm.analysis import capabilities as analysis
from jaxllm.analysis.benchmarks import pooled
from jaxllm.report import numbers
from jaxllm.report.axes import CLOCKS
from jaxllm.report.theme import DISTINCT
from jaxllm.run.records import OK, Results
from jaxllm.run.run import Run

BAND = 1.96
_POINTS_PER_CURVE = 1200
_ALSO = "another run is called {} too; they are kept apart."
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
    family: str = ""
    planned_tokens: float = math.nan

    @property
    def in_progress(self) -> bool:
        """Whether the plan of the run says that it has more tokens to see."""
        return self.tokens < 0.999 * self.planned_tokens


@dataclasses.dataclass(frozen=True)
class Tables:
    """What a report shows.

    Attributes:
      overviews: One per run, in the order given.
      points: The charted trajectories with `low`, `high` (±1.96 SE), `left_chance`, `series`, and
        the training `loss` at the checkpoint.
      findings: When each task left chance; see `jaxllm.analysis.capabilities.onsets`.
      shares: `points` with the share of each task's gain and the cells of the gain chart.
      metrics: metrics.jsonl in long form: `run, step, tokens, flops, loss, name, value, series`.
      series: Names that the colours stand for: runs if there are several, classes of sizes where
        those are more than the colours, else domains.
      notes: What is missing or wrong in the data, one sentence each.
      records: All metrics of the tasks (or benchmarks) that are shown.
      all_records: The trajectory table as it was read.
      logged: The rows of metrics.jsonl with the column `run`.
      colour_of: The series of each run, where there are several.
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
        """Whether colours stand for runs, or for their sizes."""
        return len(self.overviews) > 1

    @property
    def many_runs(self) -> bool:
        """Whether there are more runs than colours, which then stand for classes of sizes."""
        return len(self.overviews) > DISTINCT

    @property
    def palette(self) -> str:
        """The colours of the runs: in the order of their sizes, or to be told apart."""
        return "sizes" if self.many_runs else "series"

    @property
    def sizes(self) -> int:
        """Number of model sizes."""
        return len({overview.params for overview in self.overviews if overview.params > 0})

    @functools.cached_property
    def domains(self) -> dict[str, list[str]]:
        """Tasks by domain, both in the order in which they first left chance."""
        grouped: dict[str, list[str]] = {}
        for task, domain in zip(self.findings.task, self.findings.domain, strict=True):
            if task not in grouped.setdefault(domain, []):
                grouped[domain].append(task)
        return grouped


@dataclasses.dataclass(frozen=True)
class _Part:
    """One run of one source, under a name that no other run has."""

    label: str
    records: pd.DataFrame
    metrics: pd.DataFrame
    checkpoints: pd.DataFrame
    planned_tokens: float = math.nan


def gather(sources: Sequence[Run | Results], budget_tokens: float = math.nan) -> Tables:
    """Reads `sources` into the tables of one report; runs of the same name are numbered.

    Args:
      sources: Run directories, and results of others.
      budget_tokens: Tokens at the end of the runs of directories, where their config is not to
        be believed.
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
    points = analysis.charted(records)
    findings = analysis.onsets(points)
    notes += pooling
    notes += _trajectory_notes(records, points, findings, len(parts))
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
    points = _with_bands(_with_loss(points, metrics), findings)
    shares = _cells(analysis.gain_share(points, findings))
    return Tables(
        tuple(overviews), points, findings, shares, metrics, tuple(series), tuple(notes), records,
        all_records, logged, of_run,
    )  # fmt: skip


def _parts(
    source: Run | Results, before: Sequence[_Part], notes: list[str], budget_tokens: float
) -> list[_Part]:
    """The runs of a source under names that no run `before` has."""
    labels = [part.label for part in before]
    if isinstance(source, Run):
        label = _numbered(source.name, labels)
        if label != source.name:
            notes.append(f"{label} is {source.path}: {_ALSO.format(source.name)}")
        records = _last_of_repeated(source.records().assign(run=label), label, notes)
        metrics = source.metrics()
        notes += [p.replace(f"{source.path}/", f"{label}: ", 1) for p in source.problems()]
        if records.empty:
            notes.append(f"{label}: no checkpoint has been scored yet.")
        if metrics.empty:
            notes.append(
                f"{label}: metrics.jsonl is missing or empty, so no loss and no health is shown."
            )
        planned = budget_tokens if budget_tokens > 0 else source.planned_tokens()
        return [_Part(label, records, metrics, source.checkpoints(), planned)]
    notes += source.problems
    parts = []
    for (name, _, _), records in source.records.groupby(
        ["run", "family", "params"], sort=False, dropna=False
    ):
        label = _numbered(name, labels)
        if label != name:
            notes.append(f"{label}: {_ALSO.format(name)}")
        labels.append(label)
        metrics = source.metrics[source.metrics.run == name].drop(columns="run")
        parts.append(_Part(label, records.assign(run=label), metrics, pd.DataFrame()))
    for name, metrics in source.metrics.groupby("run", sort=False):
        if name not in set(source.records.run):
            label = _numbered(str(name), labels)
            labels.append(label)
            empty = source.records.iloc[:0]
            parts.append(_Part(label, empty, metrics.drop(columns="run"), pd.DataFrame()))
    return parts


def _last_of_repeated(records: pd.DataFrame, label: str, notes: list[str]) -> pd.DataFrame:
    """One record per task, checkpoint and metric; importers see to that themselves."""
    key = ["task", "step", "shots", "metric", "task_version"]
    repeated = records.duplicated(key, keep="last")
    if repeated.any():
        first = records[repeated].iloc[0]
        many = "1 record is" if repeated.sum() == 1 else f"{repeated.sum():,} records are"
        notes.append(
            f"{label}: {many} repeated (first: {first.task} at step {first.step:,}); the last one "
            "is used."
        )
    return records[~repeated]


def _joined(frames: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """All rows; frames without any have no say in the types of the columns."""
    return pd.concat([frame for frame in frames if len(frame)] or frames[:1], ignore_index=True)


def _numbered(name: str, taken: Sequence[str]) -> str:
    numbered = (f"{name} ({number})" for number in itertools.count(2))
    return next(label for label in itertools.chain([name], numbered) if label not in taken)


def _run_series(overviews: Sequence[Overview]) -> tuple[dict[str, str], list[str]]:
    """What the colour of each run stands for, and all of these, the smaller sizes first."""
    if len(overviews) <= DISTINCT:
        names = [overview.run for overview in overviews]
        return dict(zip(names, names, strict=True)), names
    known = sorted({o.params for o in overviews if o.params > 0})
    classes = [[params] for params in known]
    room = DISTINCT - (len(known) < len({o.params for o in overviews}))
    while len(classes) > room:  # the two that are nearest become one
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
    """The training loss at each checkpoint, between its logged steps; NaN where none is logged."""
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
        values = [_numbers(table, column).max() for table in tables]
        return float(np.nanmax(values)) if not np.isnan(values).all() else math.nan

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
    """A column as finite floats; empty when there is no such column."""
    if column not in frame:
        return pd.Series(dtype="float64")
    values = pd.to_numeric(frame[column], errors="coerce").astype("float64")
    return values.where(np.isfinite(values))


def _long(label: str, metrics: pd.DataFrame, notes: list[str]) -> pd.DataFrame:
    """The charted columns of metrics.jsonl as rows of (name, value), thinned where dense."""
    names = [c for c in metrics if c == "loss" or c.startswith("loss/") or c in HEALTH]
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
    cells["loss_from"] = grouped["loss"].shift().fillna(grouped["loss"].transform("max"))
    final = grouped["step"].transform("max")
    text = [numbers.value(v, m) for v, m in zip(shares.value, shares.metric, strict=True)]
    return shares.assign(**cells, is_last=shares.step == final, final_text=text)


def _trajectory_notes(
    records: pd.DataFrame, points: pd.DataFrame, findings: pd.DataFrame, runs: int
) -> list[str]:
    notes = []
    several, many = runs > 1, runs > DISTINCT
    if many:  # a line for each run would hide the others
        unsure = points.value.notna() & points.stderr.isna()
        for kind, told in ((points.status == "no record", "record"), (unsure, "standard error")):
            for task, rows in points[kind].groupby("task", sort=False):
                notes.append(
                    f"{task} has no {told} at {len(rows):,} checkpoints of "
                    f"{rows.run.nunique()} runs."
                )
    main = records[(records.status == OK) & records.primary.astype(bool)]
    has_main = set(zip(main.run, main.task, strict=True))
    for (run, task), rows in points.groupby(["run", "task"], sort=False):
        name = f"{run}: {task}" if several else str(task)
        failed = rows[~rows.status.isin([OK, "no record"])]
        if len(failed):
            notes.append(f"{name} failed at {_steps(failed)}: {failed.status.iloc[-1]}")
        missing = rows[rows.status == "no record"]
        if len(missing) and not many:
            notes.append(f"{name} has no record at {_steps(missing)}.")
        wrong = rows[(rows.status == OK) & rows.value.isna()]
        if len(wrong):
            notes.append(f"{name} is not a finite number at {_steps(wrong)}.")
        good = rows.dropna(subset="value")
        if not many and good.stderr.isna().any():
            notes.append(f"{name} has no standard error at {_steps(good[good.stderr.isna()])}.")
        if len(good) and good.chance.isna().all() and not analysis.lower_is_better(
            good.metric.iloc[0]
        ):  # fmt: skip
            notes.append(f"{name} states no chance level, so it is not said when it left chance.")
        if rows.task_version.nunique() > 1:
            versions = numbers.join(sorted(rows.task_version.unique()))
            notes.append(f"{name} was scored as versions {versions}, which are not comparable.")
        if (run, task) not in has_main and (rows.status == OK).any():
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
