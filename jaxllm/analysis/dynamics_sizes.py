"""Across sizes: which axis makes their curves one curve, and who gets most out of its tokens?

`collapse` asks over which of tokens, FLOPs and loss a curve learned from other sizes predicts a
size left out; `efficiency` compares runs of one size class at equal tokens.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pandas as pd
from scipy import stats

from jaxllm.analysis.capabilities import is_share, lower_is_better
from jaxllm.analysis.dynamics import Array, Finding, amount, clean, false_discovery, refusal

AXES = ("tokens", "flops", "loss")
# What may stand for the loss of a run: what most checkpoints have, of equals the first.
_LOSSES = ("loss", "bits_per_byte", "perplexity")
_WIDTHS = (0.03, 0.06, 0.12, 0.25)
_COLLAPSE = ("task", "domain", "axis", "sizes", "n", "error", "noise", "best")
_EFFICIENCY = (
    "tokens", "run", "params", "tasks", "score", "stderr", "rank", "behind", "behind_p",
    "behind_q", "tokens_of_best", "efficiency",
)  # fmt: skip
_EQUAL = 1.01  # tokens that differ by a smaller factor are equal


@dataclasses.dataclass(frozen=True)
class Collapse(Finding):
    """Over which axis curves of different sizes fall together.

    The table has a row per task and axis: the mean absolute `error` of the score of left-out
    sizes, over the `n` points that lie within the other sizes' range on every axis, beside the
    `noise` that the tasks' sampling error alone makes.

    Attributes:
      best: The axis of the smallest error, relative to the mean of the axes, over all tasks.
      p: Of a paired t-test over the sizes that it is no better than the next axis.
    """

    best: str = ""
    p: float = math.nan


def collapse(records: pd.DataFrame, losses: pd.DataFrame | None = None) -> Collapse:
    """Leave-one-size-out errors of smooth curves over log tokens, log FLOPs and loss.

    Args:
      records: The trajectory table, with all its metrics where losses are to come from it.
      losses: Columns `run, tokens, loss` (metrics.jsonl has them); without it, the mean over tasks
        of the loss, bits per byte or log perplexity, whichever most checkpoints have. A task that
        its own metric would predict is left out.

    The curve is a local linear regression with a Gaussian kernel (Fan and Gijbels 1996, §2.3), its
    width for each task and axis the best of four. Sizes are told apart by their parameters.
    """
    cleaned, notes = clean(records)
    own: set[str] = set()
    if losses is None:
        losses, own = _losses(records)
    axes = AXES if len(losses) else AXES[:2]
    if not len(losses):
        notes += ("No loss in the records: only tokens and FLOPs are compared.",)
    frame = cleaned[(cleaned.tokens > 0) & (cleaned.flops > 0) & cleaned.params.notna()]
    if len(lost := cleaned[(cleaned.tokens > 0) & ~cleaned.index.isin(frame.index)]):
        notes += (f"{len(lost):,} records say no size or no FLOPs: left out.",)
    if own & set(frame.task):
        notes += (f"The loss is measured on {', '.join(sorted(own & set(frame.task)))}: left out.",)
    frame = _with_loss(frame[~frame.task.isin(own)], losses) if "loss" in axes else frame
    parts = []
    for task, points in frame.groupby("task", sort=False):
        if points.params.nunique() >= 3:
            errors = _left_out_errors(points, axes)
            parts.append(errors.assign(task=task, domain=points.domain.iloc[0]))
    if not parts or not sum(map(len, parts)):
        reason = "needs a task in three sizes whose ranges overlap"
        return Collapse(**vars(refusal(reason, _COLLAPSE, notes)))
    errors = pd.concat(parts, ignore_index=True)
    grouped = errors.groupby(["task", "domain", "axis"], sort=False)
    table = grouped.agg(sizes=("params", "nunique"), n=("error", "size"), error=("error", "mean"),
                        noise=("noise", "mean")).reset_index()  # fmt: skip
    table["best"] = table.error == table.groupby("task").error.transform("min")
    relative = errors.error / errors.groupby("task").error.transform("mean")
    by_size = relative.groupby([errors.params, errors.axis]).mean().unstack()
    order = list(by_size.mean().sort_values().index)
    p = math.nan
    if len(by_size) >= 3:
        p = float(stats.ttest_rel(by_size[order[1]], by_size[order[0]]).pvalue)
    mean = table.groupby("axis").error.mean()
    said = ", ".join(f"{mean[axis]:.4f} over {axis}" for axis in order)
    certain = "best" if p < 0.05 else "best, but not demonstrably so,"
    sentence = (
        f"The curves of {table.task.nunique()} tasks and {len(by_size)} sizes fall together "
        f"{certain} over {order[0]} (mean error of a left-out size: {said}; p = {p:.2g})."
    )
    return Collapse(sentence, table[list(_COLLAPSE)], "", notes, order[0], p)


def _losses(records: pd.DataFrame) -> tuple[pd.DataFrame, set[str]]:
    """Loss per run and checkpoint from the records, and the tasks that it is measured on."""
    best, tasks = pd.DataFrame({"run": [], "tokens": [], "loss": []}), set()
    for metric in _LOSSES:
        named, _ = clean(records[records.metric == metric])
        loss = (-named.score).groupby([named.run, named.tokens]).mean().rename("loss")
        if len(loss) > len(best):
            best, tasks = loss.reset_index(), set(named.task)
    return best, tasks


def _with_loss(frame: pd.DataFrame, losses: pd.DataFrame) -> pd.DataFrame:
    parts = []
    for run, points in frame.groupby("run", sort=False):
        mine = losses[(losses.run == run) & np.isfinite(losses.loss)].sort_values("tokens")
        if len(mine):
            inside = points[points.tokens.between(mine.tokens.min(), mine.tokens.max())]
            parts.append(inside.assign(loss=np.interp(inside.tokens, mine.tokens, mine.loss)))
    return pd.concat(parts) if parts else frame.iloc[:0].assign(loss=math.nan)


def _left_out_errors(points: pd.DataFrame, axes: tuple[str, ...]) -> pd.DataFrame:
    """`axis, params, error, noise` of every point that all axes can predict."""
    y, group = points.score.to_numpy(float), points.params.to_numpy(float)
    at = {a: points[a].to_numpy(float) for a in axes}
    at = {a: x if a == "loss" else np.log(x) for a, x in at.items()}
    usable = np.ones(len(y), bool)
    for left in np.unique(group):
        mine = group == left
        for x in at.values():
            usable[mine] &= (x[mine] >= x[~mine].min()) & (x[mine] <= x[~mine].max())
    noise = math.sqrt(2 / math.pi) * points.doubt.to_numpy(float)
    parts = []
    for axis, x in at.items():
        best: Array | None = None
        for width in _WIDTHS:
            error = np.full(len(y), math.nan)
            for left in np.unique(group[usable]):
                test, train = usable & (group == left), group != left
                error[test] = np.abs(y[test] - _smooth(x[train], y[train], x[test], width))
            if best is None or error[usable].sum() < best[usable].sum():
                best = error
        assert best is not None
        parts.append(pd.DataFrame({"axis": axis, "params": group[usable], "error": best[usable],
                                   "noise": noise[usable]}))  # fmt: skip
    return pd.concat(parts, ignore_index=True)


def _smooth(x: Array, y: Array, new: Array, width: float) -> Array:
    """Local linear regression at `new`; `width` is the kernel's, as a share of the range."""
    distance = (x[None] - new[:, None]) / (width * max(float(np.ptp(x)), 1e-12))
    weight = np.exp(-0.5 * distance**2) + 1e-12
    s0, s1 = weight.sum(axis=1), (weight * distance).sum(axis=1)
    s2 = (weight * distance**2).sum(axis=1)
    t0, t1 = weight @ y, (weight * distance) @ y
    return np.asarray((s2 * t0 - s1 * t1) / np.maximum(s0 * s2 - s1**2, 1e-12))


