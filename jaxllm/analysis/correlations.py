"""Which capabilities grow together?

Two rising curves always correlate, so levels are uninformative. This correlates the *gains* from
one checkpoint to the next, by Spearman's rank correlation within each run, averaged over the runs.
Under the null hypothesis they come at unrelated times: the gains of every task are shuffled in
time. `jaxllm.analysis.resampling` draws nulls and intervals.
"""

from __future__ import annotations

import dataclasses
import itertools
import math

import numpy as np
import numpy.typing as npt
import pandas as pd

from jaxllm.analysis import resampling
from jaxllm.analysis.curves import Array, Panel, same_benchmark
from jaxllm.analysis.finding import Finding
from jaxllm.analysis.registry import EARLY, Study, analysis
from jaxllm.analysis.stats import false_discovery

_COLUMNS = (
    "task_a", "task_b", "domain_a", "domain_b", "same_domain", "runs", "n", "gain", "gain_low",
    "gain_high", "gain_p", "gain_q",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Correlations(Finding):
    """Result of `correlations`.

    Attributes:
      within: mean correlation of gains over pairs of tasks of one domain; NaN without a pair.
      across: the same over pairs of different domains.
      domain_p: p-value of their difference under random permutation of the domain labels.
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
    """Correlate the gains of all pairs of tasks, except one task at different shots.

    Returns:
      A row per pair of tasks: the Spearman correlation of their `gain`s with a 95 % interval;
      `gain_q` is `gain_p` adjusted for the number of pairs; `n` counts gains.
    """
    data, notes = Panel.of(study.curves), study.curves.notes
    series, short = resampling.series(data)
    notes += short
    if len(data.tasks) < 2 or not series:
        reason = "needs two tasks" if len(data.tasks) < 2 else resampling.TOO_SHORT
        return Correlations.refuse(reason, notes)
    ranks = [resampling.ranks(gains) for _, gains in series]
    gain, count = resampling.mean_correlation(ranks)
    rng = np.random.default_rng(seed)
    drawn = [
        resampling.mean_correlation([x[i] for x, i in zip(ranks, rows, strict=True)])[0]
        for rows in resampling.blocks([len(x) for x in ranks], draws, rng)
    ]
    low, high = resampling.interval(gain, np.array(drawn))
    shuffled = resampling.shuffles(ranks, draws, rng)
    null = np.array([resampling.mean_correlation(of_runs)[0] for of_runs in shuffled])
    null *= np.sqrt(resampling.bartlett(ranks))
    gain_p = resampling.tail(np.abs(gain), np.abs(null))
    pairs = [
        (i, j) for i, j in itertools.combinations(range(len(data.tasks)), 2)
        if not same_benchmark(data.tasks[i], data.tasks[j])
    ]  # fmt: skip
    known = [pair for pair in pairs if np.isfinite(gain[pair])]
    if len(known) < len(pairs):
        lost = len(pairs) - len(known)
        notes += (f"{lost:,} pairs of tasks vary too little or share too few checkpoints.",)
    if not known:
        return Correlations.refuse("no two tasks share enough checkpoints", notes)
    a, b = np.array(known).T
    task, domain = np.array(data.tasks), np.array(data.domains)
    table = pd.DataFrame(
        {
            "task_a": task[a], "task_b": task[b], "domain_a": domain[a], "domain_b": domain[b],
            "same_domain": domain[a] == domain[b], "runs": len(ranks),
            "n": count[a, b].astype(int), "gain": gain[a, b], "gain_low": low[a, b],
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
        f"{len(ranks)} {'runs' if len(ranks) > 1 else 'run'})"
    )
    if math.isfinite(domain_p):
        sentence += (
            f"; gains correlate at {within:.2f} within a domain and {across:.2f} across domains "
            f"(p = {domain_p:.2g})"
        )
    return Correlations(
        sentence + ".", table, "", notes, within=within, across=across, domain_p=domain_p
    )


def _means(gain: Array, same: npt.NDArray[np.bool_]) -> tuple[float, float]:
    """Mean over pairs within a domain, and over pairs across domains."""
    return (float(gain[same].mean()) if same.any() else math.nan,
            float(gain[~same].mean()) if not same.all() else math.nan)  # fmt: skip
