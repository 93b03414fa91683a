"""Methods to forecast a run's final values: from finished runs, or from its own past alone.

From finished runs: the last value, the recent mean, and ordinary kriging over model size and time
with two kernels. None is best for every benchmark, so a forecast is their convex combination
(Bates and Granger 1969, "The combination of forecasts"), with the weights of least squared error in
leave-one-size-out cross-validation on the finished runs.

Kriging models the values of a task as a Gaussian process over (log parameters, log share of the
training) with an unknown constant mean and observation noise. The covariance of two runs is

    course k(t, t') + (size + drift k(t, t')) (range - |s - s'|) + run [same run]

where k = exp(-(t - t')^2 / 2 l^2): the closer two models in size, the more their levels (`size`)
and trends (`drift`) covary; runs of one size differ by a constant (`run`). The prediction is the
best linear unbiased one from the run's recent values and all points of the finished runs (Cressie
1993, "Statistics for Spatial Data", section 3.2).
"""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import numpy as np
from scipy import stats
from scipy.optimize import nnls

from jaxllm.analysis.curves import Array
from jaxllm.analysis.stats import line_fit

RECENT = 3  # number of last values that the methods use
# Minimum number of past errors for a conformal quantile; with fewer the interval is normal.
_MIN_SCORES = 20
# Weight of a benchmark's mean error moments, in finished runs of the task itself.
_BENCHMARK_RUNS = 80.0
_DAMPING = 0.5


class Kernel(NamedTuple):
    """Covariance terms in units of the noise variance, and length scale `time` in log tokens."""

    size: float
    drift: float
    run: float
    time: float


# For tasks that are mostly noise, whose best forecast is a mean, and for tasks with little.
KERNELS = (Kernel(0.3, 0.2, 0.0, 1.0), Kernel(1e3, 4.0, 10.0, 2.0))
METHODS = ("last value", "recent mean", *(f"kriging {kernel}" for kernel in KERNELS))
COURSE = 30.0  # variance of the course common to all runs: large, hence uninformative


def predictions(own: Array, own_size: float, finished: Array, sizes: Array, times: Array) -> Array:
    """Forecast final values [targets, methods] by every method.

    Args:
      own: [targets, early] values of runs of one size at the first of `times`.
      own_size: log parameters of these runs.
      finished: [runs, times] values of finished runs.
      sizes: [runs] log parameters of the finished runs.
      times: [times] shares of the training, ascending to 1.
    """
    early = own.shape[1]
    weights = _weights(round(own_size, 3), early, tuple(sizes.round(3)), tuple(times.round(6)))
    kriged = own @ weights[:, :early].T + weights[:, early:] @ finished.ravel()
    return np.concatenate([own[:, -1:], own.mean(axis=1, keepdims=True), kriged], axis=1)


@functools.lru_cache(maxsize=4096)
def _weights(
    own_size: float, early: int, sizes: tuple[float, ...], times: tuple[float, ...]
) -> Array:
    """Kriging weights [kernels, points] of the target's early points and the finished runs'.

    They depend on sizes and times only, so tasks scored at the same checkpoints share them.
    """
    moments = np.log(times)
    # The last point is the prediction target: the run's size at the end of training.
    s = np.concatenate([np.full(early, own_size), np.repeat(sizes, len(times)), [own_size]])
    t = np.concatenate([moments[:early], np.tile(moments, len(sizes)), [0.0]])
    run = np.concatenate([np.full(early, -1), np.repeat(np.arange(len(sizes)), len(times)), [-1]])
    apart = np.abs(s[:, None] - s)
    nearness, same_run = max(float(apart.max()), 1.0) - apart, run[:, None] == run
    since, count = (t[:, None] - t) ** 2, len(s) - 1
    weights = []
    for kernel in KERNELS:
        course = np.exp(-since / (2 * kernel.time**2))
        field = COURSE * course + (kernel.size + kernel.drift * course) * nearness
        field += kernel.run * same_run
        # The border of ones constrains the weights to sum to 1 (unknown constant mean).
        system = np.ones((count + 1, count + 1))
        system[:count, :count] = field[:count, :count] + np.eye(count)
        system[count, count] = 0.0
        weights.append(np.linalg.solve(system, np.append(field[:count, count], 1.0))[:count])
    return np.stack(weights)


def convex_weights(errors: Array) -> Array:
    """Non-negative weights [methods] of sum 1 with the least mean squared error.

    `errors` are the second moments [methods, methods] of the methods' errors.
    """
    count, trace = len(errors), float(np.trace(errors)) + 1e-12
    root = np.linalg.cholesky(errors / trace + 1e-9 * np.eye(count)).T
    # A row with a large weight enforces the sum of 1 in non-negative least squares.
    heavy = 1e3 * np.ones((1, count))
    weights = nnls(np.vstack([root, heavy]), np.append(np.zeros(count), 1e3))[0]
    return np.asarray(weights / weights.sum())