@dataclasses.dataclass(frozen=True)
class Efficiency(Finding):
    """Runs of one size class at equal tokens.

    The table has a row per token budget and run: `score`, the mean over the tasks that all runs
    there share of (value - chance) / (1 - chance), with its standard error; how far it is `behind`
    the best run and the p-value of that; `tokens_of_best`, at which the best run had this score,
    and `efficiency`, their share of the budget.
    """


def efficiency(
    records: pd.DataFrame,
    *,
    params: tuple[float, float] = (5e9, 9e9),
    budgets: tuple[float, ...] | None = None,
) -> Efficiency:
    """Compares runs with `params` in the given range; `budgets` are tokens (default: last ones).

    Values between checkpoints are linear in log tokens; no run is extrapolated, but tokens that
    differ by less than 1% are equal (OPT's 300B and Pythia's 299.9B). Standard errors are
    those of the tasks' examples, taken as different ones, which overstates the doubt of runs that
    answer the same examples.
    """
    cleaned, notes = clean(records)
    useful = cleaned.params.between(*params) & cleaned.metric.map(is_share).astype(bool)
    useful &= ~cleaned.metric.map(lower_is_better).astype(bool) & cleaned.floor.lt(1)
    frame = cleaned[useful & (cleaned.tokens > 0)]
    last = frame.groupby("run").tokens.max()
    ends = sorted(set(last))
    ends = [end for end, after in zip(ends, [*ends[1:], math.inf], strict=False)
            if after > end * _EQUAL]  # fmt: skip
    wanted = budgets if budgets is not None else tuple(ends)
    rows: list[dict] = []
    for budget in wanted:
        at = _at_tokens(frame, budget)
        shared = at.groupby("task").run.nunique() == at.run.nunique()
        at = at[at.task.isin(shared.index[shared])]
        if at.run.nunique() < 2 or at.empty:
            continue
        grouped = at.groupby("run")
        score = grouped.relative.mean().sort_values(ascending=False)
        error = grouped.doubt.agg(lambda d: math.sqrt((d**2).sum()) / len(d))
        best = score.index[0]
        path = _path(frame[(frame.run == best) & frame.task.isin(at.task)], at.task.nunique())
        for rank, (run, value) in enumerate(score.items(), start=1):
            behind = score[best] - value
            spent = budget if run == best else _reached(path, value, budget)
            p = 2 * stats.norm.sf(behind / max(math.hypot(error[run], error[best]), 1e-300))
            rows.append({
                "tokens": budget, "run": run, "params": grouped.params.last()[run],
                "tasks": at.task.nunique(), "score": value, "stderr": error[run], "rank": rank,
                "behind": behind, "behind_p": math.nan if run == best else float(p),
                "tokens_of_best": spent, "efficiency": spent / budget,
            })  # fmt: skip
    if not rows:
        low, high = (amount(p) for p in params)
        reason = f"no two runs of {low} to {high} parameters share a task at equal tokens"
        return Efficiency(**vars(refusal(reason, _EFFICIENCY, notes)))
    table = pd.DataFrame(rows, columns=list(_EFFICIENCY))
    table["behind_q"] = false_discovery(table.behind_p)
    alone = [str(run) for run in last.index if run not in set(table.run)]
    if alone:
        notes = (*notes, f"{', '.join(alone)}: no other run has as many tokens to compare with.")
    final = table[table.tokens == table.tokens.max()]
    best, next_best = final.iloc[0], final.iloc[1]
    certain = "" if next_best.behind_q < 0.05 else ", a difference within the noise"
    sentence = (
        f"At {amount(best.tokens)} tokens {best.run} leads with {best.score:.3f} of the way from "
        f"chance to perfect, before {next_best.run} with {next_best.score:.3f}{certain}"
    )
    if next_best.efficiency < 1:
        sentence += f"; {best.run} had that score after {next_best.efficiency:.0%} of the tokens"
    return Efficiency(sentence + ".", table, "", notes)


