"""Within a domain, do the tasks that were measured predict one that was not?

A ridge regression from the scores of the known tasks to the held-out one is fitted on some sizes
and tested on the checkpoints of another (leave one size out, so that two runs of one size never
stand on both sides). It has to beat what needs no other task: the mean of the training runs' score
of the task at the same tokens, or their mean over all checkpoints, whichever is better.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pandas as pd
from scipy import stats

from jaxllm.analysis.curves import Array, Panel, same_benchmark
from jaxllm.analysis.finding import Finding, refusal
from jaxllm.analysis.registry import EARLY, Study, analysis
from jaxllm.analysis.stats import false_discovery

_COLUMNS = (
    "task", "domain", "known", "sizes", "runs", "n", "error", "other_domains", "same_tokens",
    "constant", "noise", "gain", "gain_low", "gain_high", "p", "q", "predicts", "why",
)  # fmt: skip
_FEWEST = 10
_PENALTIES = np.logspace(-3, 3, 13)
Saved = tuple[float, float, float, float]
_UNKNOWN: Saved = (math.nan,) * 4


@dataclasses.dataclass(frozen=True)
class HeldOutTasks(Finding):
    """What `held_out_tasks` returns.

    Attributes:
      domain: Over all tasks the share of the error saved, its interval's ends and its p-value.
      others: The same of predictions from the tasks of all other domains.
    """

    domain: Saved = _UNKNOWN
    others: Saved = _UNKNOWN


@analysis(
    EARLY,
    "Held-out tasks",
    place=60,
    needs=Study.several_runs,
    caption="A task predicted from others by a regression that never saw its size; the naive guess "
    "knows the same tokens of other sizes, and no other task.",
)
def held_out_tasks(study: Study) -> HeldOutTasks:
    """Predicts every task from the others of its domain, and from those of other domains.

    Returns:
      A row per task; errors are mean absolute errors of the score on held-out sizes: `error` of
      the regression on the `known` tasks of the domain, `other_domains` of one on all tasks of
      other domains, `same_tokens` and `constant` of the naive predictions, `noise` what the
      sampling error of the task alone costs. `gain` is the share of the better naive one's error
      that is saved, a geometric mean over sizes with a 95 % t-interval; `predicts` is gain > 0 at
      `q` < 0.05.
    """
    data, notes = Panel.of(study.curves), study.curves.notes
    params = data.params
    sizes = np.unique(params, return_inverse=True)[1]
    if not np.isfinite(params).all() or len(set(params)) < 2:
        sizes = np.arange(len(params))  # runs of one size are told apart by themselves
    if len(set(sizes)) < 3:
        reason = "needs runs of three sizes, or three runs, to learn on some and test on others"
        return refusal(reason, _COLUMNS, notes, HeldOutTasks)
    rows, ratios = zip(*(_row(data, sizes, t) for t in range(len(data.tasks))), strict=True)
    table = pd.DataFrame(list(rows), columns=list(_COLUMNS))
    table["q"] = false_discovery(table.p)
    table["predicts"] = (table.q < 0.05) & (table.gain > 0)
    tested = table[table.why == ""]
    if tested.empty:
        reason = "no domain has two tasks with ten common points in three sizes"
        return HeldOutTasks(f"No answer: {reason}.", table, reason, notes)
    domain, others = (
        _saved(pd.DataFrame([r[key] for r in ratios if r]).mean().to_numpy(float))
        for key in ("inside", "outside")
    )
    naive = tested[["same_tokens", "constant"]].min(axis=1)
    sentence = (
        f"From the others of its domain a held-out task is predicted with {_percent(domain)} "
        "less error than by a naive guess, on sizes held out; from those of other domains with "
        f"{_percent(others)} less; "
        f"{int(tested.predicts.sum())} of {len(tested)} tasks are predicted demonstrably better "
        f"by their domain (5% false discoveries). Mean error {tested.error.mean():.3f} against "
        f"{naive.mean():.3f}; sampling noise alone is {tested.noise.mean():.3f}."
    )
    return HeldOutTasks(sentence, table, "", notes, domain=domain, others=others)


def _percent(saved: Saved) -> str:
    if not math.isfinite(saved[0]):
        return "an unknown part"
    return f"{saved[0]:.0%} (95% interval {saved[1]:.0%} to {saved[2]:.0%})"


def _row(
    data: Panel, sizes: np.ndarray, target: int
) -> tuple[tuple[object, ...], dict[str, Array]]:
    """The row of one task, and log ratios of its errors to the naive one by size."""
    name, domain = data.tasks[target], data.domains[target]
    others = [i for i, task in enumerate(data.tasks) if not same_benchmark(task, name)]
    inside = [i for i in others if data.domains[i] == domain]
    outside = [i for i in others if data.domains[i] != domain]
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
        return (*head, *[math.nan] * 10, False, why), {}
    y, x_in, x_out = (data.score[run, at][:, of] for of in (target, inside, outside))
    complete = np.asarray(np.isfinite(x_out).all(axis=1) & bool(outside))
    errors = {key: np.full(len(y), math.nan) for key in ("inside", "outside", "tokens", "constant")}
    for left in held:
        test, train = size == left, size != left
        errors["inside"][test] = np.abs(y[test] - _ridge(x_in[train], y[train], x_in[test]))
        if complete[test].any() and complete[train].sum() > 3:
            now, then = test & complete, train & complete
            errors["outside"][now] = np.abs(y[now] - _ridge(x_out[then], y[then], x_out[now]))
        same = []
        for other in np.unique(run[train]):
            known = np.isfinite(data.score[other, :, target])
            curve = data.tokens[known], data.score[other, known, target]
            same.append(np.interp(data.tokens[at[test]], *curve))
        errors["tokens"][test] = np.abs(y[test] - np.mean(same, axis=0))
        errors["constant"][test] = np.abs(y[test] - y[train].mean())
    mean = {key: float(pd.Series(error).mean()) for key, error in errors.items()}
    naive = errors[min(("tokens", "constant"), key=lambda key: mean[key])]
    ratios = {key: np.full(sizes.max() + 1, math.nan) for key in ("inside", "outside")}
    for key, ratio in ratios.items():
        for left in held:
            error, usual = errors[key][size == left].mean(), naive[size == left].mean()
            ratio[left] = math.log(max(error, 1e-9) / max(usual, 1e-9))
    noise = math.sqrt(2 / math.pi) * float(pd.Series(data.stderr[run, at, target]).mean())
    return (*head, *mean.values(), noise, *_saved(ratios["inside"]), math.nan, False, ""), ratios


def _saved(ratios: Array) -> Saved:
    """Share of the error saved, its 95 % t-interval and p, from log error ratios of the sizes."""
    ratios = ratios[np.isfinite(ratios)]
    if len(ratios) < 3:
        return _UNKNOWN
    mean, error = ratios.mean(), max(stats.sem(ratios), 1e-12)
    reach = stats.t.ppf(0.975, len(ratios) - 1) * error
    p = 2 * stats.t.sf(abs(mean) / error, len(ratios) - 1)
    saved, low, high = (1 - math.exp(log) for log in (mean, mean + reach, mean - reach))
    return saved, low, high, float(p)


def _ridge(x: Array, y: Array, new: Array) -> Array:
    """Ridge regression on standardised columns, its penalty by generalised cross-validation.

    GCV as Golub, Heath and Wahba (1979), eq. 1.4: n RSS / (n - degrees of freedom)^2. The same
    predictions as scikit-learn's RidgeCV over a StandardScaler, eight times as fast.
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
