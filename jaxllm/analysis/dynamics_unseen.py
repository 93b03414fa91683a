"""Within a domain, do the tasks that were measured predict one that was not?

A ridge regression from the scores of the known tasks to the unseen one is fitted on some sizes and
tested on the checkpoints of another (leave one size out, so that two runs of one size never stand
on both sides). It has to beat what needs no other task: the mean of the training runs' score of
the unseen task at the same tokens, or their mean over all checkpoints, whichever is better.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pandas as pd
from scipy import stats

from jaxllm.analysis.dynamics import (
    Array,
    Finding,
    Panel,
    clean,
    false_discovery,
    panel,
    refusal,
    same_benchmark,
)

_COLUMNS = (
    "task", "domain", "known", "sizes", "runs", "n", "error", "other_domains", "same_tokens",
    "constant", "noise", "gain", "gain_low", "gain_high", "p", "q", "predicts", "why",
)  # fmt: skip
_FEWEST = 10
_PENALTIES = np.logspace(-3, 3, 13)


@dataclasses.dataclass(frozen=True)
class UnseenTasks(Finding):
    """How well each task is predicted from the others of its domain.

    The table has a row per task; errors are mean absolute errors of the score on held-out sizes:
    `error` of the regression on the `known` tasks of the domain, `other_domains` of one on all
    tasks of other domains, `same_tokens` and `constant` of the naive predictions, `noise` what
    the sampling error of the unseen task alone costs. `gain` is the share of the better naive
    one's error that is saved, a geometric mean over sizes with a 95 % t-interval; `predicts` is
    gain > 0 at `q` < 0.05.

    Attributes:
      domain: Over all tasks the share of the error saved, its interval's ends and its p-value.
      others: The same of predictions from the tasks of all other domains.
    """

    domain: tuple[float, float, float, float] = (math.nan,) * 4
    others: tuple[float, float, float, float] = (math.nan,) * 4


def unseen_tasks(records: pd.DataFrame) -> UnseenTasks:
    """Predicts every task from the others of its domain; see the module's text for the test."""
    cleaned, notes = clean(records)
    if cleaned.empty:
        return UnseenTasks(**vars(refusal("no record has a value", _COLUMNS, notes)))
    data = panel(cleaned)
    groups = sizes(data)
    if len(set(groups)) < 3:
        reason = "needs runs of three sizes, or three runs, to learn on some and test on others"
        return UnseenTasks(**vars(refusal(reason, _COLUMNS, notes)))
    rows, ratios = zip(*(_row(data, groups, t) for t in range(len(data.tasks))), strict=True)
    table = pd.DataFrame(list(rows), columns=list(_COLUMNS))
    table["q"] = false_discovery(table.p)
    table["predicts"] = (table.q < 0.05) & (table.gain > 0)
    tested = table[table.why == ""]
    if tested.empty:
        reason = "no domain has two tasks with ten common points in three sizes"
        return UnseenTasks(reason[0].upper() + reason[1:] + ".", table, reason, notes)
    naive = tested[["same_tokens", "constant"]].min(axis=1)
    overall = []
    for key in ("inside", "outside"):
        by_task = np.array([r[key] for r in ratios if r])
        known = np.isfinite(by_task)
        mean = np.where(known, by_task, 0.0).sum(axis=0) / np.maximum(known.sum(axis=0), 1)
        overall.append(_saved(np.where(known.any(axis=0), mean, math.nan)))
    sentence = (
        f"From the others of its domain an unseen task is predicted with {_percent(overall[0])} "
        "less error than by a naive guess, on sizes held out; from those of other domains with "
        f"{_percent(overall[1])} less; "
        f"{int(tested.predicts.sum())} of {len(tested)} tasks are predicted demonstrably better "
        f"by their domain (5% false discoveries). Mean error {tested.error.mean():.3f} against "
        f"{naive.mean():.3f}; sampling noise alone is {tested.noise.mean():.3f}."
    )
    return UnseenTasks(sentence, table, "", notes, *overall)


def _percent(saved: tuple[float, float, float, float]) -> str:
    if not math.isfinite(saved[0]):
        return "an unknown part"
    return f"{saved[0]:.0%} (95% interval {saved[1]:.0%} to {saved[2]:.0%})"


