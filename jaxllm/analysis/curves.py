"""Records -> curves: the cleaning of trajectories, shared by all analyses.

A curve is one metric of one task of one run, at one number of shots and one task version; versions
are never joined. Every metric also has a *score*, higher is better: an accuracy is its own score,
bits per byte and Brier scores are negated, and a perplexity becomes minus its logarithm.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt
import pandas as pd

from jaxllm.run.records import COLUMNS, OK

Array = npt.NDArray[np.float64]

KEY = ["run", "task", "shots", "metric", "task_version"]
"""What two values have to agree in before they are of one curve."""

_LOWER_IS_BETTER = ("bits_per_byte", "perplexity", "loss", "brier", "nll", "error")
_SHARES = ("accuracy", "exact_match", "probability", "f1")


def lower_is_better(metric: str) -> bool:
    """Whether a smaller value of `metric` is better."""
    return any(word in metric for word in _LOWER_IS_BETTER)


def is_share(metric: str) -> bool:
    """Whether `metric` is a share or a probability, from 0 to 1."""
    return not lower_is_better(metric) and any(word in metric for word in _SHARES)


def of_metric(test: Callable[[str], bool], metrics: pd.Series) -> pd.Series:
    """Evaluate `is_share` or `lower_is_better` for every row, once per distinct metric."""
    return metrics.map({metric: test(metric) for metric in metrics.unique()}).astype(bool)


@dataclasses.dataclass(frozen=True)
class Curve:
    """One curve of P points, ordered by tokens.

    Attributes:
      run: name of the run.
      task: name of the task.
      shots: number of few-shot examples.
      metric: name of the metric.
      task_version: version of the task.
      domain: domain of the task.
      family: suite of the run.
      params: parameter count of the model; NaN where unknown.
      steps: [P] steps.
      tokens: [P] tokens seen; ascending, NaN where unknown.
      flops: [P] training FLOPs.
      values: [P] the metric, finite.
      stderr: [P] standard errors of `values`; NaN where unknown.
      scores: [P] scores of `values`, higher is better.
      score_stderr: [P] standard errors of `scores`.
      chance: chance level; NaN where there is none.
      chance_score: score of the chance level.
      n: number of examples.
    """

    run: str
    task: str
    shots: int
    metric: str
    task_version: str
    domain: str
    family: str
    params: float
    steps: Array
    tokens: Array
    flops: Array
    values: Array
    stderr: Array
    scores: Array
    score_stderr: Array
    chance: float
    chance_score: float
    n: int


@dataclasses.dataclass(frozen=True)
class Curves:
    """Curves as one table, for vectorized operations on all of them.

    Attributes:
      points: a row per point, ordered by curve and tokens: the columns of `Record`, and `score`,
        `score_stderr`, `chance_score` and `curve` (0, 1, ...).
      notes: records left out or corrected, a sentence each.
    """

    points: pd.DataFrame
    notes: tuple[str, ...] = ()

    @functools.cached_property
    def table(self) -> pd.DataFrame:
        """Last point and number of `points`, a row per curve."""
        count = self.points.groupby("curve").size()
        last = self.points.drop_duplicates("curve", keep="last").set_index("curve")
        return last.assign(points=count)

    def __len__(self) -> int:
        return len(self.table)

    def __iter__(self) -> Iterator[Curve]:
        steps, tokens, flops, values, stderr, scores, score_stderr = (
            self.points[name].to_numpy(np.float64)
            for name in ("step", "tokens", "flops", "value", "stderr", "score", "score_stderr")
        )
        end = 0
        for last in self.table.itertuples():
            of = slice(end, end := end + last.points)
            yield Curve(
                last.run, last.task, last.shots, last.metric, last.task_version, last.domain,
                last.family, last.params, steps[of], tokens[of], flops[of], values[of], stderr[of],
                scores[of], score_stderr[of], last.chance, last.chance_score,
                int(last.n) if last.n > 0 else 0,
            )  # fmt: skip

    def select(self, keep: pd.Series | npt.NDArray[np.bool_], *notes: str) -> Curves:
        """Curves of the points where `keep`, with further notes."""
        return Curves(self.points[np.asarray(keep, bool)], (*self.notes, *notes))

    def main(self) -> Curves:
        """One curve for every run and task, used by the charts and most analyses.

        It has the primary metric (else the most frequent one, ties in alphabetical order), at the
        version and shots of the run's latest scores.
        """
        table = self.table.reset_index()
        table = table.assign(primary=self.points.groupby("curve").primary.any().to_numpy())
        order = ["primary", "step", "points", "metric", "shots"]
        ascending = [False, False, False, True, True]
        best = table.sort_values(order, ascending=ascending, kind="stable")
        best = best.drop_duplicates(["run", "task"])
        metrics = table.merge(best[["run", "task", "metric"]])
        changed = metrics.groupby(["run", "task"]).task_version.nunique().gt(1).sum()
        note = f"{changed} trajectories change the version of their task: only the last is used."
        return self.select(self.points.curve.isin(best.curve), *([note] if changed else []))

    def comparable(self) -> Curves:
        """Curves over known tokens, with each version of a task as a task of its own."""
        points, notes = self.points, list(self.notes)
        unknown = ~np.isfinite(points.tokens.astype(float))
        if unknown.any():
            notes.append(f"{int(unknown.sum()):,} records do not say how many tokens were seen.")
            points = points[~unknown]
        repeated = points.duplicated(["curve", "tokens"], keep="last")
        if repeated.any():
            notes.append(f"{int(repeated.sum()):,} repeated records: the last of each is used.")
            points = points[~repeated]
        versions = points.groupby("task").task_version.nunique()
        several = points.task.isin(versions.index[versions > 1])
        if several.any():
            named = points.task + " (version " + points.task_version + ")"
            points = points.assign(task=points.task.where(~several, named))
            apart = ", ".join(versions.index[versions > 1])
            notes.append(f"The runs were scored on different versions of {apart}: kept apart.")
        return Curves(points, tuple(notes))


def curves(records: pd.DataFrame) -> Curves:
    """All curves of the trajectory table; see `Curves.main` for one per run and task.

    Records without a finite value are dropped; of repeated records the last one is used. Runs of
    one name that differ in size or family get distinct names.
    """
    if records.empty:
        extra = ("score", "score_stderr", "chance_score", "curve")
        return Curves(pd.DataFrame(columns=[*COLUMNS, *extra]))
    frame, notes = _told_apart(records)
    good = (frame.status == OK) & np.isfinite(frame.value.astype(float))
    if not good.all():
        notes.append(f"{int((~good).sum()):,} of {len(good):,} records have no value.")
        frame = frame[good]
    curve = frame.groupby(KEY, sort=True, dropna=False).ngroup().to_numpy()
    order = np.lexsort((frame.step.to_numpy(), frame.tokens.to_numpy(), curve))
    frame = frame.iloc[order].assign(curve=curve[order])
    repeated = frame.duplicated(["curve", "step", "tokens"], keep="last")
    if repeated.any():
        notes.append(f"{int(repeated.sum()):,} repeated records: the last of each is used.")
        frame = frame[~repeated]
    sign = np.where(of_metric(lower_is_better, frame.metric), -1.0, 1.0)
    value, chance = frame.value.to_numpy(float), frame.chance.to_numpy(float)
    stderr = frame.stderr.to_numpy(float)
    logged = frame.metric.str.contains("perplexity").to_numpy(bool) & (value > 0)
    with np.errstate(all="ignore"):
        frame = frame.assign(
            score=sign * np.where(logged, np.log(value), value),
            score_stderr=np.where(logged, stderr / value, stderr),
            chance_score=sign * np.where(logged, np.log(chance), chance),
        )
    return Curves(frame.reset_index(drop=True), tuple(notes))


def _told_apart(records: pd.DataFrame) -> tuple[pd.DataFrame, list[str]]:
    """Give distinct names to runs of one name that differ in size or family; with notes."""
    notes = []
    named = records.groupby("run", sort=False)[["family", "params"]].nunique(dropna=False)
    for run in named.index[(named > 1).any(axis=1)]:
        own = records.run == run
        size = records.family.astype(str) + ", " + records.params.astype(str)
        records = records.assign(run=records.run.where(~own, records.run + " (" + size + ")"))
        count = records.run[own].nunique()
        notes.append(f"{count} runs are called {run}; they are kept apart.")
    return records, notes


def with_gaps(main: Curves, records: pd.DataFrame) -> pd.DataFrame:
    """Points of `main` for the charts, with a row for every missing value.

    Returns:
      The columns of `main.points`, ordered by run, domain, task and step. A task that failed, or
      was not scored, at one of the run's checkpoints has a row with a NaN value there, and the
      reason in `status`.
    """
    points = main.points.drop(columns="curve")
    key = ["run", "task"]
    chosen = main.table[[*key, "metric"]]
    first = records.drop_duplicates(key)[[*key, "metric"]]
    chosen = pd.concat([chosen, first]).drop_duplicates(key)
    bad = records[(records.status != OK) | ~np.isfinite(records.value.astype(float))]
    bad = bad.drop_duplicates([*key, "step"]).drop(columns="metric").merge(chosen, on=key)
    failed = bad[_absent(bad, points)].assign(value=math.nan)[list(records)]
    known = pd.concat([part for part in (points, failed) if len(part)] or [points])
    checkpoints = records.groupby(["run", "step"], as_index=False)[["tokens", "flops"]].max()
    last = known.drop_duplicates(key, keep="last").drop(columns=["step", "tokens", "flops"])
    gaps = last.merge(checkpoints, on="run")
    gaps = gaps[_absent(gaps, known)][list(records)]
    gaps = gaps.assign(value=math.nan, stderr=math.nan, n=0, status="no record")
    frame = pd.concat([part for part in (known, gaps) if len(part)] or [known])
    frame = frame.reindex(columns=list(points))
    return frame.sort_values(["run", "domain", "task", "step"], ignore_index=True)


def _absent(rows: pd.DataFrame, others: pd.DataFrame) -> npt.NDArray[np.bool_]:
    """Whether `others` has no row of the same run, task and step, per row."""
    key = ["run", "task", "step"]
    return ~pd.MultiIndex.from_frame(rows[key]).isin(pd.MultiIndex.from_frame(others[key]))


@dataclasses.dataclass(frozen=True)
class Panel:
    """Curves on one grid of R runs, S checkpoints and T tasks; NaN where there is no record.

    Attributes:
      runs: R names.
      params: [R] model sizes; NaN where unknown.
      tasks: T names.
      domains: T names.
      tokens: [S] tokens seen at the checkpoints of any run, ascending.
      score: [R, S, T] scores, more is better.
      stderr: [R, S, T] their standard errors.
    """

    runs: tuple[str, ...]
    params: Array
    tasks: tuple[str, ...]
    domains: tuple[str, ...]
    tokens: Array
    score: Array
    stderr: Array

    @classmethod
    def of(cls, curves: Curves) -> Panel:
        """Place `comparable` curves on the grid of all their checkpoints."""
        points = curves.points
        run, runs = pd.factorize(points.run)
        task, tasks = pd.factorize(points.task)
        tokens, at = np.unique(points.tokens.to_numpy(float), return_inverse=True)
        score = np.full((len(runs), len(tokens), len(tasks)), math.nan)
        stderr = score.copy()
        score[run, at, task] = points.score
        stderr[run, at, task] = points.score_stderr
        domains = points.groupby("task").domain.last().loc[list(tasks)].astype(str)
        params = points.groupby("run").params.last().loc[list(runs)]
        return cls(
            tuple(map(str, runs)), params.to_numpy(float), tuple(map(str, tasks)),
            tuple(domains), tokens, score, stderr,
        )  # fmt: skip

    def gains(self) -> Array:
        """Differences [R, S, T] between consecutive checkpoints of a run."""
        gains = np.full_like(self.score, math.nan)
        for run, values in enumerate(self.score):
            scored = np.flatnonzero(np.isfinite(values).any(axis=1))
            gains[run, scored[1:]] = np.diff(values[scored], axis=0)
        return gains


def same_benchmark(first: str, second: str) -> bool:
    """Whether two tasks differ in their number of few-shot examples only."""
    return first.split(" ")[0] == second.split(" ")[0]
