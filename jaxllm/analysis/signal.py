"""Signal, noise and decision accuracy: how well early or small runs tell the order of others.

Signal and noise are those of "Signal and Noise" (Heineman et al. 2025, arXiv 2508.13144), decision
accuracy is DataDecide's (Magnusson et al. 2025, arXiv 2504.11393, section 2).
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterator, Mapping

import numpy as np
import pandas as pd
from scipy import stats

from jaxllm.analysis.curves import Curves
from jaxllm.analysis.finding import amount
from jaxllm.analysis.onsets import above_guess
from jaxllm.analysis.stats import Z95, near_equal

LATE = 10  # most checkpoints that noise is measured on
AVERAGED = 5  # most checkpoints whose mean stands for a run
_RECENT = 0.3  # both lie in the last share of the tokens seen
_FEWEST = 4  # checkpoints that tell noise from trend
_PAIRS = 3  # fewest pairs of runs for a comparison
_EQUAL = 1.1  # sizes and lengths of runs that differ by a smaller factor are equal
_ROW = ["task", "metric"]
_DECISION = ("pairs", "accuracy", "low", "high", "p")


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Early or small runs (proxies), and the runs whose order they are to tell."""

    order: str  # the order to tell
    proxy: str  # where the proxies stand
    # `run, unit, stratum, until`: the run, up to so many tokens, stands for a unit, which is the
    # run itself or its recipe; units of one stratum are compared.
    proxies: pd.DataFrame
    targets: pd.DataFrame  # `run, unit, stratum`


def comparable(every: Curves) -> Curves:
    """All metrics at the shots and version of each task's main curve.

    Points get the columns `main` (of the main curve) and `above` (a guess, or without its level).
    """
    main = every.main()
    same = main.table[["run", "task", "shots", "task_version"]]
    points = every.points.assign(main=every.points.curve.isin(main.points.curve)).merge(same)
    result = Curves(points, main.notes).comparable()
    points, none = result.points, np.zeros(0, bool)
    above = np.concatenate([none, *map(above_guess, result)])  # False for an unknown error
    higher = points.score_stderr.isna() & (points.score > points.chance_score)
    return Curves(points.assign(above=above | higher | points.chance_score.isna()), result.notes)


def runs_of(points: pd.DataFrame, recipes: Mapping[str, str]) -> pd.DataFrame:
    """The runs: `run, recipe` (of `recipes`, else the family), `params, first` and last `tokens`.

    `size`, `length` and `ratio` are ascending numbers, equal for runs of nearly equal parameters,
    tokens, and tokens per parameter.
    """
    by = points[points.tokens > 0].groupby("run")
    runs = pd.DataFrame({"recipe": by.family.last(), "params": by.params.last().astype(float)})
    runs = runs.assign(first=by.tokens.min(), tokens=by.tokens.max()).reset_index()
    return runs.assign(
        recipe=runs.run.map(recipes).fillna(runs.recipe),
        size=near_equal(runs.params, _EQUAL),
        length=near_equal(runs.tokens, _EQUAL),
        ratio=near_equal(runs.tokens / runs.params, _EQUAL),
    )


def comparisons(runs: pd.DataFrame, shares: tuple[float, ...]) -> Iterator[Comparison]:
    """All comparisons of `runs`, as in `runs_of`, with three pairs; those across sizes first."""
    for size in sorted(set(runs["size"])):
        yield from across_sizes(runs, size)
    kinds = {"runs of equal size": ["size", "length"], "sizes": ["recipe", "length"]}
    for (kind, equal), share in itertools.product(kinds.items(), shares):
        ends = runs.assign(unit=runs.run, stratum=runs.groupby(equal).ngroup())
        proxies = ends.assign(until=share * runs.tokens)[runs["first"] <= share * runs.tokens]
        if _pairs(proxies) >= _PAIRS:
            yield Comparison(
                f"the last order of {kind}", f"{share:.0%} of the tokens", proxies, ends
            )


def across_sizes(runs: pd.DataFrame, size: int, until: float = math.inf) -> Iterator[Comparison]:
    """Recipes at `size`, up to `until` tokens, against those at the largest size with enough pairs.

    Runs are compared at equal tokens per parameter or, where there are none, equal tokens.
    """
    small = runs[(runs["size"] == size) & (runs["first"] <= until)]
    larger = sorted(set(runs["size"][runs["size"] > size]), reverse=True)
    for end, budget in itertools.product(larger, ("ratio", "length")):
        both = small.merge(runs[runs["size"] == end], on=["recipe", budget], suffixes=("", "_end"))
        both = both.assign(unit=both.recipe, stratum=both[budget], until=until)
        if _pairs(both) >= _PAIRS:
            small_size, end_size = (amount(both[f"params{of}"].median()) for of in ("", "_end"))
            order = f"the order of {both.unit.nunique()} recipes at {end_size}"
            targets = both.assign(run=both.run_end).drop_duplicates(["run", "stratum"])
            proxies = both.drop_duplicates(["run", "stratum"])
            yield Comparison(order, f"{small_size} parameters", proxies, targets)
            return


