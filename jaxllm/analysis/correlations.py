"""Which capabilities grow together?

Two rising curves always correlate, so levels are uninformative, and where both slow down, or their
checkpoints are unevenly spaced, so do their gains. This correlates what each *gain* from one
checkpoint to the next is beyond the rate, per log of the tokens, of the gains before and after it,
by Spearman's rank correlation within each run, averaged over the runs.

Under the null hypothesis they come at unrelated times: the gains of every task are shuffled in
time, in the same way for all runs that share their checkpoints, since runs of a suite see the same
data at the same step. Shuffling also removes the serial correlation of gains (noise in a level
gives two successive gains of opposite sign), which would make chance agreements look rare; the null
is therefore widened by the square root of Bartlett's variance factor, 1 + 2 sum_k (1 - k/n)
rho_a(k) rho_b(k) (Bartlett 1946; Pyper and Peterman 1998, eq. 1).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy import stats

from jaxllm.analysis.curves import Array, Curves
from jaxllm.analysis.finding import Finding
from jaxllm.analysis.onsets import off_guess
from jaxllm.analysis.registry import EARLY, Study, analysis
from jaxllm.analysis.stats import false_discovery

# Gains per run; with fewer no rank correlation reaches p < 0.05 after adjustment for many pairs.
_FEWEST = 6


@analysis(
    EARLY,
    "Correlated gains",
    place=40,
    caption="Rank correlations of what each checkpoint adds beyond the rate before and after it: "
    "curves that rise smoothly do not correlate. An empty cell was not compared.",
    method="Spearman's rank correlation against gains shuffled in time, the null widened for "
    "serial correlation (Bartlett 1946; Pyper and Peterman 1998); false discoveries: Benjamini and "
    "Hochberg (1995).",
)
def correlations(study: Study, *, draws: int = 300, seed: int = 0) -> Finding:
    """Correlate the gains of all pairs of tasks, except one task at different shots.

    A row per pair: the Spearman correlation of their `gain`s over `n` of them, its `gain_p`, and
    `gain_q`, adjusted for the number of pairs. The p-value in the sentence permutes the domains.
    """
    grown = off_guess(study.curves)
    task = grown.points.task.unique()
    gains, short = gains_of(grown)
    notes = grown.notes + short
    if len(task) < 2 or not gains:
        few = f"a run of {_FEWEST + 3} checkpoints"
        return Finding.refuse(f"needs {'two tasks' if len(task) < 2 else few}", notes)
    ranks = [pd.DataFrame(of_run).rank().to_numpy() for of_run in gains]
    gain, count = _mean_correlation(ranks)
    rng = np.random.default_rng(seed)
    null = np.array([_mean_correlation(x)[0] for x in _shuffles(ranks, draws, rng)])
    gain_p = _tail(np.abs(gain), np.abs(null * np.sqrt(_bartlett(ranks))))
    pairs = [
        (a, b)
        for a, b in itertools.combinations(range(len(task)), 2)
        if task[a].split(" ")[0] != task[b].split(" ")[0]  # one task at other shots
    ]
    known = [pair for pair in pairs if np.isfinite(gain[pair])]
    if len(known) < len(pairs):
        lost = len(pairs) - len(known)
        notes += (f"{lost:,} pairs of tasks vary too little or share too few checkpoints.",)
    if not known:
        return Finding.refuse("no two tasks share enough checkpoints", notes)
    pair = a, b = tuple(np.array(known).T)
    domain = grown.points.groupby("task").domain.last().loc[task].astype(str).to_numpy()
    same = domain[a] == domain[b]
    table = pd.DataFrame({
        "task_a": task[a], "task_b": task[b], "domain_a": domain[a], "domain_b": domain[b],
        "same_domain": same, "runs": len(ranks), "n": count[pair].astype(int), "gain": gain[pair],
        "gain_p": gain_p[pair],
    })  # fmt: skip
    table["gain_q"] = false_discovery(table.gain_p)
    sentence = (
        f"Of {len(table):,} pair{'s' * (len(table) > 1)} of tasks, "
        f"{int((table.gain_q <= 0.05).sum()):,} gain at the same "
        "checkpoints more (or less) often than unrelated curves would (5% false discoveries, "
        f"{len(ranks)} {'runs' if len(ranks) > 1 else 'run'})"
    )
    if same.any() and not same.all():
        means = lambda same: np.array([gain[pair][same].mean(), gain[pair][~same].mean()])
        within, across = means(same)
        permuted = [rng.permutation(domain) for _ in range(draws)]
        apart = np.array([-np.diff(means(of[a] == of[b])) for of in permuted])
        p = float(_share(apart >= within - across)[0])
        sentence += (
            f"; gains correlate at {within:z.2f} within a domain and {across:z.2f} across domains "
            f"(p = {p:.2g})"
        )
    table = table.sort_values(["gain_p", "gain"], ascending=[True, False], ignore_index=True)
    return Finding(sentence + ".", table, "", notes)


def gains_of(curves: Curves) -> tuple[list[Array], tuple[str, ...]]:
    """Gains [S_r, T] between checkpoints of the runs with enough of them; and a note."""
    tasks, points = curves.points.task.unique(), curves.points[curves.points.tokens > 0]
    tables = (
        rows.pivot(index="tokens", columns="task", values="score").reindex(columns=tasks)
        for _, rows in points.groupby("run", sort=False)
    )
    every = [_gains(np.log(table.index.to_numpy(float)), table.to_numpy(float)) for table in tables]
    enough = [of_run for of_run in every if len(of_run) >= _FEWEST]
    short = len(every) - len(enough)
    note = f"{short} of {len(every)} runs have fewer than {_FEWEST + 3} checkpoints: left out."
    return enough, (note,) if short else ()


def _gains(clock: Array, scores: Array) -> Array:
    """Gains of scores [S, T] beyond the rate, over the `clock` [S], of their neighbours' gains.

    Between the checkpoints with so many tasks that most pairs of gains can be compared.
    """
    tasks = np.isfinite(scores).sum(axis=1)
    grids = []
    for fewest in {1, *tasks[tasks > 0]}:
        span, gain = (np.diff(of[tasks >= fewest], axis=0) for of in (clock[:, None], scores))
        rate = (gain[2:] + gain[:-2]) / (span[2:] + span[:-2])
        grids.append(gain[1:-1] - rate * span[1:-1])
    return max(grids, key=lambda gains: int((np.isfinite(gains).sum(axis=1) ** 2).sum()))


def _mean_correlation(series: list[Array]) -> tuple[Array, Array]:
    """Mean over runs of the Pearson correlations [T, T] of columns, and their number of rows.

    Correlations over fewer than `_FEWEST` common rows are left out.
    """
    r = np.array([pd.DataFrame(x).corr(min_periods=_FEWEST) for x in series])
    known = [np.isfinite(x).astype(float) for x in series]
    weight = np.where(np.isfinite(r), [x.T @ x for x in known], 0.0)
    with np.errstate(all="ignore"):
        return np.nansum(r * weight, axis=0) / weight.sum(axis=0), weight.sum(axis=0)


def _bartlett(series: list[Array]) -> Array:
    """Bartlett's variance factors [T, T] of correlations of serially correlated series, >= 1."""
    factors = []
    for ranks in series:
        known = np.isfinite(ranks)
        mean = np.where(known, ranks, 0.0).sum(axis=0) / np.maximum(known.sum(axis=0), 1)
        x = np.where(known, ranks - mean, 0.0)
        n, most = len(x), max(1, len(x) // 4)
        variance = np.maximum((x * x).sum(axis=0), 1e-12)
        rho = [(x[k:] * x[: n - k]).sum(axis=0) / variance for k in range(1, most + 1)]
        terms = [(1 - k / n) * np.outer(r, r) for k, r in enumerate(rho, start=1)]
        factors.append(1 + 2 * np.sum(terms, axis=0))
    return np.maximum(1.0, np.average(factors, axis=0, weights=[len(x) for x in series]))


def _shuffles(series: list[Array], draws: int, rng: np.random.Generator) -> Iterator[list[Array]]:
    """Permute every column independently, alike for runs with the same checkpoints."""
    longest = max(len(x) for x in series)
    for _ in range(draws):
        keys = rng.random((longest, series[0].shape[1]))
        yield [np.take_along_axis(x, np.argsort(keys[: len(x)], axis=0), axis=0) for x in series]


def _share(extreme: npt.NDArray[Any]) -> Array:
    """Permutation p-value over the first axis, counting the data as one of the draws."""
    return np.asarray((1 + extreme.sum(axis=0)) / (1 + len(extreme)))


def _tail(value: Array, draws: Array) -> Array:
    """Permutation p-value; in the far tail, from a half-normal fitted to the draws."""
    counted = _share(draws >= value)
    with np.errstate(all="ignore"):
        smooth = 2 * stats.norm.sf(value / np.sqrt((draws**2).mean(axis=0)))
    return np.where(counted * (1 + len(draws)) > 10, counted, np.maximum(smooth, 1e-12))
