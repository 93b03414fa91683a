"""Which capabilities grow together?

Two rising curves always correlate, so levels alone say nothing. What is tested are the *gains*
from one checkpoint to the next, by Spearman's rank correlation within each run, averaged over the
runs, against the null hypothesis that they come at unrelated times: the gains of every task are
shuffled in time. For levels the shuffled gains are summed up again, so that the null curves rise
as far as the real ones. That is right for levels that wander; where they rise steadily under noise
the gains of a monotone fit are shuffled and the residuals beside them. A level has to beat both.
`jaxllm.analysis.resampling` draws nulls and intervals.
"""

from __future__ import annotations

import dataclasses
import itertools
import math

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy import optimize

from jaxllm.analysis import resampling
from jaxllm.analysis.curves import Array, Panel, same_benchmark
from jaxllm.analysis.finding import Finding, refusal
from jaxllm.analysis.registry import EARLY, Study, analysis
from jaxllm.analysis.stats import false_discovery

# Levels are the lesser question and the dearer null: every third draw has one.
_EVERY = 3
_COLUMNS = (
    "task_a", "task_b", "domain_a", "domain_b", "same_domain", "runs", "n", "level", "level_low",
    "level_high", "level_null", "level_p", "gain", "gain_low", "gain_high", "gain_p", "gain_q",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Correlations(Finding):
    """What `correlations` returns.

    Attributes:
      within: Mean correlation of gains of two tasks of one domain; NaN where there is no pair.
      across: The same of tasks of different domains.
      domain_p: Chance of a difference as large when domains are dealt to tasks at random.
    """

    within: float = math.nan
    across: float = math.nan
    domain_p: float = math.nan


@analysis(
    EARLY,
    "Correlated gains",
    place=40,
    caption="Rank correlations of what each checkpoint adds to the one before it: two rising "
    "curves always correlate, their gains need not. An empty cell was not compared.",
)
def correlations(study: Study, *, draws: int = 300, seed: int = 0) -> Correlations:
    """Correlations of all pairs of tasks; pairs of one benchmark at other shots are left out.

    Returns:
      A row per pair of tasks: Spearman correlations of `level`s and of `gain`s with 95 %
      intervals; `level_null` is what two unrelated curves that rise as far show on average;
      `gain_q` is `gain_p` adjusted for the number of pairs; `n` counts gains.
    """
    data, notes = Panel.of(study.curves), study.curves.notes
    series, short = resampling.series(data)
    notes += short
    if len(data.tasks) < 2 or not series:
        reason = "needs two tasks" if len(data.tasks) < 2 else resampling.TOO_SHORT
        return refusal(reason, _COLUMNS, notes, Correlations)
    levels, gains = [s[0] for s in series], [s[1] for s in series]
    level_ranks, gain_ranks = (list(map(resampling.ranks, of)) for of in (levels, gains))
    level, _ = resampling.mean_correlation(level_ranks)
    gain, count = resampling.mean_correlation(gain_ranks)
    rng = np.random.default_rng(seed)
    index = list(resampling.blocks([len(x) for x in gains], draws, rng))
    low, high = _interval(gain, gain_ranks, index)
    level_low, level_high = _interval(level, level_ranks, index)
    walk_null, rise_null, gain_null = _nulls(levels, gains, gain_ranks, draws, rng)
    gain_null = gain_null * np.sqrt(resampling.bartlett(gain_ranks))
    level_p = np.maximum(_two_sided(level, walk_null), _two_sided(level, rise_null))
    level_null = np.fmax(walk_null.mean(axis=0), rise_null.mean(axis=0))
    gain_p = resampling.tail(np.abs(gain), np.abs(gain_null))
    pairs = [
        (i, j) for i, j in itertools.combinations(range(len(data.tasks)), 2)
        if not same_benchmark(data.tasks[i], data.tasks[j])
    ]  # fmt: skip
    known = [pair for pair in pairs if np.isfinite(gain[pair])]
    if len(known) < len(pairs):
        lost = len(pairs) - len(known)
        notes += (f"{lost:,} pairs of tasks vary too little or share too few checkpoints.",)
    if not known:
        return refusal("no two tasks share enough checkpoints", _COLUMNS, notes, Correlations)
    a, b = np.array(known).T
    task, domain = np.array(data.tasks), np.array(data.domains)
    table = pd.DataFrame(
        {
            "task_a": task[a], "task_b": task[b], "domain_a": domain[a], "domain_b": domain[b],
            "same_domain": domain[a] == domain[b], "runs": len(gains),
            "n": count[a, b].astype(int), "level": level[a, b], "level_low": level_low[a, b],
            "level_high": level_high[a, b], "level_null": level_null[a, b],
            "level_p": level_p[a, b], "gain": gain[a, b], "gain_low": low[a, b],
            "gain_high": high[a, b], "gain_p": gain_p[a, b],
            "gain_q": false_discovery(gain_p[a, b]),
        }
    )  # fmt: skip
    within, across = _means(gain[a, b], domain[a] == domain[b])
    domain_p = math.nan
    if math.isfinite(within) and math.isfinite(across):
        dealt = [rng.permutation(domain) for _ in range(draws)]
        means = [_means(gain[a, b], of[a] == of[b]) for of in dealt]
        domain_p = float(resampling.share(np.array([w - x >= within - across for w, x in means])))
    table = table.sort_values(["gain_p", "gain"], ascending=[True, False], ignore_index=True)
    sentence = (
        f"Of {len(table):,} pairs of tasks, {int((table.gain_q <= 0.05).sum()):,} gain at the same "
        "checkpoints more (or less) often than unrelated curves would (5% false discoveries, "
        f"{len(gains)} {'runs' if len(gains) > 1 else 'run'})"
    )
    if math.isfinite(domain_p):
        sentence += (
            f"; gains correlate at {within:.2f} within a domain and {across:.2f} across domains "
            f"(p = {domain_p:.2g})"
        )
    return Correlations(
        sentence + ".", table, "", notes, within=within, across=across, domain_p=domain_p
    )


def _interval(value: Array, ranks: list[Array], index: list[list[Array]]) -> tuple[Array, Array]:
    """[T, T] ends of the bootstrap interval, from the rows of each draw."""
    draws = [
        resampling.mean_correlation([x[i] for x, i in zip(ranks, rows, strict=True)])[0]
        for rows in index
    ]
    return resampling.interval(value, np.array(draws))


def _nulls(
    levels: list[Array], gains: list[Array], gain_ranks: list[Array], draws: int,
    rng: np.random.Generator,
) -> tuple[Array, Array, Array]:  # fmt: skip
    """Correlations under the null: of levels that wander, of levels that rise, and of gains."""
    trends = list(map(_trend, levels))
    stacked = [
        np.hstack([gain, np.diff(trend, axis=0, prepend=trend[:1]), level - trend, rank])
        for level, gain, trend, rank in zip(levels, gains, trends, gain_ranks, strict=True)
    ]
    walks: list[Array] = []
    rises: list[Array] = []
    gain_nulls = []
    for draw, shuffled in enumerate(resampling.shuffles(stacked, draws, rng)):
        parts = [np.split(columns, 4, axis=1) for columns in shuffled]
        gain_nulls.append(resampling.mean_correlation([part[3] for part in parts])[0])
        if draw % _EVERY:
            continue
        walk = [np.nancumsum(part[0], axis=0) for part in parts]
        rise = [np.nancumsum(part[1], axis=0) + np.nan_to_num(part[2]) for part in parts]
        for curves, nulls in ((walk, walks), (rise, rises)):
            drawn = [np.where(np.isnan(x), x, y) for x, y in zip(levels, curves, strict=True)]
            nulls.append(resampling.mean_correlation(list(map(resampling.ranks, drawn)))[0])
    return np.array(walks), np.array(rises), np.array(gain_nulls)


def _trend(levels: Array) -> Array:
    """Monotone least-squares fit of each column, rising or falling, whichever fits better."""
    trend = np.full_like(levels, math.nan)
    for column in range(levels.shape[1]):
        at = np.flatnonzero(np.isfinite(levels[:, column]))
        if len(at):
            y = levels[at, column]
            fits = [optimize.isotonic_regression(y, increasing=up).x for up in (True, False)]
            best = min(fits, key=lambda fit: float(((y - fit) ** 2).sum()))
            trend[:, column] = np.interp(np.arange(len(levels)), at, best)
    return trend


def _two_sided(value: Array, null: Array) -> Array:
    above, below = resampling.share(null >= value), resampling.share(null <= value)
    return np.asarray(np.minimum(1.0, 2 * np.minimum(above, below)))


def _means(gain: Array, same: npt.NDArray[np.bool_]) -> tuple[float, float]:
    """Mean over the pairs of one domain, and over those of two."""
    return (float(gain[same].mean()) if same.any() else math.nan,
            float(gain[~same].mean()) if not same.all() else math.nan)  # fmt: skip
