"""Prediction of a held-out task from the other tasks of its domain.

A ridge regression from the scores of the known tasks to the held-out one is fitted on some sizes
and tested on the checkpoints of another (leave-one-size-out, so runs of one size are never split).
Its baselines use no other task: the mean of the training runs' score of the task at the same
tokens, or their mean over all checkpoints, whichever is better.
"""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
from scipy import stats

from jaxllm.analysis.curves import Array, Panel, same_benchmark
from jaxllm.analysis.finding import Finding
from jaxllm.analysis.registry import EARLY, Study, analysis
from jaxllm.analysis.stats import false_discovery

_FEWEST = 10
_PENALTIES = np.logspace(-3, 3, 13)


@analysis(
    EARLY,
    "Held-out tasks",
    place=60,
    needs=Study.several_runs,
    caption="A task predicted from others by a regression that never saw its size; the naive guess "
    "knows the same tokens of other sizes, and no other task.",
)
def held_out_tasks(study: Study) -> Finding:
    """Predict every task from the others of its domain.

    Returns:
      A row per task; errors are mean absolute errors of the score on held-out sizes: `error` of
      the regression on the `known` tasks of the domain, `same_tokens` and `constant` of the
      baselines, `noise` the error expected from the task's sampling alone. `gain` is the error
      reduction against the better baseline, a geometric mean over sizes with a 95 % t-interval;
      `predicts` is gain > 0 at `q` < 0.05; `why` is the reason where a task was not tested.
    """
    data, notes = Panel.of(study.curves), study.curves.notes
    params = data.params
    sizes = np.unique(params, return_inverse=True)[1]
    if not np.isfinite(params).all() or len(set(params)) < 2:
        sizes = np.arange(len(params))  # without known sizes every run is its own fold
    if len(set(sizes)) < 3:
        reason = "needs runs of three sizes, or three runs, to learn on some and test on others"
        return Finding.refuse(reason, notes)
    rows, ratios = [], []
    for target, (task, domain) in enumerate(zip(data.tasks, data.domains, strict=True)):
        known = [
            i
            for i, other in enumerate(data.tasks)
            if data.domains[i] == domain and not same_benchmark(other, task)
        ]
        run, at = np.nonzero(np.isfinite(data.score[:, :, [target, *known]]).all(axis=2))
        size, of_sizes = sizes[run], len(np.unique(sizes[run]))
        row = {"task": task, "domain": domain, "known": len(known), "sizes": of_sizes}
        row |= {"runs": len(np.unique(run)), "n": len(run), "why": ""}
        rows.append(row)
        if not known:
            row["why"] = "no other task in the domain"
        elif of_sizes < 3:
            row["why"] = "scored in fewer than three sizes"
        elif len(run) < _FEWEST:
            row["why"] = f"fewer than {_FEWEST} common points"
        else:
            errors = _errors(data, target, known, run, at, size)
            mean = errors.drop(columns="size").mean()
            by_size = errors.groupby("size").mean().clip(lower=1e-9)
            ratio = np.log(by_size.error / by_size[mean[["same_tokens", "constant"]].idxmin()])
            ratios.append(ratio)
            noise = math.sqrt(2 / math.pi) * pd.Series(data.stderr[run, at, target]).mean()
            gain = zip(("gain", "gain_low", "gain_high", "p"), _reduction(ratio), strict=True)
            row |= {**mean, "noise": noise, **dict(gain)}
    table = pd.DataFrame(rows)
    if not ratios:
        reason = "no domain has two tasks with ten common points in three sizes"
        return Finding(f"No answer: {reason}.", table, reason, notes)
    table["q"] = false_discovery(table.p)
    table["predicts"] = (table.q < 0.05) & (table.gain > 0)
    tested = table[table.why == ""]
    reduction, low, high, _ = _reduction(pd.DataFrame(ratios).mean())
    naive = tested[["same_tokens", "constant"]].min(axis=1)
    sentence = (
        f"From the others of its domain a held-out task is predicted with {reduction:.0%} (95% "
        f"interval {low:.0%} to {high:.0%}) less error than by a naive guess, on sizes held out; "
        f"{int(tested.predicts.sum())} of {len(tested)} tasks are predicted demonstrably better "
        f"by their domain (5% false discoveries). Mean error {tested.error.mean():.3f} against "
        f"{naive.mean():.3f}; sampling noise alone is {tested.noise.mean():.3f}."
    )
    return Finding(sentence, table, "", notes)


def _errors(
    data: Panel, target: int, known: list[int], run: np.ndarray, at: np.ndarray, size: np.ndarray
) -> pd.DataFrame:
    """Table of `error, same_tokens, constant, size`: a row per point (`run`, `at`) held out."""
    y, x = (data.score[run, at][:, of] for of in (target, known))
    parts = []
    for left in np.unique(size):
        test, train = size == left, size != left
        same = []
        for other in np.unique(run[train]):
            scored = np.isfinite(data.score[other, :, target])
            curve = data.tokens[scored], data.score[other, scored, target]
            same.append(np.interp(data.tokens[at[test]], *curve))
        expected = pd.DataFrame({"error": _ridge(x[train], y[train], x[test])})
        expected = expected.assign(same_tokens=np.mean(same, axis=0), constant=y[train].mean())
        parts.append(expected.sub(y[test], axis=0).abs().assign(size=left))
    return pd.concat(parts)


def _reduction(ratios: pd.Series) -> tuple[float, float, float, float]:
    """Error reduction with its 95 % t-interval and p-value, from log error ratios by size."""
    mean, error = ratios.mean(), max(stats.sem(ratios), 1e-12)
    reach = stats.t.ppf(0.975, len(ratios) - 1) * error
    p = 2 * stats.t.sf(abs(mean) / error, len(ratios) - 1)
    reduction, low, high = (1 - math.exp(log) for log in (mean, mean + reach, mean - reach))
    return reduction, low, high, float(p)


def _ridge(x: Array, y: Array, new: Array) -> Array:
    """Ridge regression on standardized columns, its penalty by generalized cross-validation.

    GCV as in Golub, Heath and Wahba (1979), eq. 1.4: n RSS / (n - degrees of freedom)^2. Equal to
    scikit-learn's RidgeCV over a StandardScaler, and eight times as fast.
    """
    centre, scale = x.mean(axis=0), x.std(axis=0)
    scale = np.where(scale > 1e-12, scale, 1.0)
    u, s, vt = np.linalg.svd((x - centre) / scale, full_matrices=False)
    target = u.T @ (y - y.mean())
    outside = max(float(((y - y.mean()) ** 2).sum() - (target**2).sum()), 0.0)
    penalized = s**2 + _PENALTIES[:, None] * len(y)
    shrink = s**2 / penalized
    rss = (((1 - shrink) * target) ** 2).sum(axis=1) + outside
    best = np.argmin(rss / np.maximum(len(y) - 1 - shrink.sum(axis=1), 1e-9) ** 2)
    return np.asarray(y.mean() + ((new - centre) / scale) @ (vt.T @ (s / penalized[best] * target)))
