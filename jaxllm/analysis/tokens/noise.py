"""Lines through series with autoregressive noise of unknown strength: tests that keep their level.

Noise of neighbouring checkpoints is correlated, and ordinary least squares then takes wander for a
trend: at φ = 0.8 and 20 checkpoints it finds p < 0.05 in 45 % of series without one. The estimate
of φ from one short series is too small and too uncertain to repair that. Here a series is fitted by
generalised least squares at every φ of a grid. Its restricted likelihood at each (Patterson and
Thompson 1971; the factor 1/σ integrated) weighs the Student t distributions of the coefficient; the
weights' prior over φ is that of all series together (its nonparametric maximum-likelihood estimate
by EM: Laird 1978). Conditional on φ this is a location-scale family, so the mixture's tail is an
exact p-value on average over that prior (Stein 1965: right Haar prior).
"""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import numpy.typing as npt
from scipy import special

Floats = npt.NDArray[np.floating]
PHIS = np.array([0, 0.15, 0.3, 0.45, 0.6, 0.7, 0.8, 0.88, 0.94, 0.98])
_EM_STEPS = 60


@dataclasses.dataclass(frozen=True)
class NoiseFit:
    """Generalised least squares of n series at every φ of `PHIS`: arrays [P, n]."""

    coefficient: Floats  # of the design's last column
    stderr: Floats
    scale: Floats  # standard deviation of the innovations
    log_likelihood: Floats  # restricted, up to a constant of the series
    dof: int

    def prior(self) -> Floats:
        """Distribution [P] of φ over the series; series with gaps do not count."""
        likelihood = self.log_likelihood[:, np.isfinite(self.log_likelihood).all(axis=0)]
        likelihood = np.exp(likelihood - likelihood.max(axis=0, initial=-np.inf))
        prior = np.full(len(PHIS), 1 / len(PHIS))
        for _ in range(_EM_STEPS if likelihood.size else 0):
            prior = prior * (likelihood / (prior @ likelihood)).mean(axis=1)
        return prior

    def posterior(self, prior: Floats) -> Floats:
        """Distribution [P, n] of each series' φ."""
        weights = np.exp(self.log_likelihood - self.log_likelihood.max(axis=0))
        weights *= prior[:, None]
        return np.asarray(weights / weights.sum(axis=0))

    def test(self, prior: Floats) -> tuple[Floats, Floats, Floats]:
        """Estimate [n] of the coefficient, its standard error, two-sided p-value of zero."""
        weights = self.posterior(prior)
        estimate = (weights * self.coefficient).sum(axis=0)
        spread = self.stderr**2 + (self.coefficient - estimate) ** 2
        below = (weights * special.stdtr(self.dof, -self.coefficient / self.stderr)).sum(axis=0)
        above = (weights * special.stdtr(self.dof, self.coefficient / self.stderr)).sum(axis=0)
        stderr = np.sqrt((weights * spread).sum(axis=0))
        return estimate, stderr, np.minimum(2 * np.minimum(below, above), 1)

    def draw(self, prior: Floats, rng: np.random.Generator) -> tuple[Floats, Floats]:
        """φ and innovation scale [n] of each series, drawn from their posterior."""
        edges = self.posterior(prior).cumsum(axis=0)
        count = edges.shape[1]
        index = np.minimum((rng.random(count) > edges).sum(axis=0), len(PHIS) - 1)
        scale = self.scale[index, np.arange(count)]
        return PHIS[index], scale * np.sqrt(self.dof / rng.chisquare(self.dof, count))


def fit(series: Floats, design: Floats) -> NoiseFit:
    """Fit `series` [S, n] by the columns of `design` [S, K], K < S, under AR(1) noise."""
    count, columns = design.shape
    basis = np.linalg.qr(design)[0]
    residual = series - series.mean(axis=0)
    residual = residual - (basis @ (basis.T @ residual)).astype(series.dtype)
    squares = np.einsum("sn,sn->n", residual, residual, dtype=float)
    products = np.einsum("sn,sn->n", residual[1:], residual[:-1], dtype=float)
    ends = residual[0].astype(float) ** 2 + residual[-1].astype(float) ** 2
    # The inverse covariance is tridiagonal: (1 + φ²) but for a 1 at both ends, −φ beside it.
    whitened = np.empty((len(PHIS), count, columns))
    for at, phi in zip(whitened, PHIS, strict=True):
        at[:] = (1 + phi**2) * design
        at[[0, -1]] = design[[0, -1]]
        at[1:] -= phi * design[:-1]
        at[:-1] -= phi * design[1:]
    gram = np.einsum("sk,psl->pkl", design, whitened)
    score = whitened.transpose(0, 2, 1).reshape(-1, count).astype(series.dtype) @ residual
    score = score.reshape(len(PHIS), columns, -1).astype(float)
    inverse = np.linalg.inv(gram)
    update = inverse @ score
    phi = PHIS[:, None]
    rss = (1 + phi**2) * squares - phi**2 * ends - 2 * phi * products
    rss = np.maximum(rss - np.einsum("pkn,pkn->pn", update, score), 1e-12)
    dof = count - columns
    likelihood = (
        -dof / 2 * np.log(rss) + np.log(1 - phi**2) / 2 - np.linalg.slogdet(gram)[1][:, None] / 2
    )
    ordinary = np.linalg.lstsq(design, series.astype(float), rcond=None)[0][-1]
    scale = np.sqrt(rss / dof)
    stderr = scale * np.sqrt(inverse[:, -1, -1])[:, None]
    return NoiseFit(ordinary + update[:, -1], stderr, scale, likelihood, dof)


def simulate(phi: Floats, scale: Floats, count: int, rng: np.random.Generator) -> Floats:
    """Stationary AR(1) series [count, n] around zero; `scale` [n] is that of the innovations."""
    series = rng.standard_normal((count, len(phi)), dtype=np.float32)
    series *= scale.astype(np.float32)
    series[0] /= np.sqrt(1 - phi**2)
    slope = phi.astype(np.float32)
    for before, now in itertools.pairwise(series):
        now += slope * before
    return series
