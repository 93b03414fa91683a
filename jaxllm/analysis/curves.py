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
import pandas as pd

from jaxllm.analysis.stats import Array
from jaxllm.run.records import COLUMNS, OK

_CURVE = ["run", "task", "shots", "metric", "task_version"]
_REPEATED = "repeated records: the last of each is used."
_LOWER_IS_BETTER = ("bits_per_byte", "perplexity", "loss", "brier", "nll", "error")
_SHARES = ("accuracy", "exact_match", "probability", "f1", "pass@", "mc1", "mc2")
# Neither more nor less is better: CrowS-Pairs' measures of a stereotype, and facts of the examples.
_NO_DIRECTION = ("stereotype", "likelihood_diff", "truncated", "padding", "shots_dropped")


def lower_is_better(metric: str) -> bool:
    """Whether a smaller value of `metric` is better."""
    return any(word in metric for word in _LOWER_IS_BETTER)


def has_direction(metric: str) -> bool:
    """Whether more or less of `metric` is better, so that it can be a capability."""
    return not any(word in metric for word in _NO_DIRECTION)


def is_share(metric: str) -> bool:
    """Whether `metric` is a share or a probability, from 0 to 1."""
    return not lower_is_better(metric) and any(word in metric for word in _SHARES)


def counts_examples(metric: str) -> bool:
    """Whether `metric` is the share of examples that are right."""
    return metric.startswith(("accuracy", "exact_match", "pass@"))


def of_metric(test: Callable[[str], bool], metrics: pd.Series) -> pd.Series:
    """Evaluate `is_share` or `lower_is_better` for every row, once per distinct metric."""
    return metrics.map({metric: test(metric) for metric in metrics.unique()}).astype(bool)


@dataclasses.dataclass(frozen=True)
class Curve:
    """One curve of P points, ordered by tokens; fields as in `Record`, NaN where unknown."""

    run: str
    task: str
    shots: int
    metric: str
    task_version: str
    domain: str
    params: float
    chance: float
    chance_score: float  # of a guess: chance, or the best constant answer where that is better
    n: int
    steps: Array  # [P], as all arrays
    tokens: Array
    flops: Array
    values: Array  # finite
    stderr: Array
    scores: Array  # higher is better
    score_stderr: Array


@dataclasses.dataclass(frozen=True)
class Curves:
    """Curves as one table, for vectorized operations on all of them.

    `points` has a row per point, ordered by curve and tokens: the columns of `Record`, and `score`,
    `score_stderr`, `chance_score`, `unigram_score` and `curve` (0, 1, ...).
    """

    points: pd.DataFrame
    notes: tuple[str, ...] = ()  # records left out or corrected, a sentence each

    @functools.cached_property
    def table(self) -> pd.DataFrame:
        """Last point and number of `points`, a row per curve."""
        count = self.points.groupby("curve").size()
        last = self.points.drop_duplicates("curve", keep="last").set_index("curve")
        return last.assign(points=count)

    def __len__(self) -> int:
        return len(self.table)

    def __iter__(self) -> Iterator[Curve]:
        names = ["step", "tokens", "flops", "value", "stderr", "score", "score_stderr"]
        arrays = self.points[names].to_numpy(np.float64).T.copy()
        fields = self.table[[*_CURVE, "domain", "params", "chance", "chance_score", "n"]]
        fields = fields.assign(n=fields.n.astype(float).fillna(0).astype(int))
        end = 0
        for row, count in zip(fields.itertuples(index=False), self.table.points, strict=True):
            start, end = end, end + count
            yield Curve(*row, *arrays[:, start:end])

    def main(self) -> Curves:
        """One curve for every run and task, used by the charts and most analyses: the primary
        metric (else the most frequent one), at the version and shots of the run's latest scores.
        """
        table = self.table.reset_index()
        table = table.assign(primary=self.points.groupby("curve").primary.any().to_numpy())
        order = {"primary": False, "step": False, "points": False, "metric": True, "shots": True}
        best = table.sort_values(list(order), ascending=list(order.values()), kind="stable")
        best = best.drop_duplicates(["run", "task"])
        versions = table.merge(best[["run", "task", "metric"]]).groupby(["run", "task"])
        changed = int((versions.task_version.nunique() > 1).sum())
        note = f"{changed} trajectories change the version of their task: only the last is used."
        points = self.points[self.points.curve.isin(best.curve)]
        return Curves(points, self.notes + ((note,) if changed else ()))

    def directed(self) -> Curves:
        """Curves of the metrics of which more, or less, is better."""
        points = self.points
        none = ~of_metric(has_direction, points.metric)
        if not none.any():
            return self
        tasks = points.task[none & points.primary.astype(bool)].unique()
        note = f"More of {', '.join(tasks)} is neither better nor worse: shown, not analysed."
        return Curves(points[~none], self.notes + ((note,) if len(tasks) else ()))

    def comparable(self) -> Curves:
        """Curves over known tokens, with each version of a task as a task of its own."""
        points, notes = self.points, list(self.notes)
        unknown = ~np.isfinite(points.tokens.astype(float))
        points = _without(points, unknown, "records do not say how many tokens were seen.", notes)
        repeated = points.duplicated(["curve", "tokens"], keep="last")
        points = _without(points, repeated, _REPEATED, notes)
        versions = points.groupby("task").task_version.nunique()
        several = versions.index[versions > 1]
        if len(several):
            apart = points.task.isin(several)
            names = points.task + " (version " + points.task_version + ")"
            points = points.assign(task=points.task.where(~apart, names))
            tasks = ", ".join(several)
            notes.append(f"The runs were scored on different versions of {tasks}: not compared.")
        return Curves(points, tuple(notes))


