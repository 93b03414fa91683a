"""Which capabilities grow together?

Two rising curves always correlate, so levels alone say nothing. What is tested are the *gains*
from one checkpoint to the next, by Spearman's rank correlation within each run, averaged over the
runs, against the null hypothesis that they come at unrelated times: the gains of every task are
shuffled in time. For levels the shuffled gains are summed up again, so that the null curves rise
as far as the real ones. That is right for levels that wander; where they rise steadily under noise
the gains of a monotone fit are shuffled and the residuals beside them. A level has to beat both.
How nulls and intervals are drawn stands in `jaxllm.analysis.resampling`.
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
from jaxllm.analysis.dynamics import (
    Array,
    Finding,
    clean,
    false_discovery,
    panel,
    refusal,
    same_benchmark,
)  # fmt: skip

# Levels are the lesser question and the dearer null: every third draw has one.
_EVERY = 3
_PAIRS = (
    "task_a", "task_b", "domain_a", "domain_b", "same_domain", "runs", "n", "level", "level_low",
    "level_high", "level_null", "level_p", "gain", "gain_low", "gain_high", "gain_p", "gain_q",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Correlations(Finding):
    """Which tasks grow together.

    The table has a row per pair of tasks: Spearman correlations of `level`s and of `gain`s with
    95 % intervals; `level_null` is what two unrelated curves that rise as far show on average;
    `gain_q` is `gain_p` adjusted for the number of pairs; `n` counts gains.

    Attributes:
      within: Mean correlation of gains of two tasks of one domain; NaN where there is no pair.
      across: The same of tasks of different domains.
      domain_p: Chance of a difference as large when domains are dealt to tasks at random.
    """

    within: float = math.nan
    across: float = math.nan
    domain_p: float = math.nan


def correlations(records: pd.DataFrame, *, draws: int = 300, seed: int = 0) -> Correlations:
    """Correlations of all pairs of tasks; pairs of one benchmark at other shots are left out."""
    cleaned, notes = clean(records)
    if cleaned.empty:
        return Correlations(**vars(refusal("no record has a value", _PAIRS, notes)))
    data = panel(cleaned)
    series, short = resampling.series(data)
    notes += short
    if len(data.tasks) < 2 or not series:
        reason = "needs two tasks" if len(data.tasks) < 2 else resampling.TOO_SHORT
        return Correlations(**vars(refusal(reason, _PAIRS, notes)))
    levels, gains = [s[0] for s in series], [s[1] for s in series]
    level_ranks = list(map(resampling.ranks, levels))
    gain_ranks = list(map(resampling.ranks, gains))
    rng = np.random.default_rng(seed)
    level, _ = resampling.mean_correlation(level_ranks)
    gain, count = resampling.mean_correlation(gain_ranks)
    boot = [
        (resampling.mean_correlation([x[i] for x, i in zip(level_ranks, index, strict=True)])[0],
         resampling.mean_correlation([x[i] for x, i in zip(gain_ranks, index, strict=True)])[0])
        for index in resampling.blocks([len(x) for x in gains], draws, rng)
    ]  # fmt: skip
    trends = list(map(_trend, levels))
    stacked = [
        np.hstack([gain_, np.diff(trend, axis=0, prepend=trend[:1]), level_ - trend, rank])
        for level_, gain_, trend, rank in zip(levels, gains, trends, gain_ranks, strict=True)
    ]
    level_nulls: list[list[Array]] = []
    gain_nulls: list[Array] = []
    for draw, shuffled in enumerate(resampling.shuffles(stacked, draws, rng)):
        parts = [np.split(columns, 4, axis=1) for columns in shuffled]
        gain_nulls.append(resampling.mean_correlation([part[3] for part in parts])[0])
        if draw % _EVERY:
            continue
        walks = [np.nancumsum(part[0], axis=0) for part in parts]
        rises = [np.nancumsum(part[1], axis=0) + np.nan_to_num(part[2]) for part in parts]
        kept = [
            [np.where(np.isnan(x), x, new) for x, new in zip(levels, curves, strict=True)]
            for curves in (walks, rises)
        ]
        ranks = [list(map(resampling.ranks, curves)) for curves in kept]
        level_nulls.append([resampling.mean_correlation(of_runs)[0] for of_runs in ranks])
    walk_null, rise_null = (np.array(part) for part in zip(*level_nulls, strict=True))
    gain_null = np.array(gain_nulls) * np.sqrt(resampling.bartlett(gain_ranks))
    low, high = resampling.interval(gain, np.array([b[1] for b in boot]))
    level_low, level_high = resampling.interval(level, np.array([b[0] for b in boot]))
    level_p = np.maximum(_two_sided(level, walk_null), _two_sided(level, rise_null))
    level_null = np.fmax(walk_null.mean(axis=0), rise_null.mean(axis=0))
    gain_p = resampling.tail(np.abs(gain), np.abs(gain_null))
    rows, lost = [], 0
    for i, j in itertools.combinations(range(len(data.tasks)), 2):
        if same_benchmark(data.tasks[i], data.tasks[j]):
            continue
        if not np.isfinite(gain[i, j]):
            lost += 1
            continue
        rows.append((
            data.tasks[i], data.tasks[j], data.domains[i], data.domains[j],
            data.domains[i] == data.domains[j], len(gains), int(count[i, j]), level[i, j],
            level_low[i, j], level_high[i, j], level_null[i, j], level_p[i, j],
            gain[i, j], low[i, j], high[i, j], gain_p[i, j], math.nan,
        ))  # fmt: skip
    if lost:
        notes += (f"{lost:,} pairs of tasks vary too little or share too few checkpoints.",)
    table = pd.DataFrame(rows, columns=list(_PAIRS))
    if table.empty:
        return Correlations(**vars(refusal("no two tasks share enough checkpoints", _PAIRS, notes)))
    table["gain_q"] = false_discovery(table.gain_p)
    table = table.sort_values(["gain_p", "gain"], ascending=[True, False], ignore_index=True)
    place = {task: i for i, task in enumerate(data.tasks)}
    pairs = np.array([table.task_a.map(place), table.task_b.map(place)])
    domain = pd.factorize(np.array(data.domains))[0]
    within, across = _means(table.gain.to_numpy(), domain[pairs])
    domain_p = math.nan
    if math.isfinite(within) and math.isfinite(across):
        dealt = [
            _means(table.gain.to_numpy(), rng.permutation(domain)[pairs]) for _ in range(draws)
        ]
        domain_p = float(resampling.share(np.array([w - a >= within - across for w, a in dealt])))
    found = int((table.gain_q <= 0.05).sum())
    sentence = (
        f"Of {len(table):,} pairs of tasks, {found:,} gain at the same checkpoints more (or less) "
        f"often than unrelated curves would (5% false discoveries, {len(gains)} "
        f"{'runs' if len(gains) > 1 else 'run'})"
    )
    if math.isfinite(domain_p):
        sentence += (
            f"; gains correlate at {within:.2f} within a domain and {across:.2f} across domains "
            f"(p = {domain_p:.2g})"
        )
    return Correlations(sentence + ".", table, "", notes, within, across, domain_p)


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


def _means(gain: Array, domains: npt.NDArray[np.int64]) -> tuple[float, float]:
    """Mean of the pairs of one domain, and of those of two; `domains` is [2, pairs]."""
    same = domains[0] == domains[1]
    return (float(gain[same].mean()) if same.any() else math.nan,
            float(gain[~same].mean()) if not same.all() else math.nan)  # fmt: skip
