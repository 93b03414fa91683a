"""Methods to forecast a run's final values: from finished runs, or from its own past alone.

From finished runs: kriging over model size and time with two kernels, for tasks that are mostly
noise and for those that grow. A forecast is their convex combination (Bates and Granger 1969, "The
combination of forecasts"), with the weights of least squared error in cross-validation on the
finished runs: each size is left out in turn, or each run where one of the size to forecast is
finished; beyond all finished sizes only those on the near side are used. Where there are too few
for that, it is the kernel of growth alone.

Kriging models the values of a task as a Gaussian process over (log parameters, log share of the
training) with an unknown constant mean and observation noise. The covariance of two runs is

    course k(t, t') + (size + drift k(t, t')) (range - |s - s'| - |d - d'|)
                    + (trend + trend_drift k(t, t')) s s' + run [same run]

where k = exp(-(t - t')^2 / 2 l^2), s is log parameters and d the log tokens of the whole run: what
all runs have in common, what they share the more the closer they are in size and tokens, what grows
in proportion to log parameters, and what is a run's own. The prediction is the best linear unbiased
one from the run's recent values and all points of the finished runs (Cressie 1993, "Statistics for
Spatial Data", section 3.2). To its variance comes one that grows as a power of the distance in size
(a power variogram, ibid. section 2.3.1), as the squared differences between the finished runs'
gains do; cross-validation scales the sum.
"""

from __future__ import annotations

import collections
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

from jaxllm.analysis.curves import Array
from jaxllm.analysis.stats import line_fit

RECENT = 3  # number of last values that the methods use
SAME_SIZE = math.log1p(0.10)  # difference in log parameters below which two runs are of one size
# Minimum number of past errors for a conformal quantile; with fewer the interval is normal.
_MIN_SCORES = 20
_MIN_FOLDS = 3  # fewest sizes, or runs of one size, to learn weights on
# Weight of a benchmark's mean error moments, in finished runs of the task itself.
_BENCHMARK_RUNS = 10.0
_DAMPING = 0.75  # power of the tokens by which a run's own trend falls
_SAMPLED = 10.0  # weight of a known standard error, in points
_STRANGE = 0.5  # share of a gain that differs in models of e times the parameters
_VARIOGRAM = 1.1  # power of the distance in log parameters by which that variance grows
_NUGGET = math.log(2)  # distance that runs of one size are apart, where none tells how they differ


class Kernel(NamedTuple):
    """Covariance terms in units of the noise variance, and length scale `time` in log tokens."""

    course: float
    size: float
    drift: float
    run: float
    time: float
    trend: float = 0.0
    trend_drift: float = 0.0


# For tasks that are mostly noise, whose best forecast is a mean, and for tasks with little: nearly
# straight in log tokens, and with gains in proportion to log parameters.
KERNELS = (
    Kernel(course=30.0, size=0.3, drift=0.2, run=0.0, time=1.0),
    Kernel(course=1e3, size=1e3, drift=4.0, run=10.0, time=4.0, trend=100.0, trend_drift=10.0),
)
_PRIOR = np.array([0.0, 1.0])  # weights without cross-validation


class Design(NamedTuple):
    """Both forecasts, linear in the points: recent own ones, then those of the finished runs."""

    weights: Array  # [2, points]
    variances: Array  # [kernels, 2, 2] of the errors, in units of the noise variance
    distance: float  # in log parameters, to the nearest finished run

    def stderr(self, weights: Array, spread: Spread, crossed: Sequence[Array] = ()) -> Array:
        """Standard error [tasks] of the combinations `weights` [tasks, 2].

        The scale, and weights between their bounds, fit the errors of `crossed` folds better than
        new ones, by 1 / n each (Akaike 1969). Errors of a fold count for fewer, as they correlate
        (Kish 1965, 5.4), at an assumed 1/2: 2 / n is 1 / folds + 1 / runs.
        """
        runs, fitted = sum(errors.shape[1] for errors in crossed), 1 + weights.all(axis=1)
        variance = np.einsum("tk,kmn,tm,tn->t", spread.noise, self.variances, weights, weights)
        again = 1 + fitted * (1 / len(crossed) + 1 / runs) / 2 if runs else 1.0
        variance = np.maximum(variance, 0) * again + spread.growth * self.distance**_VARIOGRAM
        return np.sqrt(variance) + 1e-9