def curves(records: pd.DataFrame) -> Curves:
    """All curves of the trajectory table; see `Curves.main` for one per run and task.

    Records without a finite value are dropped; of repeated records the last one is used.
    """
    if records.empty:
        extra = ("score", "score_stderr", "chance_score", "unigram_score", "curve")
        return Curves(pd.DataFrame(columns=[*COLUMNS, *extra]))
    notes: list[str] = []
    reason = f"of {len(records):,} records have no value."
    frame = _without(records, _valueless(records), reason, notes)
    frame = frame.assign(**{n: math.nan for n in ("majority", "unigram") if n not in frame})
    curve = frame.groupby(_CURVE, sort=True, dropna=False).ngroup().to_numpy()
    order = np.lexsort((frame.step.to_numpy(), frame.tokens.to_numpy(), curve))
    frame = frame.iloc[order].assign(curve=curve[order])
    repeated = frame.duplicated(["curve", "step", "tokens"], keep="last")
    frame = _without(frame, repeated, _REPEATED, notes)
    sign = np.where(of_metric(lower_is_better, frame.metric), -1.0, 1.0)
    names = ("value", "stderr", "chance", "unigram")
    value, stderr, chance, unigram = (frame[name].to_numpy(float) for name in names)
    logged = frame.metric.str.contains("perplexity").to_numpy(bool) & (value > 0)
    score = lambda of: sign * np.where(logged, np.log(of), of)
    with np.errstate(all="ignore"):
        frame = frame.assign(
            score=score(value),
            score_stderr=np.where(logged, stderr / value, stderr),
            chance_score=np.fmax(score(chance), sign * _majority(frame)),
            unigram_score=score(unigram),
        )
    return Curves(frame.reset_index(drop=True), tuple(notes))


def _majority(frame: pd.DataFrame) -> pd.Series:
    """Value of the best constant answer, also in records of a task from before it was recorded."""
    known = frame.groupby(["task", "metric", "task_version"], dropna=False).majority
    return frame.majority.fillna(known.transform("max"))


def _valueless(records: pd.DataFrame) -> pd.Series:
    return (records.status != OK) | ~np.isfinite(records.value.astype(float))


def _without(frame: pd.DataFrame, bad: pd.Series, reason: str, notes: list[str]) -> pd.DataFrame:
    """Drop the rows where `bad`; a note counts them."""
    if bad.any():
        notes.append(f"{int(bad.sum()):,} {reason}")
    return frame[~bad]


def with_gaps(main: Curves, records: pd.DataFrame) -> pd.DataFrame:
    """Points of `main` for the charts, with a row for every missing value.

    A task that failed, or was not scored, at one of the run's checkpoints has a row with a NaN
    value there and the reason in `status`; unless it was scored at half of them or fewer.
    """
    points = main.points.drop(columns="curve")
    failed = records[_valueless(records)].drop_duplicates(["run", "task", "step"])
    known = _filled(points, failed.assign(value=math.nan))
    known = known.assign(metric=known.groupby(["run", "task"]).metric.transform("first"))
    last = known.assign(scored=known.groupby(["run", "task"]).step.transform("size"))
    last = last.drop_duplicates(["run", "task"], keep="last")
    checkpoints = records.groupby(["run", "step"], as_index=False)[["tokens", "flops"]].max()
    gaps = last.drop(columns=["step", "tokens", "flops"]).merge(checkpoints, on="run")
    gaps = gaps[2 * gaps.scored > gaps.groupby(["run", "task"]).step.transform("size")]
    gaps = gaps.assign(value=math.nan, stderr=math.nan, n=0, status="no record")
    frame = _filled(known, gaps[list(records)]).reindex(columns=list(points))
    return frame.sort_values(["run", "domain", "task", "step"], ignore_index=True)


def _filled(points: pd.DataFrame, missing: pd.DataFrame) -> pd.DataFrame:
    """`points`, and the rows of `missing` that are of another run, task or step."""
    frame = pd.concat([part for part in (points, missing) if len(part)] or [points])
    return frame[frame.value.notna() | ~frame.duplicated(["run", "task", "step"])]
