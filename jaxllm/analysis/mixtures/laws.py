"""Laws from the mixture to a target, one interface for all, fitted with several weightings of the
runs at once: with all, with each fold of a cross-validation left out, for each draw of a bootstrap.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from jaxllm.analysis.curves import Array
from jaxllm.analysis.mixtures.solver import Model, levenberg_marquardt
from jaxllm.errors import UserError

# (mixtures [m, k], count) -> values [count, m] by the first weightings; None is all of them.
Predict = Callable[[Array, int | None], Array]
_EPSILON = 0.005  # of log shares: log(share + ε), which ranks RegMix' swarm best (0.001 to 0.005)
_RIDGES = np.geomspace(1e-6, 1e3, 19)
_ROBUST = 0.1  # of a standard deviation: larger residuals count by their size, not its square
_LENGTHS = np.geomspace(2.0, 30.0, 6)
_NUGGETS = np.geomspace(1e-5, 10.0, 13)
_STRETCH = 8.0  # of the power law's prediction among the kernel's coordinates
_ROOT = 0.25  # of shares: the first per mille of a domain matters, as in a logarithm


@dataclasses.dataclass(frozen=True)
class Law:
    """A kind of function of the mixture."""

    # (shares [n, k], values [n], weights [B, n]); row 0 weights all runs by 1.
    fit: Callable[[Array, Array, Array], Predict]
    parameters: Callable[[int], int]  # of a number of domains, which the mixtures must outnumber


def linear(shares: Array, values: Array, weights: Array) -> Predict:
    """Ridge regression on the shares (RegMix' linear row)."""
    return _ridge(lambda x: x, shares, values, weights)


def log_linear(shares: Array, values: Array, weights: Array) -> Predict:
    """Ridge regression on the shares and their logarithms."""
    return _ridge(lambda x: np.hstack([x, np.log(x + _EPSILON)]), shares, values, weights)


def _ridge(
    features: Callable[[Array], Array], shares: Array, values: Array, weights: Array
) -> Predict:
    """Ridge by leave-one-out error over all runs (Golub, Heath and Wahba 1979), for all weights."""
    raw = features(shares)
    middle, spread = raw.mean(axis=0), raw.std(axis=0) + 1e-9
    x = (raw - middle) / spread
    u, s, _ = np.linalg.svd(x, full_matrices=False)
    y = values - values.mean()

    def left_out(ridge: float) -> float:
        shrinkage = s**2 / (s**2 + ridge)
        return float(
            (((y - u @ (shrinkage * (u.T @ y))) / (1 - u**2 @ shrinkage - 1 / len(y))) ** 2).sum()
        )

    ridge = min(_RIDGES, key=left_out)
    total = weights.sum(axis=1, keepdims=True)
    mean_x, mean_y = weights @ x / total, weights @ values / total[:, 0]
    centred = x - mean_x[:, None]
    weighted = (centred * weights[:, :, None]).swapaxes(1, 2)
    curvature = weighted @ centred + ridge * np.eye(x.shape[1])
    right = weighted @ (values - mean_y[:, None])[:, :, None]
    slopes = np.linalg.solve(curvature, right)[..., 0]
    level = mean_y - (slopes * mean_x).sum(axis=1)
    return lambda z, count: (
        slopes[:count] @ ((features(z) - middle) / spread).T + level[:count, None]
    )


def _multi_start(
    make: Callable[[Array], Model],
    starts: Array,
    prior: Array,
    precision: Array,
    shares: Array,
    values: Array,
    weights: Array,
) -> Array:
    """Parameters [B, P] of standardised values: the best of the starts, then each weighting."""
    y = (values - values.mean()) / (values.std() + 1e-12)
    model, every = make(shares), np.ones((len(starts), len(y)))
    theta, cost = levenberg_marquardt(model, starts, y, every, prior, precision, _ROBUST)
    start = np.repeat(theta[[np.argmin(cost)]], len(weights), axis=0)
    return levenberg_marquardt(model, start, y, weights, prior, precision, _ROBUST, 30)[0]


def _scaled(make: Callable[[Array], Model], theta: Array, values: Array) -> Predict:
    spread = values.std() + 1e-12
    return lambda z, count: values.mean() + spread * make(z)(theta[:count])[0]


def exponential(shares: Array, values: Array, weights: Array) -> Predict:
    """Data mixing law c + k exp(Σ t_j r_j) (Ye et al., arXiv 2403.16952, M4).

    Only k exp(t_j) are identified, as shares sum to 1; a weak prior t ~ N(0, 10²) fixes the rest.
    """

    def make(x: Array) -> Model:
        def model(theta: Array) -> tuple[Array, Array]:
            grown = np.exp(np.clip(theta[:, 2:] @ x.T, -50, 50))
            slope = theta[:, 1:2] * grown
            ones = np.ones_like(grown)
            return theta[:, :1] + slope, np.concatenate(
                [np.stack([ones, grown], 2), slope[:, :, None] * x], axis=2
            )

        return model

    k = shares.shape[1]
    rng = np.random.default_rng(0)
    starts = np.hstack([np.tile([[-2.0, 2.0], [-0.5, 0.5]], (4, 1)), np.zeros((8, k))])
    starts[:, 2:] = rng.normal(0, 1, (8, k)) * np.arange(8)[:, None] / 4
    prior, precision = np.zeros(k + 2), np.r_[1e-4, 1e-4, np.full(k, 1e-4)]
    theta = _multi_start(make, starts, prior, precision, shares, values, weights)
    return _scaled(make, theta, values)


def _power_model(x: Array) -> Model:
    def model(theta: Array) -> tuple[Array, Array]:
        rate, offset, worth = np.exp(theta[:, [2]]), np.exp(theta[:, [3]]), np.exp(theta[:, 4:])
        share = np.maximum(worth @ x.T + offset, 1e-12)
        log = np.log(share)
        power = np.exp(np.clip(-rate * log, -50, 50))
        bent = (power - 1) / rate
        slope = -theta[:, [1]] * power / share  # of the effective share
        by_rate = theta[:, [1]] * (-log * power - bent)
        columns = [np.ones_like(bent), bent, by_rate, slope * offset]
        by_worth = slope[:, :, None] * (x * worth[:, None])
        return theta[:, :1] + theta[:, [1]] * bent, np.concatenate(
            [np.stack(columns, axis=2), by_worth], axis=2
        )

    return model


def _power_parameters(shares: Array, values: Array, weights: Array) -> Array:
    k = shares.shape[1]
    y = (values - values.mean()) / (values.std() + 1e-12)
    spread = np.where(shares.std(axis=0) > 0, shares.std(axis=0), 1.0)
    correlation = (shares - shares.mean(axis=0)).T @ y / len(y) / spread
    starts = []
    for sign in (1.0, -1.0):  # values fall with the effective share, or rise
        worth = np.log(np.maximum(-sign * correlation, 0.02))
        for rate, offset in ((0.3, 0.01), (0.1, 0.003), (1.0, 0.1)):
            share = shares @ np.exp(worth) + offset
            bent = (share**-rate - 1) / rate
            level = np.linalg.lstsq(np.column_stack([np.ones(len(y)), bent]), y, rcond=None)[0]
            starts.append([*level, np.log(rate), np.log(offset), *worth])
    prior = np.r_[0.0, 0.0, np.log(0.1), np.log(0.01), np.full(k, -2.0)]
    precision = np.r_[1e-4, 1e-4, 1e-2, 1e-3, np.full(k, 1e-3)]
    return _multi_start(_power_model, np.array(starts), prior, precision, shares, values, weights)


def power(shares: Array, values: Array, weights: Array) -> Predict:
    """Power law of the effective share of useful data: c + s (e^-β - 1)/β, e = t_0 + Σ t_j r_j.

    A domain is worth t_j of the target's own data; once there is enough of one, the others hardly
    matter. Box and Cox' form is s log(1/e) for β -> 0. The sum of Apple's law (arXiv 2507.09404)
    with exponents of 1, inside the power.
    """
    return _scaled(_power_model, _power_parameters(shares, values, weights), values)


def kernel(shares: Array, values: Array, weights: Array) -> Predict:
    """The power law, and a Gaussian process on what it leaves, over the shares, their roots and the
    power law's own prediction, with Matérn's covariance of 3/2.

    Length and nugget are those of least leave-one-out error (Rasmussen and Williams 2006, 4.2.1 and
    5.4.2).
    """
    base = power(shares, values, weights)
    levels = base(shares, None)
    own = np.hstack([shares, shares**_ROOT])
    middle, spread = own.mean(axis=0), own.std(axis=0) + 1e-9

    def coordinates(z: Array, level: Array) -> Array:
        stretched = _STRETCH * (level - values.mean()) / (values.std() + 1e-12)
        return np.column_stack([(np.hstack([z, z**_ROOT]) - middle) / spread, stretched])

    residual, at = values - levels[0], coordinates(shares, levels[0])
    best = (np.inf, 1.0, 1.0)
    for length in _LENGTHS:
        eigen, vectors = np.linalg.eigh(_matern(at, at, length))
        for nugget in _NUGGETS:
            inverse = 1 / (np.maximum(eigen, 0) + nugget)
            solved = vectors @ (inverse * (vectors.T @ residual))
            best = min(
                best, (float(((solved / (vectors**2 @ inverse)) ** 2).sum()), length, nugget)
            )
    _, length, nugget = best
    solutions = []
    for level, weight in zip(levels, weights, strict=True):
        used = weight > 0
        at = coordinates(shares[used], level[used])
        gram = _matern(at, at, length) + np.diag(nugget / weight[used])
        solutions.append((at, np.linalg.solve(gram, (values - level)[used])))

    def predict(z: Array, count: int | None) -> Array:
        return np.stack([
            level + _matern(coordinates(z, level), at, length) @ solved
            for level, (at, solved) in zip(base(z, count), solutions, strict=False)
        ])  # fmt: skip

    return predict


def _matern(a: Array, b: Array, length: float) -> Array:
    """Matérn's covariance [m, n] of rows, ν = 3/2."""
    square = (a**2).sum(axis=1)[:, None] + (b**2).sum(axis=1) - 2 * a @ b.T
    near = np.sqrt(3 * np.maximum(square, 0)) / length
    return np.asarray((1 + near) * np.exp(-near))


def trees(shares: Array, values: Array, weights: Array) -> Predict:
    """Gradient-boosted trees, as in RegMix (arXiv 2407.01492), which begin at the power law."""
    try:
        from sklearn.ensemble import HistGradientBoostingRegressor
    except ImportError:
        raise UserError("the law trees needs scikit-learn: pip install 'jaxllm[trees]'") from None

    base = power(shares, values, weights)
    fitted = []
    for level, weight in zip(base(shares, None), weights, strict=True):
        boosting: Any = HistGradientBoostingRegressor(
            max_iter=60, learning_rate=0.15, max_leaf_nodes=6, min_samples_leaf=10,
            early_stopping=False, random_state=0,
        )  # fmt: skip
        used = weight > 0
        x = np.column_stack([shares, level])[used]
        fitted.append(boosting.fit(x, (values - level)[used], sample_weight=weight[used]))

    def predict(z: Array, count: int | None) -> Array:
        pairs = zip(base(z, count), fitted, strict=False)
        return np.stack([level + one.predict(np.column_stack([z, level])) for level, one in pairs])

    return predict


# From the plainest to the richest.
LAWS: Mapping[str, Law] = {
    "linear": Law(linear, lambda k: k),
    "log_linear": Law(log_linear, lambda k: 2 * k),
    "exponential": Law(exponential, lambda k: k + 1),
    "power": Law(power, lambda k: k + 4),
    "kernel": Law(kernel, lambda k: k + 4),
    "trees": Law(trees, lambda k: k + 4),
}
