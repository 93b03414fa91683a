"""Does one domain of capabilities grow before another?

A domain's gain from one checkpoint to the next is the mean of its tasks' gains, each in units of
its standard deviation. The gains of two domains are cross-correlated (by ranks, averaged over the
runs) at lags in both directions; the null hypothesis is that of `jaxllm.analysis.resampling`:
gains at unrelated times.
"""

from __future__ import annotations

import itertools

import numpy as np
import pandas as pd

from jaxllm.analysis import resampling
from jaxllm.analysis.curves import Array, Panel
from jaxllm.analysis.finding import Finding
from jaxllm.analysis.registry import EARLY, Study, analysis
from jaxllm.analysis.stats import false_discovery


@analysis(
    EARLY,
    "Lead-lag between domains",
    place=50,
    caption="Right of the line the first domain's gains precede the second's. It is order in time, "
    "and no proof that the one brings the other.",
)
def lead_lag(study: Study, *, max_lag: int = 4, draws: int = 300, seed: int = 0) -> Finding:
    """Test every pair of domains for lead and lag.

    Returns:
      A row per pair of domains: the `lag` of `second` behind `first` (in checkpoints) at which
      their gains correlate most, and that `correlation`; `lead` is the best correlation with
      `first` ahead minus the best with `second` ahead; `related_p` is the p-value of a correlation
      at any lag and `lead_p` that of the lead, both against shuffled times, `…_q` adjusted for the
      number of pairs; `leads` is whether both are significant and both domains have two tasks or
      more, since a single task does not represent a domain.
    """
    data, notes = Panel.of(study.curves), study.curves.notes
    domains = tuple(dict.fromkeys(data.domains))
    of_tasks, short = resampling.gains(data)
    notes += short
    if len(domains) < 2 or not of_tasks:
        reason = "needs two domains" if len(domains) < 2 else resampling.TOO_SHORT
        return Finding.refuse(reason, notes)
    gains = [resampling.ranks(_by_domain(x, data.domains, domains)) for x in of_tasks]
    n = sum(map(len, gains))
    max_lag = min(max_lag, min(map(len, gains)) // 3)
    rng = np.random.default_rng(seed)
    observed = _lagged(gains, max_lag)
    widen = np.sqrt(resampling.bartlett(gains))
    null = np.array([_lagged(s, max_lag) for s in resampling.shuffles(gains, draws, rng)]) * widen
    related_p = resampling.share(np.abs(null).max(axis=1) >= np.abs(observed).max(axis=0))
    lead, null_lead = _lead(observed, max_lag), _lead(null, max_lag)
    lead_p = resampling.share(np.abs(null_lead) >= np.abs(lead))
    names = pd.Series(data.tasks).str.split(" ").str[0]
    benchmarks = names.groupby(list(data.domains), sort=False).unique()
    alone = {domain: of[0] for domain, of in benchmarks.items() if len(of) == 1}
    rows = []
    for i, j in itertools.combinations(range(len(domains)), 2):
        if not np.isfinite(observed[:, i, j]).all():
            notes += (f"{domains[i]} and {domains[j]} vary too little or share too little.",)
            continue
        a, b = (i, j) if lead[i, j] >= 0 else (j, i)
        best = int(np.argmax(np.abs(observed[:, a, b])))
        row = {"first": domains[a], "second": domains[b], "lag": best - max_lag}
        row |= {"correlation": observed[best, a, b], "related_p": related_p[i, j]}
        row |= {"lead": lead[a, b], "lead_p": lead_p[i, j], "n": n, "runs": len(gains)}
        rows.append(row | {"leads": not {domains[a], domains[b]} & alone.keys()})
    if not rows:
        return Finding.refuse("no two domains share enough checkpoints", notes)
    table = pd.DataFrame(rows)
    table["related_q"] = false_discovery(table.related_p)
    table["lead_q"] = false_discovery(table.lead_p)
    table["leads"] &= table[["related_q", "lead_q"]].max(axis=1, skipna=False) <= 0.05
    notes += tuple(
        f"{domain} holds one task, {task}: a lead would be the task's, not the domain's."
        for domain, task in alone.items()
    )
    table = table.sort_values(["leads", "lead_p"], ascending=[False, True], ignore_index=True)
    return Finding(_sentence(table), table, "", notes)


def _sentence(table: pd.DataFrame) -> str:
    leading = [
        f"{row.first} gains before {row.second} (p = {row.lead_p:.2g})"
        for row in table[table.leads].head(3).itertuples()
    ]
    if leading:
        sentence = "; ".join(leading) + "."
        return sentence[0].upper() + sentence[1:]
    related = int((table.related_q <= 0.05).sum())
    return (
        f"{related or 'None'} of {len(table)} pairs of domains gain at related times; in no "
        "pair does one domain's gain demonstrably come first."
    )


def _by_domain(gains: Array, of_task: tuple[str, ...], domains: tuple[str, ...]) -> Array:
    """Mean gains [S, D] of each domain's tasks, each in units of its standard deviation."""
    frame = pd.DataFrame(gains)
    spread = frame.std(ddof=0)
    scaled = frame / spread.where(spread > 0)
    return scaled.T.groupby(np.array(of_task)).mean().T[list(domains)].to_numpy()


def _lagged(series: list[Array], max_lag: int) -> Array:
    """Correlations [2 K + 1, D, D] of column i with column j `lag` checkpoints later."""
    ahead = [resampling.mean_correlation(series, lag, 1)[0] for lag in range(max_lag + 1)]
    return np.stack([*(r.T for r in ahead[:0:-1]), *ahead])


def _lead(lagged: Array, max_lag: int) -> Array:
    """Best correlation with the first series ahead minus the best with the second ahead."""
    ahead, behind = lagged[..., max_lag + 1 :, :, :], lagged[..., :max_lag, :, :]
    return np.asarray(ahead.max(axis=-3) - behind.max(axis=-3))