class Spread(NamedTuple):
    """What the errors of a task come from."""

    noise: Array  # [tasks, kernels] noise variance under each kernel, times the kernel's share
    growth: Array  # [tasks] variance of the gain to come at a distance of 1 in log parameters


def _fields(own: Array, early: int, models: Array, times: Array) -> tuple[Array, Array]:
    """Covariances and kriging systems of every kernel [kernels, points + 1, points + 1].

    The points are those of a run of the model `own` [2] at the first `early` of `times`, and of
    the finished runs of the `models` [runs, 2]; the last is the prediction target.
    """
    moments, end = np.log(times), np.zeros(1)
    t = np.concatenate([moments[:early], np.tile(moments, len(models)), end])
    run = np.concatenate([np.full(early, -1), np.repeat(np.arange(len(models)), len(times)), [-1]])
    s, d = np.vstack([models, own])[run].T
    apart, longer, centered = np.abs(s[:, None] - s), np.abs(d[:, None] - d), s - s.mean()
    nearness = max(float(apart.max()), 1.0) + longer.max() - apart - longer
    same_run = run[:, None] == run
    since, linear, count = (t[:, None] - t) ** 2, np.outer(centered, centered), len(t) - 1
    fields = np.empty((len(KERNELS), count + 1, count + 1))
    for field, kernel in zip(fields, KERNELS, strict=True):
        course = np.exp(-since / (2 * kernel.time**2))
        field[:] = kernel.course * course + (kernel.size + kernel.drift * course) * nearness
        field += (kernel.trend + kernel.trend_drift * course) * linear
        field += kernel.run * same_run + np.eye(count + 1)
    systems = fields.copy()
    # The border of ones constrains the weights to sum to 1 (unknown constant mean).
    systems[:, count], systems[:, :, count] = 1.0, 1.0
    systems[:, count, count] = 0.0
    return fields, systems


def design(own: Array, early: int, models: Array, times: Array) -> Design:
    """The forecasts of a run of the model `own`; see `_fields`."""
    fields, systems = _fields(own, early, models, times)
    count = systems.shape[1] - 1
    targets = fields[:, count].copy()
    targets[:, count] = 1.0
    weights = np.empty((len(KERNELS), count + 1))
    weights[:, :count] = np.linalg.solve(systems, targets[:, :, None])[:, :count, 0]
    weights[:, count] = -1.0  # minus the truth
    distance = float(np.abs(models - own)[:, 0].min())
    return Design(weights[:, :count], weights @ fields @ weights.T, distance)


class Batch(NamedTuple):
    """Targets of one model on one grid of times, with the same finished runs for every task.

    A model is its log parameters and the log tokens of its whole run.
    """

    own: Array  # [targets, early] recent values
    task: np.ndarray  # [targets] index of the target's task
    model: Array  # [2] of the targets
    finished: Array  # [tasks, runs, times] values of the finished runs
    models: Array  # [runs, 2] of the finished runs
    times: Array  # [times] shares of the training, ascending to 1
    benchmarks: np.ndarray  # [tasks] the tasks of a benchmark share weights and interval factors


