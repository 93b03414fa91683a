"""Prediction of a held-out task from the other tasks of its domain.

A ridge regression from the scores of the known tasks to the held-out one is fitted on some sizes
and tested on the checkpoints of another (leave-one-size-out, so runs of one size are never split).
Its baselines use no other task: the mean of the training runs' score of the task at the same
tokens, or their mean over all checkpoints, whichever is better.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pandas as pd
from scipy import stats

from jaxllm.analysis.curves import Array, Panel, same_benchmark
from jaxllm.analysis.finding import Finding
from jaxllm.analysis.registry import EARLY, Study, analysis
from jaxllm.analysis.stats import false_discovery

_COLUMNS = (
    "task", "domain", "known", "sizes", "runs", "n", "error", "same_tokens", "constant", "noise",
    "gain", "gain_low", "gain_high", "p", "q", "predicts", "why",
)  # fmt: skip
_FEWEST = 10
_PENALTIES = np.logspace(-3, 3, 13)
Saved = tuple[float, float, float, float]
_UNKNOWN: Saved = (math.nan,) * 4


@dataclasses.dataclass(frozen=True)
class HeldOutTasks(Finding):
    """Result of `held_out_tasks`.

    Attributes:
      saved: error reduction over all tasks, as a share, with its interval and p-value.
    """

    saved: Saved = _UNKNOWN


@analysis(
    EARLY,
    "Held-out tasks",
    place=60,
    needs=Study.several_runs,
    caption="A task predicted from others by a regression that never saw its size; the naive guess "
    "knows the same tokens of other sizes, and no other task.",
)
def held_out_tasks(study: Study) -> HeldOutTasks:
    """Predict every task from the others of its domain.

    Returns:
      A row per task; errors are mean absolute errors of the score on held-out sizes: `error` of
      the regression on the `known` tasks of the domain, `same_tokens` and `constant` of the
      baselines, `noise` the error expected from the task's sampling alone. `gain` is the error
      reduction against the better baseline, a geometric mean over sizes with a 95 % t-interval;
      `predicts` is gain > 0 at `q` < 0.05.
    """
    data, notes = Panel.of(study.curves), study.curves.notes
    params = data.params
    sizes = np.unique(params, return_inverse=True)[1]
    if not np.isfinite(params).all() or len(set(params)) < 2:
        sizes = np.arange(len(params))  # without known sizes every run is its own fold
    if len(set(sizes)) < 3:
        reason = "needs runs of three sizes, or three runs, to learn on some and test on others"
        return HeldOutTasks.refuse(reason, notes)
    rows, ratios = zip(*(_row(data, sizes, t) for t in range(len(data.tasks))), strict=True)
    table = pd.DataFrame(list(rows), columns=list(_COLUMNS))
    table["q"] = false_discovery(table.p)
    table["predicts"] = (table.q < 0.05) & (table.gain > 0)
    tested = table[table.why == ""]
    if tested.empty:
        reason = "no domain has two tasks with ten common points in three sizes"
        return HeldOutTasks(f"No answer: {reason}.", table, reason, notes)
    by_size = pd.DataFrame([r for r in ratios if r is not None]).mean()
    saved = _saved(by_size.to_numpy(float))
    naive = tested[["same_tokens", "constant"]].min(axis=1)
    percent = f"{saved[0]:.0%} (95% interval {saved[1]:.0%} to {saved[2]:.0%}) less error than"
    sentence = (
        f"From the others of its domain a held-out task is predicted with "
        f"{percent if math.isfinite(saved[0]) else 'another error than'} by a naive guess, on "
        f"sizes held out; {int(tested.predicts.sum())} of {len(tested)} tasks are predicted "
        "demonstrably better by their domain (5% false discoveries). Mean error "
        f"{tested.error.mean():.3f} against {naive.mean():.3f}; sampling noise alone is "
        f"{tested.noise.mean():.3f}."
    )
    return HeldOutTasks(sentence, table, "", notes, saved=saved)


def _row(data: Panel, sizes: np.ndarray, target: int) -> tuple[tuple[object, ...], Array | None]:
    """Row of one task, and by size the log ratio of its error to the better baseline's."""
    name, domain = data.tasks[target], data.domains[target]
    inside = [
        i for i, task in enumerate(data.tasks)
        if data.domains[i] == domain and not same_benchmark(task, name)
    ]  # fmt: skip
    run, at = np.nonzero(np.isfinite(data.score[:, :, [target, *inside]]).all(axis=2))
    size = sizes[run]
    held = np.unique(size)
    head = (name, domain, len(inside), len(held), len(np.unique(run)), len(run))
    why = ""
    if not inside:
        why = "no other task in the domain"
    elif len(held) < 3:
        why = "scored in fewer than three sizes"
    elif len(run) < _FEWEST:
        why = f"fewer than {_FEWEST} common points"
    if why:
        return (*head, *[math.nan] * 9, False, why), None
    y, x = (data.score[run, at][:, of] for of in (target, inside))
    errors = {key: np.full(len(y), math.nan) for key in ("regression", "tokens", "constant")}
    for left in held:
        test, train = size == left, size != left
        errors["regression"][test] = np.abs(y[test] - _ridge(x[train], y[train], x[test]))
        same = []
        for other in np.unique(run[train]):
            known = np.isfinite(data.score[other, :, target])
            curve = data.tokens[known], data.score[other, known, target]
            same.append(np.interp(data.tokens[at[test]], *curve))
        errors["tokens"][test] = np.abs(y[test] - np.mean(same, axis=0))
        errors["constant"][test] = np.abs(y[test] - y[train].mean())
    mean = {key: float(error.mean()) for key, error in errors.items()}
    naive = errors[min(("tokens", "constant"), key=lambda key: mean[key])]
    ratios = np.full(sizes.max() + 1, math.nan)
    for left in held:
        error, usual = errors["regression"][size == left].mean(), naive[size == left].mean()
        ratios[left] = math.log(max(error, 1e-9) / max(usual, 1e-9))
    noise = math.sqrt(2 / math.pi) * float(pd.Series(data.stderr[run, at, target]).mean())
    return (*head, *mean.values(), noise, *_saved(ratios), math.nan, False, ""), ratios


def _saved(ratios: Array) -> Saved:
    """Error reduction with its 95 % t-interval and p-value, from log error ratios by size."""
    ratios = ratios[np.isfinite(ratios)]
    if len(ratios) < 3:
        return _UNKNOWN
    mean, error = ratios.mean(), max(stats.sem(ratios), 1e-12)
    reach = stats.t.ppf(0.975, len(ratios) - 1) * error
    p = 2 * stats.t.sf(abs(mean) / error, len(ratios) - 1)
    saved, low, high = (1 - math.exp(log) for log in (mean, mean + reach, mean - reach))
    return saved, low, high, float(p)


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
    best, chosen = math.inf, np.zeros(len(s))
    for penalty in _PENALTIES * len(y):
        shrink = s**2 / (s**2 + penalty)
        rss = (((1 - shrink) * target) ** 2).sum() + outside
        score = rss / max(len(y) - 1 - shrink.sum(), 1e-9) ** 2
        if score < best:
            best, chosen = score, s / (s**2 + penalty) * target
    return np.asarray(y.mean() + ((new - centre) / scale) @ (vt.T @ chosen))
