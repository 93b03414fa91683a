"""Eight ways to guess a final value, and how to weigh them by their errors on finished runs.

Three ways look at the run alone (last value, recent mean, log-linear line). The others carry over
what finished runs did from the same moment of training on: their share of the gain that was left,
their gain regressed on size or on level and size, or their final level. None of them is best for
every task: where a task never leaves chance the level of the other runs says most, where it grows
steadily their gain does. So each forecast is a convex combination (Bates and Granger 1969, "The
combination of forecasts"), whose weights minimise the mean squared error that the ways made when
each size of the finished runs was forecast from the other sizes. A task has few finished runs, so
its error matrix is shrunk toward the mean of all tasks, each scaled to the same size.

The constants below are no task's own; the mean error over all tasks of Pythia moves by less than
2 % when `NEAR` is halved or doubled or `PRIOR_RUNS` is 5 or 80 instead.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from scipy.optimize import nnls

from jaxllm.analysis.capabilities import is_share, lower_is_better
from jaxllm.analysis.forecast_curves import Cut

METHODS = (
    "last value", "recent mean", "log-linear",
    "share of remaining gain", "gain by size", "gain by level and size", "level and slope",
    "final level of others",
)  # fmt: skip
NEAR = 1.0
"""Runs count by exp(-|log(params ratio)| / NEAR): a run e times larger counts 0.37."""
PRIOR_RUNS = 20.0
"""The pooled error matrix weighs as much as this many finished runs of the task itself."""
PRIOR_SCALE_RUNS = 2.0
"""Likewise for the interval's width, which is one number per task and so needs less help."""
ENOUGH_SCORES = 20
_TINY = 1e-12


def guesses(target: Cut, others: Cut, metric: str) -> np.ndarray:
    """Final values by every method, [targets, methods].

    Args:
      target: Runs of one size, cut at the moment of the forecast; their `final` is not read.
      others: Finished runs at the same moment, at least one.
      metric: Its name tells the best possible value (1 for shares, 0 for losses).
    """
    size = target.log_params.mean()
    near = np.exp(-np.abs(others.log_params - size) / NEAR)
    near /= near.sum()
    noise = float(np.nanmean(others.variance)) if np.isfinite(others.variance).any() else 0.0
    gain = others.final - others.recent
    x = target.recent
    best = 1.0 if is_share(metric) else 0.0 if lower_is_better(metric) else np.nan
    share = np.full_like(x, near @ gain)
    if np.isfinite(best):
        left = near @ (best - others.recent)
        share = (best - x) * (near @ gain) / left if abs(left) > 0.01 else share
    sizes = others.log_params - others.log_params.mean()
    by_size = sizes @ (gain - gain.mean()) / (sizes @ sizes + 3.0)
    # Slope of the final value on the level, shrunk toward 1 (a pure gain) by the level's noise.
    level = others.recent - near @ others.recent
    prior = 0.2 * noise + _TINY
    slope = (near @ (level * (others.final - near @ others.final)) + prior) / (
        near @ level**2 + prior
    )
    features = np.stack([others.recent, others.log_params], 1)
    wanted = np.stack([x, target.log_params], 1)
    return np.stack(
        [
            target.last,
            x,
            target.log_linear,
            x + share,
            x + gain.mean() + by_size * (target.log_params - others.log_params.mean()),
            x + _ridge(features, gain, near, wanted, np.array([12.0 * noise + _TINY, 2.0])),
            near @ others.final + slope * (x - near @ others.recent),
            np.full_like(x, near @ others.final),
        ],
        axis=1,
    )


def _ridge(
    features: np.ndarray,
    target: np.ndarray,
    weights: np.ndarray,
    at: np.ndarray,
    penalty: np.ndarray,
) -> np.ndarray:
    """Weighted ridge regression about the weighted mean, at the points `at`."""
    centre, mean = weights @ features, weights @ target
    x = features - centre
    weighted = (x * (weights * len(x))[:, None]).T
    slopes = np.linalg.solve(weighted @ x + np.diag(penalty), weighted @ (target - mean))
    return mean + (at - centre) @ slopes


def convex_weights(errors: np.ndarray) -> np.ndarray:
    """Weights (none negative, sum 1) with the least mean squared error.

    Args:
      errors: Second moments of the methods' errors, [methods, methods].
    """
    count, trace = len(errors), float(np.trace(errors)) + _TINY
    root = np.linalg.cholesky(errors / trace + 1e-9 * np.eye(count)).T
    # The sum is held by a heavy extra row, so that non-negative least squares solves it.
    heavy = 1e3 * np.ones((1, count))
    weights = nnls(np.vstack([root, heavy]), np.append(np.zeros(count), 1e3))[0]
    return weights / weights.sum()