def forecast_batches(batches: list[Batch], level: float) -> list[tuple[Array, Array]]:
    """Final value and half interval [targets] of every target of every batch.

    The half interval is the standard error times the conformal quantile (Lei et al. 2018,
    "Distribution-free predictive inference for regression", section 2.2) of the benchmark's
    cross-validation errors, each over its standard error; normal, and 30 % wider, where there are
    too few.
    """
    crossed = [_cross_validation(batch) for batch in batches]
    learned, scores = [], collections.defaultdict(list)
    for batch, folds, own in zip(batches, crossed, _weights(batches, crossed), strict=True):
        spread = _spread(batch, own)
        scale, own_scores = _scores(batch, folds, own, spread)
        learned.append((batch, folds, own, spread, scale))
        for name, each in zip(batch.benchmarks, own_scores, strict=True):
            scores[name].append(each)
    joined = {name: np.concatenate(parts) for name, parts in scores.items()}
    every = np.concatenate([np.empty(0), *joined.values()])
    radius = dict.fromkeys(joined, 1.3 * float(stats.norm.ppf((1 + level) / 2)))
    for name, known in joined.items():
        known = known if len(known) >= _MIN_SCORES else every
        if len(known) >= _MIN_SCORES:
            radius[name] = conformal_quantile(known, level)
    result = []
    for batch, folds, own, spread, scale in learned:
        final = design(batch.model, batch.own.shape[1], batch.models, batch.times)
        if not folds:
            final = final._replace(distance=max(final.distance, _NUGGET))
        others = batch.finished.reshape(len(own), -1)[batch.task]
        points = np.concatenate([batch.own, others], axis=1)
        value = np.einsum("np,mp,nm->n", points, final.weights, own[batch.task])
        factor = np.array([radius[name] for name in batch.benchmarks]) * scale
        half = factor * final.stderr(own, spread, [errors for _, errors in folds])
        result.append((value, half[batch.task]))
    return result


def _scores(
    batch: Batch, folds: list[tuple[Design, Array]], weights: Array, spread: Spread
) -> tuple[Array, Array]:
    """Scale [tasks] of the standard errors, and scores [tasks, runs] of the errors in these units.

    The scale is the root mean square of the task's errors, in standard errors, and its benchmark's;
    for a score, of those from the other folds.
    """
    errors = [
        np.einsum("trm,tm->tr", errors, weights) / fold.stderr(weights, spread)[:, None]
        for fold, errors in folds
    ]
    if not errors:
        return np.ones(len(weights)), np.empty((len(weights), 0))
    fold = np.repeat(np.arange(len(errors)), [part.shape[1] for part in errors])
    joined = np.concatenate(errors, axis=1)
    own = joined**2
    prior = _BENCHMARK_RUNS * _pooled(own.mean(axis=1), batch.benchmarks)[:, None]
    scale = np.sqrt((prior[:, 0] + own.sum(axis=1)) / (_BENCHMARK_RUNS + own.shape[1])) + 1e-9
    rest = (fold[:, None] != fold).astype(float)
    without = np.sqrt((prior + own @ rest) / (_BENCHMARK_RUNS + rest.sum(axis=0))) + 1e-9
    return scale, np.abs(joined) / without


def _cross_validation(batch: Batch) -> list[tuple[Design, Array]]:
    """For every fold the forecasts, and their errors [tasks, runs held out, 2]."""
    sizes = batch.models[:, 0]
    ahead, apart = sizes[:, None] - sizes, batch.model[0] - sizes  # of the others
    side, twin = np.sign(apart), np.abs(apart).min() < SAME_SIZE
    # Beyond all finished sizes the forecast extrapolates, and so do the folds.
    ahead = ahead * side[0] if np.ptp(side) == 0 and not twin else np.abs(ahead)
    runs, early = np.arange(len(sizes)), batch.own.shape[1]
    # Runs of as many tokens share a forecast, and all runs of a size are of one fold.
    groups: dict[tuple[float, ...], dict[float, list[int]]] = {}
    for run in runs:
        known = runs != run if twin else ahead[run] >= SAME_SIZE
        if known.any() and not (twin and ahead[run][known].min() >= SAME_SIZE):
            size, tokens = batch.models[run].round(2)
            fold = groups.setdefault((size, *np.flatnonzero(known)), {})
            fold.setdefault(tokens, []).append(int(run))
    folds = []
    for (_, *known_runs), held_out in groups.items():
        rest = np.array(known_runs, int)
        values = batch.finished[:, rest].reshape(len(batch.finished), -1)
        variances, errors = [], []
        for own in held_out.values():  # runs of one length
            model = batch.models[own].mean(axis=0)
            forecasts = design(model, early, batch.models[rest], batch.times)
            off = (values @ forecasts.weights[:, early:].T)[:, None] - batch.finished[:, own, -1:]
            errors.append(off + batch.finished[:, own, :early] @ forecasts.weights[:, :early].T)
            variances += [forecasts.variances] * len(own)
        fold_design = forecasts._replace(variances=np.mean(variances, axis=0))
        folds.append((fold_design, np.concatenate(errors, axis=1)))
    return folds


