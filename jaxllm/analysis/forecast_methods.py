"""Ways to guess a final value, and how to weigh them by their errors on finished runs.

Three ways look at the run alone (last value, recent mean, log-linear line); the others carry over
what finished runs did, by kriging under several assumptions about how much of a task's values is
noise (`forecast_kriging`). None of them is best for every task, so each forecast is a convex
combination (Bates and Granger 1969, "The combination of forecasts"), whose weights minimise the
mean squared error that the ways made when each size of the finished runs was forecast from the
other sizes. A task has few finished runs, so its error matrix is shrunk toward the mean of its
benchmark's tasks, and that toward the mean of all tasks, each scaled to the same size. The weights
are learned on settled values, without the noise of one last checkpoint; the intervals are not.

There is no way through the loss: on Pythia the language-modelling loss (Lambada's perplexity) at
30 % of training, as far as the model's size does not explain it, correlates with what these
forecasts miss by less than 0.08; even the final loss would explain 5 % of it.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from scipy.optimize import nnls

from jaxllm.analysis.forecast_curves import Cut
from jaxllm.analysis.forecast_kriging import KERNELS, kriged

METHODS = ("last value", "recent mean", "log-linear", *(f"kriging {k}" for k in KERNELS))
PRIOR_RUNS = 80.0
"""The pooled error matrix weighs as much as this many finished runs of the task itself."""
PRIOR_TASKS = 3.0
"""All tasks' mean error matrix weighs as much as this many tasks of the benchmark."""
PRIOR_SCALE_RUNS = 2.0
"""Likewise for the interval's width, which is one number per task and so needs less help."""
ENOUGH_SCORES = 20
_TINY = 1e-12


def guesses(target: Cut, others: Cut) -> np.ndarray:
    """Final values by every method, [targets, methods].

    Args:
      target: Runs of one size, cut at the moment of the forecast; nothing later of them is read.
      others: Finished runs at the same moment, at least one.
    """
    own = target.values[:, : target.early]
    alone = np.stack([own[:, -1], own.mean(axis=1), target.log_linear], axis=1)
    size = float(target.log_params.mean())
    carried = kriged(own, size, others.values, others.log_params, others.times)
    return np.concatenate([alone, carried], axis=1)


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
      luck: Final minus settled value, [trials]: the last checkpoint's noise.
      held: Which held-out unit (size or run) each trial belongs to, [trials].
      edge: Whether the trial's model was smaller or larger than all it was forecast from, [trials].
      noise: Mean sampling variance of the final values; 0 where unknown.
      benchmark: Name of the tasks that belong together.
    """

    errors: np.ndarray
    luck: np.ndarray
    held: np.ndarray
    edge: np.ndarray
    noise: float
    benchmark: str = ""


@dataclasses.dataclass(frozen=True)
class Combination:
    """How to combine the methods per task, and how wide to draw the interval.

    Attributes:
      weights: Per task, [tasks, methods].
      scales: Per task the expected size of an error, [tasks].
      scores: Errors / scales of trials that neither weights nor scales had seen, [scores].
      edge: Whether these trials were at the edge of the sizes, [scores].
      benchmarks: Their tasks' benchmarks, [scores].
    """

    weights: np.ndarray
    scales: np.ndarray
    scores: np.ndarray
    edge: np.ndarray
    benchmarks: np.ndarray

    def radius(self, level: float, edge: bool, benchmark: str = "") -> float:
        """Half width of the interval in scales: the split-conformal quantile of the scores.

        Lei et al. 2018, "Distribution-free predictive inference for regression", section 2.2;
        within one category (Mondrian: Vovk et al. 2005, section 4.5), because a model outside the
        range of the finished ones is harder to forecast than one within, and because benchmarks
        differ in how far runs stray from their neighbours.
        """
        alike = self.edge == edge
        for chosen in (alike & (self.benchmarks == benchmark), alike):
            if chosen.sum() >= ENOUGH_SCORES:
                return quantile(self.scores[chosen], level)
        return quantile(self.scores, level)


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
    groups = np.array([one.benchmark for one in trials])
    weights, _ = _weights(moments, np.array([len(one.errors) for one in trials]), groups)
    unseen = [np.full(len(one.errors), np.nan) for one in trials]
    for unit in units:
        kept = np.array([int((one.held != unit).sum()) for one in trials])
        without = np.stack([_moments(one, unit) for one in trials])
        fitted, usable = _weights(without, kept, groups)
        if not usable:
            continue
        for one, errors, task_weights in zip(trials, unseen, fitted, strict=True):
            chosen = one.held == unit
            errors[chosen] = one.errors[chosen] @ task_weights
    noise = np.array([one.noise for one in trials])
    scores, edges, owners = [], [], []
    for unit in units:
        scales = _scales(trials, unseen, noise, unit)
        for one, errors, scale in zip(trials, unseen, scales, strict=True):
            scores.append(np.abs(errors[one.held == unit]) / scale)
            edges.append(one.edge[one.held == unit])
            owners += [one.benchmark] * len(edges[-1])
    joined, edge, owner = np.concatenate(scores), np.concatenate(edges), np.array(owners)
    fine = np.isfinite(joined)
    return Combination(
        weights, _scales(trials, unseen, noise, None), joined[fine], edge[fine], owner[fine]
    )


def _moments(one: Trials, without: object) -> np.ndarray:
    """Sum of the outer products of the errors, [methods, methods]."""
    kept = one.errors + one.luck[:, None]
    kept = kept if without is None else kept[one.held != without]
    return kept.T @ kept


def _weights(
    moments: np.ndarray, counts: np.ndarray, groups: np.ndarray
) -> tuple[np.ndarray, bool]:
    """Weights per task from its own errors, its benchmark's and all tasks' [tasks, methods]."""
    traces = np.trace(moments, axis1=1, axis2=2)
    seen = (counts > 0) & (traces > 0)
    methods = moments.shape[1]
    if not seen.any():
        return np.full((len(moments), methods), 1 / methods), False
    scaled = np.zeros_like(moments)
    scaled[seen] = moments[seen] / traces[seen, None, None]
    everything, pooled = scaled[seen].mean(axis=0), np.empty_like(scaled)
    for group in np.unique(groups):
        mine = groups == group
        own = scaled[mine & seen]
        pooled[mine] = (own.sum(axis=0) + PRIOR_TASKS * everything) / (len(own) + PRIOR_TASKS)
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