@dataclasses.dataclass(frozen=True)
class Trials:
    """Errors of all methods on one task, made on runs whose end is known.

    Attributes:
      errors: Guess minus truth, [trials, methods].
      held: Which held-out unit (size or run) each trial belongs to, [trials].
      edge: Whether the trial's model was smaller or larger than all it was forecast from, [trials].
      noise: Mean sampling variance of the final values; 0 where unknown.
    """

    errors: np.ndarray
    held: np.ndarray
    edge: np.ndarray
    noise: float


@dataclasses.dataclass(frozen=True)
class Combination:
    """How to combine the methods per task, and how wide to draw the interval.

    Attributes:
      weights: Per task, [tasks, methods].
      scales: Per task the expected size of an error, [tasks].
      scores: Errors / scales of trials that neither weights nor scales had seen, [scores].
      edge: Whether these trials were at the edge of the sizes, [scores].
    """

    weights: np.ndarray
    scales: np.ndarray
    scores: np.ndarray
    edge: np.ndarray

    def radius(self, level: float, edge: bool) -> float:
        """Half width of the interval in scales: the split-conformal quantile of the scores.

        Lei et al. 2018, "Distribution-free predictive inference for regression", section 2.2;
        within one category (Mondrian: Vovk et al. 2005, section 4.5), because a model outside the
        range of the finished ones is harder to forecast than one within.
        """
        alike = self.scores[self.edge == edge]
        return quantile(alike if len(alike) >= ENOUGH_SCORES else self.scores, level)


def quantile(scores: np.ndarray, level: float) -> float:
    """The conformal quantile: the score of rank ceil((n + 1) level), or the largest."""
    rank = min(int(np.ceil((len(scores) + 1) * level)), len(scores))
    return float(np.sort(scores)[rank - 1])


def combine(trials: list[Trials]) -> Combination:
    """Learns weights and interval widths from trials, task by task with shrinkage to all tasks.

    The scores come from weights and scales learned without the trial's unit.
    """
    units = np.unique(np.concatenate([one.held for one in trials]))
    moments = np.stack([_moments(one, None) for one in trials])
    weights, _ = _weights(moments, np.array([len(one.errors) for one in trials]))
    unseen = [np.full(len(one.errors), np.nan) for one in trials]
    for unit in units:
        kept = np.array([int((one.held != unit).sum()) for one in trials])
        without = np.stack([_moments(one, unit) for one in trials])
        fitted, usable = _weights(without, kept)
        if not usable:
            continue
        for one, errors, task_weights in zip(trials, unseen, fitted, strict=True):
            chosen = one.held == unit
            errors[chosen] = one.errors[chosen] @ task_weights
    noise = np.array([one.noise for one in trials])
    scores, edges = [], []
    for unit in units:
        scales = _scales(trials, unseen, noise, unit)
        for one, errors, scale in zip(trials, unseen, scales, strict=True):
            scores.append(np.abs(errors[one.held == unit]) / scale)
            edges.append(one.edge[one.held == unit])
    joined, edge = np.concatenate(scores), np.concatenate(edges)
    fine = np.isfinite(joined)
    return Combination(weights, _scales(trials, unseen, noise, None), joined[fine], edge[fine])


def _moments(one: Trials, without: object) -> np.ndarray:
    """Sum of the outer products of the errors, [methods, methods]."""
    kept = one.errors if without is None else one.errors[one.held != without]
    return kept.T @ kept


def _weights(moments: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, bool]:
    """Weights per task from its own errors and the mean of all tasks' [tasks, methods]."""
    traces = np.trace(moments, axis1=1, axis2=2)
    seen = (counts > 0) & (traces > 0)
    methods = moments.shape[1]
    if not seen.any():
        return np.full((len(moments), methods), 1 / methods), False
    scaled = np.zeros_like(moments)
    scaled[seen] = moments[seen] / traces[seen, None, None]
    pooled = scaled[seen].mean(axis=0)
    share = (counts / (counts + PRIOR_RUNS))[:, None, None]
    return np.stack([convex_weights(each) for each in share * scaled + (1 - share) * pooled]), True


def _scales(
    trials: list[Trials], unseen: list[np.ndarray], noise: np.ndarray, without: object
) -> np.ndarray:
    """Root mean squared error per task, shrunk toward the usual multiple of its sampling noise."""
    sums, counts = np.zeros(len(trials)), np.zeros(len(trials))
    for i, (one, errors) in enumerate(zip(trials, unseen, strict=True)):
        kept = np.isfinite(errors) & ((one.held != without) if without is not None else True)
        sums[i], counts[i] = (errors[kept] ** 2).sum(), kept.sum()
    mean = sums / np.maximum(counts, 1)
    known = (noise > 0) & (counts > 0)
    usual = float(np.median(mean[known] / noise[known])) if known.any() else 0.0
    prior = np.where(noise > 0, usual * noise, np.median(mean[counts > 0]) if counts.any() else 1.0)
    return np.sqrt((sums + PRIOR_SCALE_RUNS * prior) / (counts + PRIOR_SCALE_RUNS)) + 1e-9