def _weights(batches: list[Batch], crossed: list[list[tuple[Design, Array]]]) -> list[Array]:
    """Weights [tasks, 2] for every batch.

    They minimise a mean of the benchmark's error moments (tasks equally weighted) and the task's
    own, which count the more, the more finished runs the task has.
    """
    moments, runs = [], []
    for batch, folds in zip(batches, crossed, strict=True):
        start = np.full((len(batch.finished), 2, 2), 0.0 if len(folds) >= _MIN_FOLDS else np.nan)
        moments.append(sum((np.einsum("trm,trn->tmn", e, e) for _, e in folds), start))
        runs.append(np.full(len(batch.finished), len(batch.models)))
    joined, count = np.concatenate(moments), np.concatenate(runs)[:, None, None]
    joined /= np.maximum(np.trace(joined, axis1=1, axis2=2), 1e-12)[:, None, None]
    names = np.concatenate([batch.benchmarks for batch in batches])
    for name in np.unique(names):
        members = (names == name) & np.isfinite(joined[:, 0, 0])
        own = count[members] / (count[members] + _BENCHMARK_RUNS)
        if members.any():
            joined[members] = own * joined[members] + (1 - own) * joined[members].mean(axis=0)
    return np.split(
        convex_weights(joined), np.cumsum([len(batch.finished) for batch in batches])[:-1]
    )


def _spread(batch: Batch, weights: Array) -> Spread:
    """Noise by restricted maximum likelihood, and growth by the differences of the runs' gains.

    The kernels' shares are their weights in the forecast, and a tenth of the prior. Where all
    finished runs are of one size, `_STRANGE` of their gain is assumed to differ.
    """
    points = batch.finished.reshape(len(batch.finished), -1)
    _, systems = _fields(batch.model, 0, batch.models, batch.times)
    precision = np.linalg.inv(systems)[:, :-1, :-1]
    squares = np.einsum("ti,kij,tj->tk", points, precision, points, optimize=True)
    noise = 0.9 * weights + 0.1 * _PRIOR
    noise *= np.maximum(squares, 0) / (points.shape[1] - 1)
    gains = batch.finished[:, :, -1] - batch.finished[:, :, batch.own.shape[1] - 1]
    apart, of_point = np.abs(batch.models[:, None, 0] - batch.models[:, 0]), noise.sum(axis=1)
    if apart.max() < SAME_SIZE:
        growth = _STRANGE**2 * (gains.mean(axis=1) ** 2 - 2 * of_point / gains.shape[1])
    else:
        pairs = apart >= SAME_SIZE
        differ = ((gains[:, :, None] - gains[:, None]) ** 2)[:, pairs].mean(axis=1)
        growth = (differ - 4 * of_point) / (apart[pairs] ** _VARIOGRAM).mean()
    growth = (growth + _pooled(growth, batch.benchmarks)) / 2
    return Spread(noise, np.maximum(growth, 0.0))


def _pooled(values: Array, benchmarks: np.ndarray) -> Array:
    """For every task the mean of its benchmark's `values` [tasks]."""
    of = np.unique(benchmarks, return_inverse=True)[1]
    return np.asarray((np.bincount(of, values) / np.bincount(of))[of])


def convex_weights(errors: Array) -> Array:
    """Weights [tasks, 2] >= 0 of sum 1 with the least mean squared error; `_PRIOR` where it is NaN.

    `errors` are the second moments [tasks, 2, 2] of the errors of two forecasts.
    """
    own, other, both = errors[:, 0, 0], errors[:, 1, 1], errors[:, 0, 1]
    first = np.clip((other - both) / np.maximum(own + other - 2 * both, 1e-12), 0.0, 1.0)
    return np.where(np.isfinite(first)[:, None], np.column_stack([first, 1 - first]), _PRIOR)