def _at_tokens(frame: pd.DataFrame, budget: float) -> pd.DataFrame:
    """`run, params, task, relative, doubt` of every trajectory that reaches over the budget."""
    rows = []
    for (run, task), points in frame.groupby(["run", "task"], sort=False):
        tokens = points.tokens.to_numpy(float)
        if tokens[0] / _EQUAL <= budget <= tokens[-1] * _EQUAL:
            room = 1 - points.floor.iloc[-1]
            value = np.interp(math.log(budget), np.log(tokens), points.score)
            doubt = np.interp(math.log(budget), np.log(tokens), points.doubt.fillna(0.0))
            rows.append((run, points.params.iloc[-1], task, (value - points.floor.iloc[-1]) / room,
                         doubt / room))  # fmt: skip
    return pd.DataFrame(rows, columns=["run", "params", "task", "relative", "doubt"])


def _path(frame: pd.DataFrame, tasks: int) -> pd.Series:
    """The mean relative score of a run at the checkpoints that have all of the tasks."""
    relative = (frame.score - frame.floor) / (1 - frame.floor)
    grouped = relative.groupby(frame.tokens)
    return grouped.mean()[grouped.size() == tasks]


def _reached(path: pd.Series, value: float, budget: float) -> float:
    """Tokens at which the running maximum of a path first comes to `value`, at most the budget."""
    tokens, best = path.index.to_numpy(float), np.maximum.accumulate(path.to_numpy(float))
    at = int(np.searchsorted(best, value))
    if at == 0 or at >= len(best):
        return float(min(budget, tokens[0] if at == 0 and len(tokens) else budget))
    part = (value - best[at - 1]) / (best[at] - best[at - 1])
    logs = np.log(tokens)
    return float(min(budget, math.exp(logs[at - 1] + part * (logs[at] - logs[at - 1]))))
