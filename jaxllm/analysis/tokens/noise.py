"""Lines through series with autoregressive noise of unknown strength: tests that keep their level.

Noise of neighbouring checkpoints is correlated, and ordinary least squares then takes wander for a
trend: in 45 % of series without one at φ = 0.8 and 20 checkpoints. Here a series is fitted by
generalised least squares at every φ of a grid. Restricted likelihoods (Patterson and Thompson 1971)
weigh the Student t distributions of the coefficient, with a prior over φ from all series together
(maximum likelihood by EM: Laird 1978). Given φ this is a location-scale family with its right Haar
prior, so the mixture's tail is an exact p-value on average over the prior of φ (Stein 1965).
"""

import dataclasses
import itertools

import numpy as np
import numpy.typing as npt
from scipy import special

Floats = npt.NDArray[np.floating]
PHIS = np.array([0, 0.15, 0.3, 0.45, 0.6, 0.7, 0.8, 0.88, 0.94, 0.98])


@dataclasses.dataclass(frozen=True)
class NoiseFit:
    """Generalised least squares of n series at every φ of `PHIS`: arrays [P, n]."""

    coefficient: Floats  # of the design's last column
    stderr: Floats
    scale: Floats  # standard deviation of the innovations
    log_likelihood: Floats  # restricted, up to a constant of the series
    dof: int

    def prior(self) -> Floats:
        """Distribution [P] of φ over the series; those with gaps do not count."""
        likelihood = self.log_likelihood[:, np.isfinite(self.log_likelihood).all(axis=0)]
        likelihood = np.exp(likelihood - likelihood.max(axis=0, initial=-np.inf))
        prior = np.full(len(PHIS), 1 / len(PHIS))
        for _ in range(60 if likelihood.size else 0):
            prior = prior * (likelihood / (prior @ likelihood)).mean(axis=1)
        return prior

    def posterior(self, prior: Floats) -> Floats:
        """Distribution [P, n] of each series' φ."""
        weights = np.exp(self.log_likelihood - self.log_likelihood.max(axis=0)) * prior[:, None]
        return np.asarray(weights / weights.sum(axis=0))

    def test(self, prior: Floats) -> tuple[Floats, Floats, Floats]:
        """Estimate [n] of the coefficient, its standard error, two-sided p-value of zero."""
        weights, t = self.posterior(prior), self.coefficient / self.stderr
        estimate = (weights * self.coefficient).sum(axis=0)
        variance = (weights * (self.stderr**2 + (self.coefficient - estimate) ** 2)).sum(axis=0)
        tails = [(weights * special.stdtr(self.dof, sign * t)).sum(axis=0) for sign in (-1, 1)]
        return estimate, np.sqrt(variance), np.minimum(2 * np.minimum(*tails), 1)

    def draw(self, prior: Floats, rng: np.random.Generator) -> tuple[Floats, Floats]:
        """φ and innovation scale [n] of each series, drawn from their posterior."""
        edges, count = self.posterior(prior).cumsum(axis=0), self.scale.shape[1]
        index = np.minimum((rng.random(count) > edges).sum(axis=0), len(PHIS) - 1)
        scale = self.scale[index, np.arange(count)]
        return PHIS[index], scale * np.sqrt(self.dof / rng.chisquare(self.dof, count))


def fit(series: Floats, design: Floats) -> NoiseFit:
    """Fit `series` [S, n] by the columns of `design` [S, K], K < S, under AR(1) noise."""
    (count, columns), dof = design.shape, len(design) - design.shape[1]
    ordinary = np.linalg.pinv(design) @ series
    residual = (series - design @ ordinary).astype(series.dtype)
    squares = np.einsum("sn,sn->n", residual, residual, dtype=float)
    products = np.einsum("sn,sn->n", residual[1:], residual[:-1], dtype=float)
    ends = (residual[[0, -1]].astype(float) ** 2).sum(axis=0)
    # The inverse covariance is tridiagonal: (1 + φ²) but for a 1 at both ends, −φ beside it.
    phi = PHIS[:, None, None]
    whitened = (1 + phi**2) * design
    whitened[:, [0, -1]] = design[[0, -1]]
    whitened[:, 1:] -= phi * design[:-1]
    whitened[:, :-1] -= phi * design[1:]
    gram = design.T @ whitened
    inverse = np.linalg.inv(gram)
    score = whitened.transpose(0, 2, 1).reshape(-1, count).astype(series.dtype) @ residual
    score = score.reshape(len(PHIS), columns, -1).astype(float)
    update = inverse @ score
    phi = PHIS[:, None]
    rss = (1 + phi**2) * squares - phi**2 * ends - 2 * phi * products
    rss = np.maximum(rss - (update * score).sum(axis=1), 1e-12)
    likelihood = np.log(1 - phi**2) - np.linalg.slogdet(gram)[1][:, None] - dof * np.log(rss)
    scale = np.sqrt(rss / dof)
    stderr = scale * np.sqrt(inverse[:, -1, -1])[:, None]
    return NoiseFit(ordinary[-1] + update[:, -1], stderr, scale, likelihood / 2, dof)


def simulate(phi: Floats, scale: Floats, count: int, rng: np.random.Generator) -> Floats:
    """Stationary AR(1) series [count, n] around zero; `scale` [n] is that of the innovations."""
    series = rng.standard_normal((count, len(phi)), dtype=np.float32) * scale.astype(np.float32)
    series[0] /= np.sqrt(1 - phi**2)
    for before, now in itertools.pairwise(series):
        now += phi * before
    return series