def conformal_quantile(scores: Array, level: float) -> float:
    """Score of rank ceil((n + 1) level), or the largest."""
    rank = min(math.ceil((len(scores) + 1) * level), len(scores))
    return float(np.sort(scores)[rank - 1])


def damped_trends(
    curves: list[tuple[Array, Array, float]], level: float
) -> list[tuple[float, float]]:
    """Forecast each task's final value from the run's own past, with half its interval.

    The recent trend in log tokens, shrunk by its signal-to-noise ratio, goes on with a slope that
    falls as a power of the tokens (a damped trend: Gardner and McKenzie 1985, "Forecasting trends
    in time series"). The interval is split-conformal over forecasts with a similar horizon in the
    past, at least the normal one. `curves` are log shares of the training [points], values [points]
    and the standard error of the last, NaN where unknown.
    """
    now, scores = [], []
    for x, y, stderr in curves:
        noise = _noise(x, y, stderr)
        now.append(_extrapolate(x, y, -x[-1], noise))
        scores += _past_scores(x, y, noise)
    normal = float(stats.norm.ppf((1 + level) / 2))
    radius = normal * math.sqrt(2.0)
    if len(scores) >= _MIN_SCORES:
        # The past knows nothing of a decay of the learning rate that is still to come.
        radius = max(conformal_quantile(np.array(scores), level), normal)
    return [(value, radius * scale) for value, scale in now]


def _window(x: Array, ahead: float) -> int:
    """Number of last points that are as long ago, in log tokens, as the horizon is `ahead`."""
    return min(max(int((x >= x[-1] - ahead).sum()), RECENT), len(x))


def _noise(x: Array, y: Array, stderr: float) -> float:
    """Standard error of the last values: of sampling, pooled with the scatter of the window.

    The scatter is about the line through each point's neighbours (Gasser et al. 1986, "Residual
    variance and residual pattern in nonlinear regression"): some models' scores scatter more than
    samples do.
    """
    count = _window(x, -x[-1])
    x, y = x[-count:], y[-count:]
    before = np.diff(x)[1:] / (x[2:] - x[:-2])
    off = before * y[:-2] + (1 - before) * y[2:] - y[1:-1]
    squares = float((off**2 / (1 + before**2 + (1 - before) ** 2)).sum())
    if stderr > 0:
        return math.sqrt((squares + _SAMPLED * stderr**2) / (len(off) + _SAMPLED))
    return math.sqrt(squares / max(len(off), 1))


def _extrapolate(x: Array, y: Array, ahead: float, noise: float) -> tuple[float, float]:
    """Value at `x[-1] + ahead`, and its expected error."""
    count = _window(x, ahead)
    line = line_fit(x[-count:], y[-count:])
    if line is None:
        # One point has no trend: any is admitted that is no steeper than in proportion to tokens.
        return float(y[-1]), math.hypot(math.sqrt(2) * noise, ahead)
    spread = float(((x[-count:] - line.center[0]) ** 2).sum())
    # Positive-part James-Stein: a slope within the noise is shrunk to 0.
    signal = max(0.0, 1 - noise**2 / spread / line.slope**2) if line.slope else 0.0
    value = signal * y[-1] + (1 - signal) * y[-min(count, RECENT) :].mean()
    change = -math.expm1(-_DAMPING * ahead) / _DAMPING * line.slope
    return float(value + signal * change), math.sqrt(2 * noise**2 + change**2) + 1e-9


def _past_scores(x: Array, y: Array, noise: float) -> list[float]:
    """|error| / expected error of forecasts from earlier checkpoints of the same curve."""
    ahead, scores = -x[-1], []
    for count in range(2, len(x)):
        horizons = x[count:] - x[count - 1]
        at = int(np.abs(horizons - ahead).argmin())
        if horizons[at] >= ahead / 2:
            value, scale = _extrapolate(x[:count], y[:count], float(horizons[at]), noise)
            scores.append(abs(value - y[count + at]) / scale)
    return scores
