"""Which capabilities grow together?

Two rising curves always correlate, so levels are uninformative. This correlates the *gains* from
one checkpoint to the next, by Spearman's rank correlation within each run, averaged over the runs.
Under the null hypothesis they come at unrelated times: the gains of every task are shuffled in
time. `jaxllm.analysis.resampling` draws nulls and intervals.
"""

from __future__ import annotations

import itertools

import numpy as np
import numpy.typing as npt
import pandas as pd

from jaxllm.analysis import resampling
from jaxllm.analysis.curves import Array, Panel, same_benchmark
from jaxllm.analysis.finding import Finding
from jaxllm.analysis.registry import EARLY, Study, analysis
from jaxllm.analysis.stats import false_discovery


@analysis(
    EARLY,
    "Correlated gains",
    place=40,
    caption="Rank correlations of what each checkpoint adds to the one before it: two rising "
    "curves always correlate, their gains need not. An empty cell was not compared.",
)
def correlations(study: Study, *, draws: int = 300, seed: int = 0) -> Finding:
    """Correlate the gains of all pairs of tasks, except one task at different shots.

    Returns:
      A row per pair of tasks: the Spearman correlation of their `gain`s with a 95 % interval;
      `gain_q` is `gain_p` adjusted for the number of pairs; `n` counts gains. The p-value of the
      difference within and across domains, in the sentence, is from randomly permuted labels.
    """
    data, notes = Panel.of(study.curves), study.curves.notes
    gains, short = resampling.gains(data)
    notes += short
    if len(data.tasks) < 2 or not gains:
        reason = "needs two tasks" if len(data.tasks) < 2 else resampling.TOO_SHORT
        return Finding.refuse(reason, notes)
    ranks = list(map(resampling.ranks, gains))
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
        (a, b)
        for a, b in itertools.combinations(range(len(data.tasks)), 2)
        if not same_benchmark(data.tasks[a], data.tasks[b])
    ]
    known = [pair for pair in pairs if np.isfinite(gain[pair])]
    if len(known) < len(pairs):
        lost = len(pairs) - len(known)
        notes += (f"{lost:,} pairs of tasks vary too little or share too few checkpoints.",)
    if not known:
        return Finding.refuse("no two tasks share enough checkpoints", notes)
    pair = a, b = tuple(np.array(known).T)
    task, domain = np.array(data.tasks), np.array(data.domains)
    same = domain[a] == domain[b]
    table = pd.DataFrame({"task_a": task[a], "task_b": task[b]})
    table = table.assign(domain_a=domain[a], domain_b=domain[b], same_domain=same, runs=len(ranks))
    table = table.assign(n=count[pair].astype(int), gain=gain[pair], gain_low=low[pair])
    table = table.assign(gain_high=high[pair], gain_p=gain_p[pair])
    table["gain_q"] = false_discovery(table.gain_p)
    sentence = (
        f"Of {len(table):,} pairs of tasks, {int((table.gain_q <= 0.05).sum()):,} gain at the same "
        "checkpoints more (or less) often than unrelated curves would (5% false discoveries, "
        f"{len(ranks)} {'runs' if len(ranks) > 1 else 'run'})"
    )
    if same.any() and not same.all():
        within, across = _means(gain[pair], same)
        permuted = [rng.permutation(domain) for _ in range(draws)]
        means = [_means(gain[pair], of[a] == of[b]) for of in permuted]
        p = resampling.share(np.array([w - x >= within - across for w, x in means]))
        sentence += (
            f"; gains correlate at {within:.2f} within a domain and {across:.2f} across domains "
            f"(p = {p:.2g})"
        )
    table = table.sort_values(["gain_p", "gain"], ascending=[True, False], ignore_index=True)
    return Finding(sentence + ".", table, "", notes)


def _means(gain: Array, same: npt.NDArray[np.bool_]) -> tuple[float, float]:
    """Mean over pairs within a domain, and over pairs across domains."""
    return float(gain[same].mean()), float(gain[~same].mean())