def sizes(data: Panel) -> tuple[object, ...]:
    """Per run what is held out together: its size, or the run itself where sizes do not differ."""
    known = np.isfinite(data.params)
    if known.all() and len(set(data.params)) > 1:
        return tuple(data.params)
    return data.runs


def _row(
    data: Panel, groups: tuple[object, ...], target: int
) -> tuple[tuple[object, ...], dict[str, Array]]:
    """The row of one task, and log ratios of its errors to the naive one by size."""
    name, domain = data.tasks[target], data.domains[target]
    others = [i for i, task in enumerate(data.tasks) if not same_benchmark(task, name)]
    inside = [i for i in others if data.domains[i] == domain]
    outside = [i for i in others if data.domains[i] != domain]
    known = np.isfinite(data.score[:, :, [target, *inside]])
    run, at = np.nonzero(known.all(axis=2))
    group = np.array([groups.index(groups[r]) for r in run])
    found = np.unique(group)
    blank = [name, domain, len(inside), len(found), len(np.unique(run)), len(run)]
    if not inside or len(found) < 3 or len(run) < _FEWEST:
        why = (
            "no other task in the domain" if not inside
            else "scored in fewer than three sizes" if len(found) < 3
            else f"fewer than {_FEWEST} common points"
        )  # fmt: skip
        return (*blank, *[math.nan] * 10, False, why), {}
    y = data.score[run, at, target]
    curves = [_curve(data, r, target) for r in range(len(data.runs))]
    errors = {key: np.full(len(y), math.nan) for key in ("inside", "outside", "tokens", "constant")}
    x_in, x_out = data.score[run, at][:, inside], data.score[run, at][:, outside]
    complete = np.asarray(np.isfinite(x_out).all(axis=1) & bool(outside))
    for left in found:
        test, train = group == left, group != left
        errors["inside"][test] = np.abs(y[test] - _ridge(x_in[train], y[train], x_in[test]))
        if complete[test].any() and complete[train].sum() > 3:
            now, then = test & complete, train & complete
            errors["outside"][now] = np.abs(y[now] - _ridge(x_out[then], y[then], x_out[now]))
        learned = [curves[r] for r in np.unique(run[train])]
        same = np.mean([np.interp(data.tokens[at[test]], *curve) for curve in learned], axis=0)
        errors["tokens"][test] = np.abs(y[test] - same)
        errors["constant"][test] = np.abs(y[test] - y[train].mean())
    mean = {key: _mean(error) for key, error in errors.items()}
    naive = errors[min(("tokens", "constant"), key=lambda key: mean[key])]
    ratios = {}
    for key in ("inside", "outside"):
        ratios[key] = np.full(len(groups), math.nan)
        for g in found:
            error, usual = errors[key][group == g].mean(), naive[group == g].mean()
            ratios[key][g] = math.log(max(error, 1e-9) / max(usual, 1e-9))
    gain, low, high, p = _saved(ratios["inside"])
    noise = math.sqrt(2 / math.pi) * _mean(data.stderr[run, at, target])
    row = (*blank, mean["inside"], mean["outside"], mean["tokens"], mean["constant"], noise, gain,
           low, high, p, math.nan, False, "")  # fmt: skip
    return row, ratios


def _saved(ratios: Array) -> tuple[float, float, float, float]:
    """Share of the error saved, its 95 % t-interval and p, from log error ratios of the sizes."""
    ratios = ratios[np.isfinite(ratios)]
    if len(ratios) < 3:
        return math.nan, math.nan, math.nan, math.nan
    mean, error = ratios.mean(), max(stats.sem(ratios), 1e-12)
    reach = stats.t.ppf(0.975, len(ratios) - 1) * error
    p = 2 * stats.t.sf(abs(mean) / error, len(ratios) - 1)
    saved, low, high = (1 - math.exp(log) for log in (mean, mean + reach, mean - reach))
    return saved, low, high, float(p)


def _curve(data: Panel, run: int, task: int) -> tuple[Array, Array]:
    known = np.isfinite(data.score[run, :, task])
    return data.tokens[known], data.score[run, known, task]


def _mean(values: Array) -> float:
    known = values[np.isfinite(values)]
    return float(known.mean()) if len(known) else math.nan


def _ridge(x: Array, y: Array, new: Array) -> Array:
    """Ridge regression on standardised columns, its penalty by generalised cross-validation.

    GCV as Golub, Heath and Wahba (1979), eq. 1.4: n RSS / (n - degrees of freedom)^2.
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
