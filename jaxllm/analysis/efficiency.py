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

_EQUAL = 1.01  # tokens that differ by a smaller factor are equal


def _size_class(study: Study) -> tuple[float, float]:
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
    budgets: tuple[float, ...] = (),
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
    low, high = params or _size_class(study)
    points, notes = study.curves.points, study.curves.notes
    useful = points.params.between(low, high) & (points.tokens > 0) & points.chance_score.lt(1)
    frame = points[useful & of_metric(is_share, points.metric)]
    frame = frame.assign(
        relative=(frame.score - frame.chance_score) / (1 - frame.chance_score),
        error=frame.score_stderr.fillna(0.0) / (1 - frame.chance_score),
    )
    last = frame.groupby("run").tokens.max()
    if not budgets:
        ends = np.sort(last.unique())
        budgets = tuple(ends[np.append(ends[1:] > ends[:-1] * _EQUAL, True)[: len(ends)]])
    tables = [at for budget in budgets if (at := _at_budget(frame, budget)) is not None]
    if not tables:
        sizes = f"{amount(low)} to {amount(high)} parameters"
        return Finding.refuse(f"no two runs of {sizes} share a task at equal tokens", notes)
    table = pd.concat(tables, ignore_index=True)
    table["behind_q"] = false_discovery(table.behind_p)
    alone = last.index.difference(table.run)
    if len(alone):
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


def _at_budget(frame: pd.DataFrame, budget: float) -> pd.DataFrame | None:
    """Rows of the runs that reach `budget` tokens, best first; None for fewer than two runs."""
    reached = []
    for key, points in frame.groupby(["run", "params", "task"], sort=False):
        tokens = points.tokens.to_numpy(float)
        if tokens[0] / _EQUAL <= budget <= tokens[-1] * _EQUAL:
            at = math.log(budget), np.log(tokens)
            reached.append((*key, np.interp(*at, points.relative), np.interp(*at, points.error)))
    scores = pd.DataFrame(reached, columns=["run", "params", "task", "score", "stderr"])
    scores = scores[scores.groupby("task").run.transform("nunique") == scores.run.nunique()]
    if scores.run.nunique() < 2:
        return None
    table = scores.groupby(["run", "params"], as_index=False).agg(
        tasks=("task", "nunique"),
        score=("score", "mean"),
        stderr=("stderr", lambda stderr: math.sqrt((stderr**2).sum()) / len(stderr)),
    )
    table = table.sort_values("score", ascending=False, ignore_index=True)
    best = table.iloc[0]
    table["rank"] = np.arange(1, len(table) + 1)
    table["behind"] = best.score - table.score
    error = np.hypot(table.stderr, best.stderr).clip(lower=1e-300)
    table["behind_p"] = np.where(table["rank"] > 1, 2 * stats.norm.sf(table.behind / error), np.nan)
    # The best run's mean at the checkpoints that have all of the tasks.
    own = frame[(frame.run == best.run) & frame.task.isin(scores.task)]
    path = own.groupby("tokens").relative.agg(["mean", "size"])
    path = path["mean"][path["size"] == best.tasks]
    table["tokens_of_best"] = [budget, *(_reached(path, s, budget) for s in table.score[1:])]
    table["efficiency"] = table.tokens_of_best / budget
    table.insert(0, "tokens", budget)
    return table


def _reached(path: pd.Series, value: float, budget: float) -> float:
    """Tokens at which the running maximum of a path first reaches `value`, at most `budget`."""
    tokens, best = path.index.to_numpy(float), np.maximum.accumulate(path.to_numpy(float))
    at = int(np.searchsorted(best, value))
    if at == 0 or at >= len(best):
        return float(min(budget, tokens[0] if at == 0 and len(tokens) else budget))
    share = (value - best[at - 1]) / (best[at] - best[at - 1])
    logs = np.log(tokens)
    return float(min(budget, math.exp(logs[at - 1] + share * (logs[at] - logs[at - 1]))))
