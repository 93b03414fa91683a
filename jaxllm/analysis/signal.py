"""Signal-to-noise ratio of each task in each phase of training.

A task is informative where its signal exceeds its noise: a trend, or differences between runs.
Noise is assumed independent between checkpoints.
"""

from __future__ import annotations

import itertools
import math

import numpy as np
import pandas as pd
from scipy import stats

from jaxllm.analysis.finding import Finding
from jaxllm.analysis.registry import EARLY, Study, analysis
from jaxllm.analysis.stats import false_discovery, least_squares

# Boundaries of the phases, as shares of a run's tokens.
PHASES = (0.0, 0.01, 0.1, 0.5, 1.0)


@analysis(
    EARLY,
    "Most informative tasks",
    place=10,
    caption="How far a task moves, or runs differ on it, in standard deviations of its noise; "
    "coloured where that is beyond chance, empty where the phase has too few checkpoints.",
)
def signal_to_noise(study: Study, *, phases: tuple[float, ...] = PHASES) -> Finding:
    """Test trend and differences between runs, per task and phase (shares of the run's tokens).

    A phase includes the last checkpoint before it. The regression has a level per run and a common
    trend over log tokens; p-values are from its t and F tests. With several sizes, `spread` is
    whether the task can rank them.

    Returns:
      A row per phase and task. `gain` is the mean gain over the phase in standard deviations of
      the residuals, `gain_p` the p-value of no trend. `spread` is the standard deviation between
      runs in the same units, `spread_p` the p-value of equal runs. `q` is the smaller p, doubled
      and adjusted for all rows; `informs` is q < 0.05.
    """
    points, notes = study.curves.points, study.curves.notes
    share = points.tokens / points.groupby("run").tokens.transform("max")
    rows = []
    for low, high in itertools.pairwise(phases):
        before = share.where(share <= low).groupby(points.run).transform("max").fillna(0.0)
        inside = (share >= before) & (share <= high) & (points.tokens > 0)
        for task, every in points.groupby("task", sort=False):
            of_task = every[inside[every.index]]
            row = {"phase": f"{low:.0%} to {high:.0%}", "task": task, "n": len(of_task)}
            row |= {"domain": every.domain.iloc[-1], "runs": of_task.run.nunique()}
            rows.append(row | _trend_and_spread(of_task))
    table = pd.DataFrame(rows)
    if table.empty or table.gain_p.isna().all():
        return Finding.refuse("too few checkpoints in every phase", notes)
    smaller = np.fmin(table.gain_p, table.spread_p)
    both = table.gain_p.notna() & table.spread_p.notna()
    table["q"] = false_discovery(np.minimum(1.0, smaller * np.where(both, 2.0, 1.0)))
    table["informs"] = table.q < 0.05
    strength = table[["gain", "spread"]].max(axis=1)
    best = table.assign(strength=strength)[table.informs].sort_values("strength", ascending=False)
    informative = [
        f"from {phase} of the tokens {', '.join(best[best.phase == phase].task.head(3))}"
        for phase in table.phase.unique()
        if (best.phase == phase).any()
    ]
    sentence = f"Most informative are {'; '.join(informative)}."
    return Finding(sentence if informative else "No task stands out of noise.", table, "", notes)


def _trend_and_spread(points: pd.DataFrame) -> dict[str, float]:
    """Gain over the phase and spread of the runs in units of the noise, with p-values.

    NaN where there are too few points, no variation, or, for the spread, one run.
    """
    result = dict.fromkeys(("gain", "gain_p", "spread", "spread_p"), math.nan)
    run, names = pd.factorize(points.run)
    freedom = len(points) - len(names) - 1
    if freedom < 2:
        return result
    x, y = np.log2(points.tokens.to_numpy(float)), points.score.to_numpy(float)
    levels = np.eye(len(names))[run]
    full, common = np.column_stack([levels, x]), np.column_stack([np.ones_like(x), x])
    coefficients, rss = least_squares(full, y)
    rss_flat, rss_common = (least_squares(design, y)[1] for design in (levels, common))
    variance = rss / freedom
    if np.ptp(x) == 0 or rss_flat < 1e-18:
        return result
    span = np.mean([np.ptp(x[run == number]) for number in range(len(names))])
    result["gain"] = float(coefficients[-1] * span / math.sqrt(variance))
    result["gain_p"] = float(stats.f.sf((rss_flat - rss) / variance, 1, freedom))
    if len(names) > 1:
        result["spread"] = float(np.std(coefficients[:-1], ddof=1) / math.sqrt(variance))
        f = (rss_common - rss) / (len(names) - 1) / variance
        result["spread_p"] = float(stats.f.sf(f, len(names) - 1, freedom))
    return result
