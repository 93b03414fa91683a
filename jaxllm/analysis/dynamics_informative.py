"""Which tasks tell something in which phase of training?

A task informs where its signal stands out of the noise around it: because it moves, or because it
tells runs apart. Noise is taken as independent between checkpoints.
"""

from __future__ import annotations

import dataclasses
import itertools
import math

import numpy as np
import pandas as pd
from scipy import stats

from jaxllm.analysis.dynamics import Finding, clean, false_discovery, least_squares, refusal

# Shares of a run's tokens between which its phases lie.
PHASES = (0.0, 0.01, 0.1, 0.5, 1.0)
_INFORM = (
    "phase", "from_share", "to_share", "task", "domain", "runs", "n", "gain", "gain_p", "spread",
    "spread_p", "q", "informs", "why",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class InformativeTasks(Finding):
    """Which tasks tell something in which phase of training.

    The table has a row per phase and task. `gain` is its mean gain over the phase in standard
    deviations of the noise around the runs' trends, `gain_p` tests that there is no trend.
    `spread` is the standard deviation between runs in the same units, `spread_p` tests that the
    runs are alike. `q` is the smaller p, doubled and adjusted for all rows; `informs` is q < 0.05.
    """


def informative_tasks(
    records: pd.DataFrame, *, phases: tuple[float, ...] = PHASES
) -> InformativeTasks:
    """Tests trend and differences between runs, per task and phase (shares of the run's tokens).

    A phase begins at the last checkpoint before it. Runs have their own level and a common trend
    over log tokens; p-values are those of the t and the F test of that regression. With several
    sizes, `spread` says whether the task can rank them.
    """
    cleaned, notes = clean(records)
    rows: list[tuple] = []
    share = cleaned.tokens / cleaned.groupby("run").tokens.transform("max")
    for low, high in itertools.pairwise(phases):
        before = share.where(share <= low).groupby(cleaned.run).transform("max").fillna(0.0)
        inside = cleaned[(share >= before) & (share <= high) & (cleaned.tokens > 0)]
        name = f"{low:.0%} to {high:.0%}"
        for task, domain in cleaned.groupby("task", sort=False).domain.last().items():
            points = inside[inside.task == task]
            runs = points.run.nunique()
            if len(points) < runs + 3:
                why = "too few checkpoints in this phase"
                rows.append((name, low, high, task, domain, runs, len(points),
                             *[math.nan] * 5, False, why))  # fmt: skip
                continue
            tested = _trend_and_spread(points)
            rows.append((name, low, high, task, domain, runs, len(points), *tested, math.nan,
                         False, ""))  # fmt: skip
    table = pd.DataFrame(rows, columns=list(_INFORM))
    if table.gain_p.notna().sum() == 0:
        reason = "too few checkpoints in every phase"
        return InformativeTasks(**vars(refusal(reason, _INFORM, notes)))
    smaller = np.fmin(table.gain_p, table.spread_p)
    both = table.gain_p.notna() & table.spread_p.notna()
    table["q"] = false_discovery(np.minimum(1.0, smaller * np.where(both, 2.0, 1.0)))
    table["informs"] = table.q < 0.05
    trend = np.where(table.gain_p >= 0.05, "", np.where(table.gain > 0, "it grows", "it falls"))
    ranks = np.where(table.spread_p < 0.05, "it tells runs apart", "")
    table["why"] = [
        why or (" and ".join(filter(None, said)) if informs else "noise")
        for why, informs, *said in zip(table.why, table.informs, trend, ranks, strict=True)
    ]
    parts = []
    strength = table[["gain", "spread"]].max(axis=1)
    for name, best in table.assign(strength=strength)[table.informs].groupby("phase", sort=False):
        tasks = best.sort_values("strength", ascending=False).task.head(3)
        parts.append(f"from {name} of the tokens {', '.join(tasks)}")
    sentence = f"Most telling are {'; '.join(parts)}." if parts else "No task stands out of noise."
    return InformativeTasks(sentence, table, "", notes)


def _trend_and_spread(points: pd.DataFrame) -> tuple[float, float, float, float]:
    """Gain over the phase and spread of the runs in units of the noise, each with its p-value."""
    run, names = pd.factorize(points.run)
    x, y = np.log2(points.tokens.to_numpy(float)), points.score.to_numpy(float)
    levels = np.eye(len(names))[run]
    full, common = np.column_stack([levels, x]), np.column_stack([np.ones_like(x), x])
    rss, rss_flat, rss_common = (least_squares(d, y)[1] for d in (full, levels, common))
    freedom = len(y) - len(names) - 1
    variance = rss / freedom
    if np.ptp(x) == 0 or rss_flat < 1e-18:
        return math.nan, math.nan, math.nan, math.nan
    coefficients = least_squares(full, y)[0]
    spans = points.assign(x=x).groupby("run").x.agg(np.ptp).mean()
    gain = coefficients[-1] * spans / math.sqrt(variance)
    gain_p = float(stats.f.sf((rss_flat - rss) / variance, 1, freedom))
    if len(names) < 2:
        return float(gain), gain_p, math.nan, math.nan
    spread = float(np.std(coefficients[:-1], ddof=1) / math.sqrt(variance))
    f = (rss_common - rss) / (len(names) - 1) / variance
    return float(gain), gain_p, spread, float(stats.f.sf(f, len(names) - 1, freedom))