class CrossValidation(NamedTuple):
    """Cross-validation errors of all methods on one task over the finished runs."""

    errors: Array  # [runs, methods] forecast minus final value
    folds: np.ndarray  # [runs] index of the fold: a size, or a run
    benchmark: str = ""  # of the task; its tasks share weights


def combine(tasks: list[CrossValidation], level: float) -> tuple[Array, Array]:
    """Weights [tasks, methods] of the methods, and half widths [tasks] of the intervals.

    The weights minimise a mean of the benchmark's error moments (tasks equally weighted) and the
    task's own, with more weight on its own the more finished runs it has. The width is the root
    mean squared error of the task times a factor for all tasks: the split-conformal quantile (Lei
    et al. 2018, "Distribution-free predictive inference for regression", section 2.2) of the errors
    of each fold over the root mean squared error of the others.
    """
    benchmarks = np.array([task.benchmark for task in tasks])
    moments = np.stack([task.errors.T @ task.errors for task in tasks])
    moments /= np.maximum(np.trace(moments, axis1=1, axis2=2), 1e-12)[:, None, None]
    for benchmark in np.unique(benchmarks):
        members = np.flatnonzero(benchmarks == benchmark)
        runs = np.array([len(tasks[i].errors) for i in members])[:, None, None]
        own = runs / (runs + _BENCHMARK_RUNS)
        moments[members] = own * moments[members] + (1 - own) * moments[members].mean(axis=0)
    weights = np.stack([convex_weights(each) for each in moments])
    scores, scales = [], []
    for task, own in zip(tasks, weights, strict=True):
        errors = task.errors @ own
        others = task.folds != task.folds[:, None]
        squares = (others @ errors**2) / others.sum(axis=1)
        scores.append(np.abs(errors) / (np.sqrt(squares) + 1e-9))
        scales.append(math.sqrt(float((errors**2).mean())) + 1e-9)
    return weights, conformal_quantile(np.concatenate(scores), level) * np.array(scales)


def conformal_quantile(scores: Array, level: float) -> float:
    """Score of rank ceil((n + 1) level), or the largest."""
    rank = min(math.ceil((len(scores) + 1) * level), len(scores))
    return float(np.sort(scores)[rank - 1])


def damped_trends(
    curves: list[tuple[Array, Array, float]], level: float
) -> list[tuple[float, float]]:
    """Forecast each task's final value from the run's own past, with half its interval.

    The recent trend in log tokens is extrapolated at half its slope (Gardner and McKenzie 1985,
    "Forecasting trends in time series"), shrunk by its signal-to-noise ratio; a task without a
    visible trend is forecast at its recent mean. The interval is split-conformal over forecasts
    with a similar horizon within the run's past. Exchangeability of past and future is approximate:
    on Pythia, coverage of the 90 % intervals is 84 to 97 %.

    `curves` are log shares of the training [points], values [points] and the standard error of the
    last value, NaN where unknown.
    """
    now, scores = [], []
    for x, y, stderr in curves:
        noise = stderr
        if not stderr > 0:
            noise = float(np.abs(np.diff(y, 2)).mean() / 2) if len(y) > 2 else 0.0
        now.append(_extrapolate(x, y, -x[-1], noise))
        scores += _past_scores(x, y, noise)
    radius = float(stats.norm.ppf((1 + level) / 2)) * math.sqrt(2.0)
    if len(scores) >= _MIN_SCORES:
        radius = conformal_quantile(np.array(scores), level)
    return [(value, radius * scale) for value, scale in now]


def _extrapolate(x: Array, y: Array, ahead: float, noise: float) -> tuple[float, float]:
    """Value at `x[-1] + ahead`, and its expected error."""
    # Fit a window as long, in log tokens, as the horizon.
    count = min(max(int((x >= x[-1] - ahead).sum()), RECENT), len(x))
    line = line_fit(x[-count:], y[-count:])
    if line is None:
        return float(y[-1]), math.sqrt(2) * noise + 1e-9
    spread = float(((x[-count:] - line.center[0]) ** 2).sum())
    # Positive-part James-Stein: a slope within the noise is shrunk to 0.
    signal = max(0.0, 1 - noise**2 / spread / line.slope**2) if line.slope else 0.0
    value = signal * y[-1] + (1 - signal) * y[-min(count, RECENT) :].mean()
    change = _DAMPING * line.slope * ahead
    return float(value + signal * change), math.sqrt(2 * noise**2 + change**2) + 1e-9


def _past_scores(x: Array, y: Array, noise: float) -> list[float]:
    """|error| / expected error of forecasts from earlier checkpoints of the same curve."""
    ahead, scores = -x[-1], []
    for count in range(1, len(x)):
        horizons = x[count:] - x[count - 1]
        at = int(np.abs(horizons - ahead).argmin())
        if horizons[at] >= ahead / 2:
            value, scale = _extrapolate(x[:count], y[:count], float(horizons[at]), noise)
            scores.append(abs(value - y[count + at]) / scale)
    return scores
