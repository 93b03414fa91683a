"""The loss under any learning-rate schedule, from loss curves of one model: what if annealed now?

    L(t) = L0 + A S(t)^-alpha - B sum_k (eta_{k-1} - eta_k) G_k(t)

S(t) is the sum of the learning rates eta until update t; the sum runs over the updates after the
peak. The four-parameter law has G = 1: a decay gives all that it gives at once. The multi-power law
(Luo et al. 2025, arXiv 2503.12811, equation 6) lets it come with the updates after the decay,
G_k = 1 - (1 + C eta_k^-gamma S_k(t))^-beta, S_k the sum of the rates from k on. beta and gamma are
held at 1/2, where the published fit starts: few curves do not tell them, and free they cost more on
longer horizons than they gain. Coefficients belong to one model, data, batch, optimizer and peak.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence

import numpy as np
from scipy import optimize, special

from jaxllm.analysis.scaling.fit import resamples
from jaxllm.analysis.stats import Array
from jaxllm.errors import UserError

LEVEL = 0.9
LEAST_DECAY = 0.3  # share of the peak by which a rate has to fall for a law to be fitted
_CONSTANT = 0.05  # the same, up to which it counts as constant
_DELTA = 1e-3  # of the Huber loss of log residuals, as published
_DRAWS, _REWEIGHTED = 100, 10
_SHARES = (1.0, 0.5, 0.25, 0.0)  # of a step of the linearized law that are tried
_MOST_POINTS = 100  # of a curve: means of neighbouring ones
_BLOCKS = 12  # of a curve, drawn together
_HELD_OUT = 1 / 3  # share of the steps that chooses the form
_FEWEST = 10  # points that it is chosen by a fit to
_MISSED = 1.25  # standard deviation of a normal distribution over its mean deviation
_TOP = 0.999  # of the largest rate, from which the warm-up is over
_LOWEST_RATE = 0.01  # of the peak; eta^-1/2 has no value at 0
_FORMS = (4, 5)  # by their number of parameters: L0, A, alpha, B and log C
# A decay gives 30 % of what it does within 1 / C updates at the peak: 1 to 200.
_LOW, _HIGH = (0.0, 0.0, 0.01, 0.0, -math.log(200)), (20.0, 20.0, 3.0, 20.0, 0.0)


@dataclasses.dataclass(frozen=True)
class LossCurve:
    """The loss of one run: `losses` [n] after `steps` [n] updates, of given `rates`, from 1 on."""

    rates: Array
    steps: Array
    losses: Array


@dataclasses.dataclass(frozen=True)
class ScheduleLaw:
    """A fitted law."""

    parameters: Array  # L0, A, alpha, B (of the whole peak), and log C of the multi-power law
    peak: float  # learning rate that others are relative to
    horizon: float  # sum of the relative rates of the longest curve, the unit of S
    last_step: float  # of the longest curve
    lowest_rate: float  # the lowest rate after the peak that was seen
    # Mean |log residual| of the blocks of points in the last third of the steps, of each form
    # fitted without it, by its number of parameters.
    held_out: dict[int, float]
    draws: tuple[Array, ...]  # parameters of bootstrap samples, of every form that may be right
    noise: Array  # mean log residual of each block of points
    curves: int  # number of curves

    def predict(self, rates: Array, steps: Array) -> Array:
        """Loss after each of `steps` updates of a schedule of `rates`."""
        return np.exp(_Inputs.of(rates, steps, self.peak, self.horizon).log_loss(self.parameters))

    def interval(self, rates: Array, steps: Array) -> tuple[Array, Array]:
        """Ends of the interval of the loss at `LEVEL`.

        It covers the fit (bootstrap of blocks), the form (draws of all that may be right), the
        level of a stretch of the curve (residuals of blocks), and what the law missed by on the
        last third of the steps: once more for each factor of 1.5 in steps beyond the longest curve,
        at most once more before its end; by Student's t, since a few curves are few samples.
        """
        inputs = _Inputs.of(rates, steps, self.peak, self.horizon)
        beyond = np.log(np.asarray(steps) / self.last_step) / -math.log(1 - _HELD_OUT)
        missed = _MISSED * self.held_out[len(self.parameters)]
        spread = missed * (1 + np.maximum(beyond, np.minimum(-beyond, 1.0)))
        rng = np.random.default_rng(0)
        paths = [
            inputs.log_loss(p) + rng.choice(self.noise) + rng.standard_t(1 + self.curves) * spread
            for p in self.draws
        ]
        low, high = np.quantile(np.exp(paths), [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0)
        value = np.exp(inputs.log_loss(self.parameters))
        return np.minimum(low, value), np.maximum(high, value)


def fit(curves: Sequence[LossCurve]) -> ScheduleLaw:
    """Fit the law to curves of one model; a run and its branches are a curve each.

    The form is the one that, fitted to the first two thirds of the steps, predicts the last third
    best; where nothing decays before, the multi-power law. UserError if no curve goes on after its
    rate fell by `LEAST_DECAY` of the peak.
    """
    curves = [thin for thin in map(_thinned, curves) if len(thin.steps)]
    peak = max((float(curve.rates.max()) for curve in curves), default=0.0)
    if not peak > 0:
        raise UserError("no loss was logged with its learning rate after the warm-up")
    horizon = max(float(curve.rates.sum()) for curve in curves) / peak
    inputs = _Inputs.joined([_Inputs.of(c.rates, c.steps, peak, horizon) for c in curves])
    target = np.log(np.concatenate([curve.losses for curve in curves]))
    steps = np.concatenate([curve.steps for curve in curves])
    fallen = np.concatenate([1 - c.rates[c.steps - 1] / peak for c in curves])
    if not _decays(fallen):
        raise UserError(
            f"no curve goes on after its learning rate fell by {LEAST_DECAY:.0%} of the peak, so "
            "that what a decay gives is unknown"
        )
    block = np.concatenate(
        [i * _BLOCKS + np.arange(len(c.steps)) * _BLOCKS // len(c.steps)
         for i, c in enumerate(curves)]
    )  # fmt: skip

    def noise(p: Array, rows: np.ndarray) -> Array:
        residual, count = (target - inputs.log_loss(p))[rows], np.bincount(block[rows])
        return np.bincount(block[rows], residual)[count > 0] / count[count > 0]

    best = {form: _fitted(form, inputs, target) for form in _FORMS}
    early = steps <= (1 - _HELD_OUT) * steps.max()
    told, every = _decays(fallen[early]), np.full(len(steps), True)
    late, held_out = ~early & (told | (fallen < _CONSTANT)), {}
    for form in _FORMS:
        if early.sum() >= _FEWEST and late.any():
            found = _fitted(form, inputs.at(early), target[early])
            held_out[form] = float(np.abs(noise(found, late)).mean())
        else:  # the residuals of the fit itself are the next best
            held_out[form] = float(np.abs(noise(best[form], every)).mean())
    chosen = min(held_out, key=held_out.__getitem__) if told else _FORMS[-1]
    return ScheduleLaw(
        best[chosen], peak, horizon, float(steps.max()), peak * (1 - float(fallen.max())), held_out,
        draws=tuple(
            p for one in best.values() for p in _bootstrap(one, inputs, target, block)
        ),
        noise=noise(best[chosen], every),
        curves=len(curves),
    )  # fmt: skip


def _decays(fallen: Array) -> bool:
    return int((fallen >= LEAST_DECAY).sum()) >= 3


def _thinned(curve: LossCurve) -> LossCurve:
    """Means of neighbouring points after the warm-up, `_MOST_POINTS` at most."""
    rates, steps = np.asarray(curve.rates, float), np.asarray(curve.steps)
    warm = steps > np.argmax(rates >= _TOP * rates.max())
    rows = np.flatnonzero(warm & np.isfinite(curve.losses) & (steps <= len(rates)))
    parts = np.array_split(rows, min(len(rows), _MOST_POINTS)) if len(rows) else []
    at = np.array([round(float(steps[part].mean())) for part in parts], int)
    return LossCurve(rates, at, np.array([float(np.mean(curve.losses[part])) for part in parts]))


@dataclasses.dataclass(frozen=True)
class _Inputs:
    """What the law takes of a schedule at n points, with its decay in K blocks of updates."""

    area: Array  # [n] S
    gap: Array  # [n, K] fall of the rate in the blocks before the point
    since: Array  # [n, K] eta_k^-1/2 S_k, in updates at the peak

    @classmethod
    def of(cls, rates: Array, steps: Array, peak: float, horizon: float) -> _Inputs:
        """Inputs of a schedule; no block has a point inside."""
        rates, at = np.asarray(rates, float) / peak, np.asarray(steps, int)
        area = np.concatenate([[0.0], np.cumsum(rates)]) / horizon
        top, last = int(np.argmax(rates >= _TOP * rates.max())), int(at.max(initial=0))
        later = np.arange(top + 1, last)  # numbers of updates from 0
        gap = rates[later - 1] - rates[later]
        later, gap = later[gap != 0], gap[gap != 0]
        even = np.linspace(top, last, _MOST_POINTS).astype(int)
        ends = np.unique(np.concatenate([at, even]))
        block, weight = np.searchsorted(ends, later, side="right"), np.abs(gap)
        blocks, member = np.unique(block, return_inverse=True)
        total = np.bincount(member, weight)
        begun = np.bincount(member, weight * area[later]) / total
        rate = np.maximum(np.bincount(member, weight * rates[later]) / total, _LOWEST_RATE)
        seen = at[:, None] >= ends[blocks] if len(blocks) else np.zeros((len(at), 0), bool)
        since = horizon * np.maximum(area[at][:, None] - begun, 0.0) / np.sqrt(rate)
        return cls(area[at], seen * np.bincount(member, gap), seen * since)

    @classmethod
    def joined(cls, parts: Sequence[_Inputs]) -> _Inputs:
        """Points of several schedules, their blocks padded with no fall."""
        width = max(part.gap.shape[1] for part in parts)

        def padded(one: Array) -> Array:
            return np.pad(one, ((0, 0), (0, width - one.shape[1])))

        return cls(
            np.concatenate([part.area for part in parts]),
            np.concatenate([padded(part.gap) for part in parts]),
            np.concatenate([padded(part.since) for part in parts]),
        )

    def at(self, rows: Array) -> _Inputs:
        """Some of the points."""
        return _Inputs(self.area[rows], self.gap[rows], self.since[rows])

    def log_loss(self, p: Array) -> Array:
        """[n], with the loss at least a thousandth."""
        return np.log(np.maximum(p[0] + p[1] * self.area ** -p[2] - p[3] * self.fall(p), 1e-3))

    def fall(self, p: Array) -> Array:
        """[n] The sum over the decay, without B."""
        given = 1 - (1 + np.exp(p[4]) * self.since) ** -0.5 if len(p) > 4 else 1.0
        return np.asarray((self.gap * given).sum(axis=1))

    def jacobian(self, p: Array) -> Array:
        """[n, P] Derivatives of `log_loss`."""
        power = self.area ** -p[2]
        columns = [np.ones_like(power), power, -p[1] * power * np.log(self.area), -self.fall(p)]
        if len(p) > 4:
            reach = np.exp(p[4]) * self.since
            columns.append(-p[3] * (self.gap * 0.5 * reach * (1 + reach) ** -1.5).sum(axis=1))
        return np.stack(columns, axis=1) / np.exp(self.log_loss(p))[:, None]


def _fitted(form: int, inputs: _Inputs, target: Array) -> Array:
    """[form] Parameters of the least sum of Huber losses of the log residuals, by L-BFGS-B."""
    last = math.exp(float(target.min()))

    def objective(p: Array) -> tuple[float, Array]:
        residual = inputs.log_loss(p) - target
        gradient = np.clip(residual, -_DELTA, _DELTA) @ inputs.jacobian(p)
        return float(special.huber(_DELTA, residual).sum()) / _DELTA**2, gradient / _DELTA**2

    fits = [
        optimize.minimize(
            objective, (0.8 * last, 0.2 * last, alpha, 0.04 * last, -math.log(20))[:form],
            jac=True, method="L-BFGS-B", bounds=list(zip(_LOW, _HIGH, strict=True))[:form],
            options={"maxiter": 1000, "ftol": 1e-10},
        )
        for alpha in (0.3, 0.6)
    ]  # fmt: skip
    return np.asarray(min(fits, key=lambda one: one.fun).x)


def _bootstrap(p: Array, inputs: _Inputs, target: Array, blocks: np.ndarray) -> Iterator[Array]:
    """Parameters refitted to samples of the blocks, along the step of the linearized law."""
    residual, jacobian = inputs.log_loss(p) - target, inputs.jacobian(p)
    for rows in resamples(blocks, _DRAWS, seed=0):
        own, slopes, change = residual[rows], jacobian[rows], np.zeros(len(p))
        for _ in range(_REWEIGHTED):
            weight = np.maximum(np.abs(own + slopes @ change), _DELTA) ** -0.5
            change = np.linalg.lstsq(slopes * weight[:, None], -own * weight, rcond=None)[0]
        yield min(
            (np.clip(p + share * change, _LOW[: len(p)], _HIGH[: len(p)]) for share in _SHARES),
            key=lambda q: special.huber(_DELTA, (inputs.log_loss(q) - target)[rows]).sum(),
        )
