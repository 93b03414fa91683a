"""Methods to forecast a run's final values: from finished runs, or from its own past alone.

From finished runs: kriging over model size and time. The values of a task are a Gaussian process
over log parameters s, log tokens of the whole run d and log share of the training t, with an
unknown constant mean and observation noise. The covariance of two points is

    k (course + drift near + trend s s') + size near + size_trend s s'

where k = exp(-(t - t')^2 / 2 l^2) and near = range - |s - s'| - |d - d'|: what all runs have in
common, what they share the more the closer they are in size and tokens, and what grows in
proportion to log parameters; of each a part that changes with the time. The prediction is the best
linear unbiased one from the run's recent values and all points of the finished runs (Cressie 1993,
"Statistics for Spatial Data", section 3.2). To its variance comes one that grows as a power of the
distance in size (a power variogram, ibid. section 2.3.1), as the squared differences between the
finished runs' gains do. Cross-validation on the finished runs, by size, or by run where one of the
size to forecast is finished, scales the sum.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from scipy import stats

from jaxllm.analysis.curves import Array
from jaxllm.analysis.stats import line_fit

RECENT = 3  # number of last values that the methods use
SAME_SIZE = math.log1p(0.10)  # difference in log parameters below which two runs are of one size
# In units of the noise variance, and the length scale in log tokens.
COURSE, DRIFT, TREND, SIZE, SIZE_TREND, TIME = 1e3, 3.0, 10.0, 3.0, 100.0, 4.0
# Minimum number of past errors for a conformal quantile; with fewer the interval is normal.
_MIN_SCORES = 20
_DAMPING = 0.75  # power of the tokens by which a run's own trend falls
_SAMPLED = 10.0  # weight of a known standard error, in points
_STRANGE = 0.5  # share of a gain that differs in models of e times the parameters
_VARIOGRAM = 1.1  # power of the distance in log parameters by which that variance grows
_NUGGET = math.log(2)  # distance that runs of one size are apart, where none tells how they differ


class Design(NamedTuple):
    """A forecast, linear in the points: recent own ones, then those of the finished runs."""

    weights: Array  # [points]
    variance: float  # of the error, in units of the noise variance
    distance: float  # in log parameters, to the nearest finished run

    def stderr(self, spread: Spread) -> Array:
        """Standard error [targets] of the forecast."""
        growth = spread.growth * self.distance**_VARIOGRAM
        return np.sqrt(spread.noise * self.variance + growth) + 1e-9


class Spread(NamedTuple):
    """What the errors of a forecast come from."""

    noise: Array  # [targets] variance
    growth: Array  # [targets] variance of the gain to come at a distance of 1 in log parameters


def _kriging(own: Array, early: int, models: Array, times: Array) -> tuple[Array, Array]:
    """Covariances and kriging system [points + 1, points + 1].

    The points are those of a run of the model `own` [2] at the first `early` of `times`, and of
    the finished runs of the `models` [runs, 2]; the last is the prediction target.
    """
    moments, end = np.log(times), np.zeros(1)
    t = np.concatenate([moments[:early], np.tile(moments, len(models)), end])
    run = np.concatenate([np.full(early, -1), np.repeat(np.arange(len(models)), len(times)), [-1]])
    of_point = np.vstack([models, own])[run]
    apart = np.abs(of_point[:, None] - of_point).sum(axis=-1)
    centered = of_point[:, 0] - of_point[:, 0].mean()
    near, linear = apart.max() - apart, np.outer(centered, centered)
    course = np.exp(-((t[:, None] - t) ** 2) / (2 * TIME**2))
    covariance = course * (COURSE + DRIFT * near + TREND * linear)
    covariance += SIZE * near + SIZE_TREND * linear + np.eye(len(t))
    system = covariance.copy()
    # The border of ones constrains the weights to sum to 1 (unknown constant mean).
    system[-1], system[:, -1], system[-1, -1] = 1.0, 1.0, 0.0
    return covariance, system


def design(own: Array, early: int, models: Array, times: Array) -> Design:
    """The forecast of a run of the model `own`; see `_kriging`."""
    covariance, system = _kriging(own, early, models, times)
    weights = np.linalg.solve(system, np.append(covariance[:-1, -1], 1.0))[:-1]
    error = np.append(weights, -1.0)  # minus the truth
    distance = float(np.abs(models - own)[:, 0].min())
    return Design(weights, float(error @ covariance @ error), distance)


class Batch(NamedTuple):
    """Targets of one model on one grid of times, with the same finished runs for each.

    A model is its log parameters and the log tokens of its whole run.
    """

    own: Array  # [targets, early] recent values
    model: Array  # [2] of the targets
    finished: Array  # [targets, runs, times] values of the finished runs on the target's task
    models: Array  # [runs, 2] of the finished runs
    times: Array  # [times] shares of the training, ascending to 1


def forecast_batches(batches: list[Batch], level: float) -> list[tuple[Array, Array]]:
    """Final value and half interval [targets] of every target of every batch.

    The half interval is the standard error times the conformal quantile (Lei et al. 2018,
    "Distribution-free predictive inference for regression", section 2.2) of the cross-validation
    errors, each over its standard error; normal, and 30 % wider, where there are too few.
    """
    spreads, crossed = [_spread(batch) for batch in batches], list(map(_cross_validation, batches))
    scores = [
        (np.abs(errors) / fold.stderr(spread)[:, None]).ravel()
        for spread, folds in zip(spreads, crossed, strict=True)
        for _, fold, errors in folds
    ]
    radius = 1.3 * float(stats.norm.ppf((1 + level) / 2))
    if sum(map(len, scores)) >= _MIN_SCORES:
        radius = conformal_quantile(np.concatenate(scores), level)
    result = []
    for batch, spread, folds in zip(batches, spreads, crossed, strict=True):
        final = design(batch.model, batch.own.shape[1], batch.models, batch.times)
        if not folds:
            final = final._replace(distance=max(final.distance, _NUGGET))
        else:
            # The radius fits the errors of n runs better than new ones, by 1 / n (Akaike 1969).
            # Those of a size count for fewer, as they correlate (Kish 1965, 5.4), at about 1/2.
            sizes = len({known for known, *_ in folds})
            runs = sum(errors.shape[1] for *_, errors in folds)
            final = final._replace(variance=final.variance * (1 + (1 / sizes + 1 / runs) / 2))
        others = batch.finished.reshape(len(batch.finished), -1)
        value = np.concatenate([batch.own, others], axis=1) @ final.weights
        result.append((value, radius * final.stderr(spread)))
    return result


def _cross_validation(batch: Batch) -> list[tuple[tuple[Any, ...], Design, Array]]:
    """For every fold the runs left, the forecast, and its errors [targets, runs held out]."""
    sizes, early = batch.models[:, 0], batch.own.shape[1]
    apart = np.abs(sizes[:, None] - sizes)
    twin = np.abs(batch.model[0] - sizes).min() < SAME_SIZE
    # Runs of one model share a forecast.
    groups: dict[tuple[tuple[Any, ...], tuple[Any, ...]], list[int]] = {}
    for run in range(len(sizes)):
        known = np.arange(len(sizes)) != run if twin else apart[run] >= SAME_SIZE
        if known.any() and not (twin and apart[run][known].min() >= SAME_SIZE):
            key = tuple(np.flatnonzero(known)), tuple(batch.models[run].round(2))
            groups.setdefault(key, []).append(run)
    folds = []
    for (left, _), held_out in groups.items():
        rest = np.array(left)
        fold = design(batch.models[held_out].mean(axis=0), early, batch.models[rest], batch.times)
        others = batch.finished[:, rest].reshape(len(batch.finished), -1)
        made = batch.finished[:, held_out, :early] @ fold.weights[:early]
        made += (others @ fold.weights[early:])[:, None]
        folds.append((left, fold, made - batch.finished[:, held_out, -1]))
    return folds


def _spread(batch: Batch) -> Spread:
    """Noise by restricted maximum likelihood, and growth by the differences of the runs' gains,
    halfway to the mean of the targets.

    Where all finished runs are of one size, `_STRANGE` of their gain is assumed to differ.
    """
    points = batch.finished.reshape(len(batch.finished), -1)
    _, system = _kriging(batch.model, 0, batch.models, batch.times)
    precision = np.linalg.inv(system)[:-1, :-1]
    noise = np.maximum(np.einsum("ti,ij,tj->t", points, precision, points, optimize=True), 0)
    noise /= points.shape[1] - 1
    gains = batch.finished[:, :, -1] - batch.finished[:, :, batch.own.shape[1] - 1]
    apart = np.abs(batch.models[:, None, 0] - batch.models[:, 0])
    if apart.max() < SAME_SIZE:
        growth = _STRANGE**2 * (gains.mean(axis=1) ** 2 - 2 * noise / gains.shape[1])
    else:
        pairs = apart >= SAME_SIZE
        differ = ((gains[:, :, None] - gains[:, None]) ** 2)[:, pairs].mean(axis=1)
        growth = (differ - 4 * noise) / (apart[pairs] ** _VARIOGRAM).mean()
    return Spread(noise, np.maximum((growth + growth.mean()) / 2, 0.0))


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
