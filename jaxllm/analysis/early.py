"""Which tasks tell early: decision accuracy where runs can be compared, else noise and trend."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator

import numpy as np
import pandas as pd

from jaxllm.analysis.benchmarks import OTHER_TASKS, benchmarks
from jaxllm.analysis.curves import Curves, curves, has_direction, of_metric
from jaxllm.analysis.finding import Finding, amount
from jaxllm.analysis.onsets import durable
from jaxllm.analysis.registry import EARLY, Study, analysis
from jaxllm.analysis.signal import (
    AVERAGED,
    Comparison,
    across_sizes,
    agreement,
    comparable,
    comparisons,
    measure,
    runs_of,
    settled,
)  # fmt: skip
from jaxllm.analysis.stats import false_discovery
from jaxllm.errors import UserError

SHARES = (0.01, 0.1, 0.5)  # of a run's tokens
_SIGMAS = 3.0  # of noise that a score without a chance level moves by
_NAMED = 4  # tasks in a sentence
_FEWEST = 5  # tasks and pairs for a benchmark


@analysis(
    EARLY,
    "Tasks that tell early",
    place=10,
    caption="Decision accuracy (DataDecide): the share of pairs of runs whose order a score tells, "
    "early in training or at a smaller size; 50% is a coin's. Blank: no better, at 5% false "
    "discoveries, or not above a guess. For runs alone: when tasks move beyond both.",
    method="Decision accuracy (Magnusson et al. 2025, arXiv 2504.11393), Kendall's tau; signal and "
    "noise (Heineman et al. 2025, arXiv 2508.13144).",
)
def early_tasks(study: Study, *, shares: tuple[float, ...] = SHARES) -> Finding:
    """Decision accuracy, signal and noise of every task and metric in all `comparisons`: the rows
    of `measure` with `order`, `proxy`, `q` (p adjusted for all rows) and `tells` (q < 0.05 and
    above a guess). Without comparisons, the rows of `moves`.
    """
    every, runs = _comparable(study)
    made = list(comparisons(runs, shares))
    if not made:
        return _alone(every, shares)
    parts = [measure(every.points, one).assign(order=one.order, proxy=one.proxy) for one in made]
    table = pd.concat(parts, ignore_index=True)
    table["q"] = false_discovery(table.p)
    table["tells"] = (table.q < 0.05) & table.above
    orders = table.groupby("order", sort=False).tells.any()
    orders = orders.sort_values(ascending=False, kind="stable")
    shown = orders.index[: max(int(orders.sum()), 1)]  # those that are told, or one that is not
    lines = [_told(table[table.order == order], order) for order in shown]
    if orders.iloc[0]:
        alike = [one for one in zip(made, parts, strict=True) if one[0].order == orders.index[0]]
        lines += _effects(study, every.points, *alike[len(alike) // 2])
    return Finding(lines[0], table, notes=every.notes, lines=tuple(lines[1:]))


def moves(every: Curves) -> pd.DataFrame:
    """When the main curve of each run and task moves beyond a guess, or beyond its noise.

    `run, task, metric, noise, scatter`, and `tokens` and `share` of the run's tokens at which the
    score is durably, or at last, above a guess or, without a chance level, above the first by three
    standard deviations of the last checkpoints; infinite where it is not.
    """
    points = every.points[every.points.main]
    ends = pd.DataFrame({"run": points.run.unique(), "stratum": 0, "until": math.inf})
    last = settled(points, ends.assign(unit=ends.run), AVERAGED).set_index(["run", "task"])
    moved = points.assign(at=math.inf).drop_duplicates(["run", "task"]).set_index(["run", "task"])
    for key, curve in points.groupby(["run", "task"], sort=False):
        deviation = last.scatter[key] * abs(last.level[key])
        if math.isnan(deviation) and curve.chance_score.isna().all():  # of unknown noise
            moved.loc[key, "at"] = math.nan
            continue
        beyond = curve.score - curve.score.iloc[0] > _SIGMAS * deviation
        higher = curve.above.where(curve.chance_score.notna(), beyond).to_numpy(bool)
        first = durable(higher)
        if first is not None or higher[-1]:
            moved.loc[key, "at"] = curve.tokens.iloc[-1 if first is None else first]
    table = last[["metric", "noise", "scatter"]].assign(tokens=moved["at"]).reset_index()
    return table.assign(share=table.tokens / table.run.map(points.groupby("run").tokens.max()))


def choose(study: Study, params: float = math.nan, tokens: float = math.nan) -> Finding:
    """Tasks to decide by with runs of the nearest size (default: the smallest), up to `tokens`.

    Each with the metric of the highest detrended SNR, which takes no targets. Chosen are tasks
    above a guess that tell more than a coin or, where no runs show that, that have moved. A row per
    task, those to use first: the columns of `measure`, the median tokens at which it `moved`, and
    `why` it is left out. UserError if no run was scored at known tokens by then.
    """
    every, runs = _comparable(study)
    far = np.log(runs.params / (params if params > 0 else runs.params.min())).abs()
    near = runs[runs["size"] == runs["size"][far.idxmin()]] if far.notna().any() else runs
    end = near.tokens.max()
    budget = min(tokens, end) if tokens > 0 else end
    near = near[near["first"] <= budget]
    if near.empty:
        raise UserError("no run was scored at known tokens by then: there is nothing to choose by")
    near = near.assign(until=budget, unit=near.run, stratum=near.length)
    across = across_sizes(runs, near["size"].iloc[0], budget)
    early = comparisons(near, (budget / end,)) if budget < end else ()
    made = next(itertools.chain(across, early), None)
    alone = Comparison("", "", near, near)
    table = measure(every.points, made or alone)
    order = ["above", "snr_detrended", "main"]
    table = table.sort_values(order, ascending=False, kind="stable").drop_duplicates("task")
    moved = moves(Curves(every.points[every.points.run.isin(near.run)]))
    table = table.merge(moved.groupby("task").tokens.median().rename("moved").reset_index())
    coin = "tells the order no better than a coin"
    if made is not None and (table.low > 0.5).any():
        rule, why, keep = f"tell {made.order}", coin, table.low > 0.5
    else:
        rule, why = "have moved beyond a guess and their noise", "has not moved beyond its noise"
        keep = table.moved <= budget
    if made is None:
        table[["pairs", "accuracy", "low", "high", "p"]] = math.nan
    bad = {"is not above a guess": ~table.above, coin: table.high < 0.5, why: ~keep}
    table["why"] = np.select(list(bad.values()), list(bad), "")
    best = {"out": True, "accuracy": False, "snr_detrended": False, "moved": True}
    table = table.assign(out=table.why != "").sort_values(
        list(best), ascending=list(best.values()), kind="stable", ignore_index=True
    )
    at = f"{amount(near.params.median())} parameters and {amount(budget)} tokens"
    text = f"{(~table.out).sum()} of {len(table)} tasks {rule} at {at}."
    return Finding(text, table.drop(columns="out"), notes=every.notes)


def _comparable(study: Study) -> tuple[Curves, pd.DataFrame]:
    """Curves of all metrics, and their runs; without branches, which begin as their parents."""
    every = comparable(study.all_curves)
    every = Curves(every.points[~every.points.run.isin(study.parents)], every.notes)
    mixtures = {run: str(sorted(shares.items())) for run, shares in study.mixtures.items()}
    return every, runs_of(every.points, mixtures)


def _told(rows: pd.DataFrame, order: str) -> str:
    """The tasks that tell an order, by where the proxies stand."""
    best = rows[rows.tells].sort_values("accuracy", ascending=False, kind="stable")
    best = best.drop_duplicates(["proxy", "task"])
    if best.empty:
        pairs = f"{rows.pairs.fillna(0).max():.0f} pairs"
        return f"No task is shown to tell {order} better than a coin ({pairs})."
    parts = []
    for proxy, of_proxy in rows.groupby("proxy", sort=False):
        told = best[best.proxy == proxy]
        names = [
            row.task
            + f" {row.metric.replace('_', ' ')}" * (not row.main)
            + f" ({row.accuracy:.0%})"
            for row in told.head(_NAMED).itertuples()
        ]
        count = f" ({len(told)} of {of_proxy.task.nunique()} tasks)" if len(told) > _NAMED else ""
        parts.append(f"at {proxy} by {', '.join(names) or 'none'}{count}")
    return f"{order[:1].upper()}{order[1:]} is told {'; '.join(parts)}."


def _alone(every: Curves, shares: tuple[float, ...]) -> Finding:
    """The finding on runs that cannot be compared: what moves by when, as the median over runs."""
    if not len(every) or every.table.points.max() < 2:
        return Finding.refuse("no run has two checkpoints", every.notes)
    table = moves(every)
    share = table.groupby("task").share.median().sort_values(kind="stable")
    limits = {f"by {high:.0%} of the tokens": high for high in (*shares, 1.0)}
    limits["not yet"] = math.inf
    phase = np.searchsorted(list(limits.values()), share)
    parts = [
        ", ".join(names[:_NAMED])
        + f" and {len(names) - _NAMED} more" * (len(names) > _NAMED)
        + f" {when}"
        for number, when in enumerate(limits)
        if len(names := share.index[phase == number])
    ]
    text = f"What moves beyond a guess and its noise: {'; '.join(parts)}."
    return Finding(text, table, notes=every.notes)


def _effects(
    study: Study, points: pd.DataFrame, made: Comparison, table: pd.DataFrame
) -> Iterator[str]:
    """What averaging, bits per byte and the best subtasks change."""
    where = f"({made.order} at {made.proxy}, mean over {{}} tasks)."
    usable = table[table.above & table.accuracy.notna()].set_index("task")
    main, bits = usable[usable.main], usable[~usable.main & (usable.metric == "bits_per_byte")]
    if (main.averaged > 1).any():
        last = measure(points, made, averaged=1).query("main").set_index("task").accuracy
        yield (f"The mean of up to {AVERAGED} last checkpoints tells {main.accuracy.mean():.1%} of "
               f"the pairs, the last one {last[main.index].mean():.1%} "
               f"{where.format(len(main))}")  # fmt: skip
    if len(both := bits.index.intersection(main.index)):
        yield (f"Bits per byte tell {bits.accuracy[both].mean():.1%} of the pairs, the main metric "
               f"itself {main.accuracy[both].mean():.1%} {where.format(len(both))}")  # fmt: skip
    raw = study.records if study.raw_records is None else study.raw_records
    for benchmark, (pairs, half, *_), (_, every, *_) in _best_subtasks(raw, made):
        yield (f"The half of {benchmark} with the highest SNR tells {half:.1%} of {pairs} pairs, "
               f"all of it {every:.1%}.")  # fmt: skip


def _best_subtasks(
    raw: pd.DataFrame, made: Comparison
) -> Iterator[tuple[str, tuple[float, ...], tuple[float, ...]]]:
    """Decision accuracy of the half of a benchmark's tasks with the highest SNR, and of all.

    The half is chosen by the proxies alone, and both means are to tell the order in all tasks.
    """

    def mean(points: pd.DataFrame, runs: pd.DataFrame) -> pd.Series:
        return settled(points, runs, AVERAGED).groupby(["unit", "stratum"]).score.mean()

    raw = raw[of_metric(has_direction, raw.metric)]
    of = benchmarks(list(raw.task.unique()))
    for benchmark in sorted(set(of.values()) - {OTHER_TASKS}):
        own = raw.task.map(of) == benchmark
        points = comparable(curves(raw[raw.primary & own])).points
        table = measure(points, made).query("above")
        best = table.sort_values("snr_detrended", ascending=False).task
        if len(best) < _FEWEST:
            continue
        half = points[points.task.isin(best[: len(best) // 2])]
        goal = mean(points, made.targets.assign(until=math.inf))
        pairs = [
            pd.DataFrame({"score": mean(part, made.proxies), "goal": goal}).dropna().reset_index()
            for part in (half, points)
        ]
        told = agreement(pairs[0]), agreement(pairs[1])
        if told[0][0] >= _FEWEST:
            yield benchmark, *told