def measure(points: pd.DataFrame, comparison: Comparison, averaged: int = AVERAGED) -> pd.DataFrame:
    """Signal, noise and decision accuracy of every task and metric of `comparable` curves.

    `signal` is the largest difference between the runs of a stratum, `noise` the standard deviation
    of the last checkpoints of a run, both over their mean, and `snr` their ratio, as published. As
    that signal grows with the number of runs and that noise with the trend, `snr_detrended` is the
    ratio of `spread`, the standard deviation between runs, and `scatter`, that of checkpoints
    around a line. `accuracy` is the share of the `pairs` whose order in this metric is that of the
    targets in the main one, with its 95% interval and the `p` of no relation. `above`: most proxies
    are above a guess.
    """
    small = settled(points, comparison.proxies, averaged)
    ends = settled(points, comparison.targets.assign(until=math.inf), AVERAGED)
    unit = ["stratum", "unit"]
    goal = ends[ends.main].groupby(["task", *unit]).score.mean().rename("goal").reset_index()
    both = small.groupby([*_ROW, *unit]).score.mean().reset_index().merge(goal)
    told = pd.DataFrame([(*key, *agreement(of)) for key, of in both.groupby(_ROW)])
    told.columns = pd.Index([*_ROW, *_DECISION]) if len(told) else told.columns
    return _signal(small).merge(told.reindex(columns=[*_ROW, *_DECISION]), how="left")


def settled(points: pd.DataFrame, runs: pd.DataFrame, averaged: int) -> pd.DataFrame:
    """A row per curve and stratum of `runs`: its mean score at the last checkpoints, and its noise.

    The last checkpoints are those in the last tokens up to `until`, `LATE` at most for the noise.
    """
    until = runs.drop_duplicates("run").set_index("run").until
    seen = points[points.tokens <= points.run.map(until)]
    seen = seen[seen.tokens >= (1 - _RECENT) * seen.groupby("curve").tokens.transform("max")]
    late = seen.groupby("curve").tail(LATE)
    by = late.groupby("curve")
    x, y = (late[name] - by[name].transform("mean") for name in ("tokens", "score"))
    sums = pd.DataFrame({"n": 1, "xx": x * x, "xy": x * y, "yy": y * y}).groupby(late.curve).sum()
    # A constant answer moves between two values, if at all: it has no noise to speak of.
    known = (sums.n >= _FEWEST) & (by.score.nunique() > 2)
    around = (sums.yy - sums.xy**2 / sums.xx).clip(lower=0) / (sums.n - 2)
    last = late.drop_duplicates("curve", keep="last").set_index("curve")
    means = seen.groupby("curve").tail(averaged).groupby("curve").score
    return last.assign(
        level=by.score.mean(),
        averaged=means.size(),
        score=means.mean(),
        noise=(sums.yy / sums.n).where(known) ** 0.5 / by.score.mean().abs(),
        scatter=around.where(known) ** 0.5 / by.score.mean().abs(),
    ).merge(runs[["run", "unit", "stratum"]], on="run")


def _signal(runs: pd.DataFrame) -> pd.DataFrame:
    """Signal and noise of every task and metric: means over strata, as in `measure`."""
    by, of_row = runs.groupby([*_ROW, "stratum"]).score, runs.groupby(_ROW)
    level = by.mean().abs()
    strata = pd.DataFrame({"signal": (by.max() - by.min()) / level, "spread": by.std() / level})
    table = strata[by.size() > 1].groupby(_ROW).mean().reindex(strata.groupby(_ROW).size().index)
    for name in ("noise", "scatter"):
        table[name] = (runs[name] ** 2).groupby([runs.task, runs.metric]).mean() ** 0.5
    return table.assign(
        runs=of_row.run.nunique(),
        averaged=of_row.averaged.median(),
        domain=of_row.domain.last(),
        main=of_row.main.any(),
        snr=table.signal / table.noise,
        snr_detrended=table.spread / table.scatter,
        above=of_row.above.mean() > 0.5,
    ).reset_index()


def agreement(of: pd.DataFrame) -> tuple[float, ...]:
    """Decision accuracy: the share of pairs within a stratum that `score` and `goal` order alike.

    `of` has the columns `unit, stratum, score, goal`; the result is the values of `_DECISION`.

    Pairs of equal goals are no decision. The interval is Wilson's (1927) for as many independent
    pairs as have the variance of Kendall's tau without relation; resampling few runs gives far too
    narrow ones. p is tau's, one-sided, with the correction for continuity. A unit in several strata
    counts once for both.
    """
    first, second = np.triu_indices(len(of), 1)
    stratum, unit = of.stratum.to_numpy(), of.unit.to_numpy()
    within = stratum[first] == stratum[second]
    first, second = first[within], second[within]
    a, b = (np.sign(v[first] - v[second]) for v in (of.score.to_numpy(), of.goal.to_numpy()))
    k = np.unique(stratum[np.unique(unit, return_index=True)[1]], return_counts=True)[1]
    independent, decided = float((k * (k - 1)).sum()) / 2, b != 0
    if not independent or not decided.any():
        return (math.nan,) * len(_DECISION)
    variance = float((k * (k - 1) * (2 * k + 5)).sum()) / 18
    share = float((a == b)[decided].mean())
    z2 = Z95**2 * variance / independent**2 / float(decided.mean())
    half = math.sqrt(z2 * share * (1 - share) + z2**2 / 4)
    low, high = ((share + z2 / 2 + side) / (1 + z2) for side in (-half, half))
    p = float(stats.norm.sf((float((a * b).mean()) * independent - 1) / math.sqrt(variance)))
    return int(decided.sum()), share, low, high, p


def _pairs(runs: pd.DataFrame) -> int:
    """Number of pairs of units within the strata."""
    units = runs.groupby("stratum").unit.nunique()
    return int((units * (units - 1) // 2).sum())
