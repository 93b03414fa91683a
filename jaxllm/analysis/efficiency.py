"""Token efficiency: runs of one size class compared at equal tokens."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
from scipy import stats

from jaxllm.analysis.curves import is_share, of_metric
from jaxllm.analysis.finding import Finding, amount
from jaxllm.analysis.registry import SIZES, Study, analysis
from jaxllm.analysis.stats import false_discovery

_COLUMNS = (
    "tokens", "run", "params", "tasks", "score", "stderr", "rank", "behind", "behind_p",
    "behind_q", "tokens_of_best", "efficiency",
)  # fmt: skip
_EQUAL = 1.01  # tokens that differ by a smaller factor are equal


def size_class(study: Study) -> tuple[float, float]:
    """Range of parameter counts to compare: the 7B class, or else the one with most runs."""
    params = np.array(list(study.params.values()))
    low, high = 5e9, 9e9
    if ((params >= low) & (params <= high)).sum() >= 2 or not len(params):
        return low, high
    crowd = [((params >= 0.7 * size) & (params <= 1.4 * size)).sum() for size in params]
    usual = params[int(np.argmax(crowd))]
    return 0.7 * usual, 1.4 * usual


@analysis(
    SIZES,
    "Efficiency at equal tokens",
    place=10,
    needs=Study.several_runs,
    caption="Mean over the tasks that all of these runs have. Equal tokens are not equal FLOPs "
    "where sizes differ, and better data, longer schedules and scoring rules all count as "
    "efficiency.",
)
def efficiency(
    study: Study,
    *,
    params: tuple[float, float] | None = None,
    budgets: tuple[float, ...] | None = None,
) -> Finding:
    """Compare runs with `params` in the given range; `budgets` in tokens (default: last ones).

    Values are interpolated linearly in log tokens, never extrapolated; tokens that differ by less
    than 1% count as equal (OPT's 300B and Pythia's 299.9B). Standard errors treat the examples of
    two runs as independent, which overstates the error of a difference on the same examples.

    Returns:
      A row per token budget and run: `score`, the mean of (value - chance) / (1 - chance) over the
      tasks shared by all runs at this budget, with its standard error; the difference `behind` the
      best run and its p-value; `tokens_of_best`, at which the best run had this score, and
      `efficiency`, their ratio to the budget.
    """
    low, high = params or size_class(study)
    points, notes = study.curves.points, study.curves.notes
    useful = points.params.between(low, high) & (points.tokens > 0) & points.chance_score.lt(1)
    frame = points[useful & of_metric(is_share, points.metric)]
    last = frame.groupby("run").tokens.max()
    if budgets is None:
        ends = np.sort(last.unique())
        budgets = tuple(ends[np.append(ends[1:] > ends[:-1] * _EQUAL, True)[: len(ends)]])
    rows: list[dict[str, object]] = []
    for budget in budgets:
        rows += _at_budget(frame, budget)
    if not rows:
        sizes = f"{amount(low)} to {amount(high)} parameters"
        return Finding.refuse(f"no two runs of {sizes} share a task at equal tokens", notes)
    table = pd.DataFrame(rows, columns=list(_COLUMNS))
    table["behind_q"] = false_discovery(table.behind_p)
    alone = [str(run) for run in last.index if run not in set(table.run)]
    if alone:
        notes += (f"{', '.join(alone)}: no other run has as many tokens to compare with.",)
    best, second = table[table.tokens == table.tokens.max()].iloc[:2].itertuples()
    certain = "" if second.behind_q < 0.05 else ", a difference within the noise"
    sentence = (
        f"At {amount(best.tokens)} tokens {best.run} leads with {best.score:.3f} of the way from "
        f"chance to perfect, before {second.run} with {second.score:.3f}{certain}"
    )
    if second.efficiency < 1:
        sentence += f"; {best.run} had that score after {second.efficiency:.0%} of the tokens"
    return Finding(sentence + ".", table, "", notes)


def _at_budget(frame: pd.DataFrame, budget: float) -> list[dict[str, object]]:
    """Rows of the runs that reach `budget` tokens; none for fewer than two runs."""
    at = _at_tokens(frame, budget)
    shared = at.groupby("task").run.nunique() == at.run.nunique()
    at = at[at.task.isin(shared.index[shared])]
    if at.run.nunique() < 2:
        return []
    grouped = at.groupby("run")
    score = grouped.relative.mean().sort_values(ascending=False)
    error = grouped.stderr.agg(lambda stderr: math.sqrt((stderr**2).sum()) / len(stderr))
    best, tasks = score.index[0], at.task.nunique()
    # The best run's mean at the checkpoints that have all of the tasks.
    own = frame[(frame.run == best) & frame.task.isin(at.task)]
    relative = (own.score - own.chance_score) / (1 - own.chance_score)
    path = relative.groupby(own.tokens).agg(["mean", "size"])
    path = path["mean"][path["size"] == tasks]
    rows: list[dict[str, object]] = []
    for rank, (run, value) in enumerate(score.items(), start=1):
        behind = score[best] - value
        spent = budget if run == best else _reached(path, value, budget)
        p = 2 * stats.norm.sf(behind / max(math.hypot(error[run], error[best]), 1e-300))
        rows.append({
            "tokens": budget, "run": run, "params": grouped.params.last()[run], "tasks": tasks,
            "score": value, "stderr": error[run], "rank": rank, "behind": behind,
            "behind_p": math.nan if run == best else float(p), "tokens_of_best": spent,
            "efficiency": spent / budget,
        })  # fmt: skip
    return rows


def _at_tokens(frame: pd.DataFrame, budget: float) -> pd.DataFrame:
    """Table of `run, params, task, relative, stderr`: trajectories that span the budget."""
    rows = []
    for (run, task), points in frame.groupby(["run", "task"], sort=False):
        tokens = points.tokens.to_numpy(float)
        if tokens[0] / _EQUAL <= budget <= tokens[-1] * _EQUAL:
            chance = points.chance_score.iloc[-1]
            value, stderr = (
                np.interp(math.log(budget), np.log(tokens), column)
                for column in (points.score, points.score_stderr.fillna(0.0))
            )
            relative, error = (value - chance) / (1 - chance), stderr / (1 - chance)
            rows.append((run, points.params.iloc[-1], task, relative, error))
    return pd.DataFrame(rows, columns=["run", "params", "task", "relative", "stderr"])


def _reached(path: pd.Series, value: float, budget: float) -> float:
    """Tokens at which the running maximum of a path first reaches `value`, at most `budget`."""
    tokens, best = path.index.to_numpy(float), np.maximum.accumulate(path.to_numpy(float))
    at = int(np.searchsorted(best, value))
    if at == 0 or at >= len(best):
        return float(min(budget, tokens[0] if at == 0 and len(tokens) else budget))
    share = (value - best[at - 1]) / (best[at] - best[at - 1])
    logs = np.log(tokens)
    return float(min(budget, math.exp(logs[at - 1] + share * (logs[at] - logs[at - 1]))))
