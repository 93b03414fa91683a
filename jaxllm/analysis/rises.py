"""Width of a rise: the decades of tokens from 10 to 90 % of its gain.

Scores over x, the decimal logarithm of tokens, are y = a + b g(x), b >= 0, with noise. g rises from
0 to 1 in one of four ways between the places of its 10 and 90 %, which lie `width` apart: the
logistic curve, Gompertz' one (its end is a power law of tokens), its mirror image (its beginning
is one) and a power law from an onset; or as a step between two checkpoints. All of a dense set of
such curves are fitted by least squares at once, so that the profile over the width gives

- an interval: the widths that an F test does not reject at 5 % (profile likelihood; Bates and Watts
  1988, Nonlinear Regression Analysis, chapter 6). Between two checkpoints a curve may have any
  shape, so each of these stands for all rising curves that have 10 and 90 % between the same
  checkpoints. Where the rise has not begun or ended in the window its width has no upper end.
- a p-value of the null hypothesis that the rise is `SUDDEN` wide or wider.

The variance of the noise is that of the residuals or the known one, whichever is larger, times
(1 + r) / (1 - r): the number of independent points that a positive autocorrelation r of the
residuals leaves.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator

import numpy as np
import pandas as pd
from scipy import stats

from jaxllm.analysis.stats import Array

SUDDEN = 0.3  # decades: a factor of two in tokens
FEWEST = 7  # checkpoints

_PARAMETERS = 5  # a, b, place, width, shape
_WIDTHS = SUDDEN * 1.25 ** np.arange(-10, 16)  # the first stands for all narrower ones, too
_PLACES = 8  # per width
_BATCH = 64  # curves that are fitted at a time


# Shapes of z, and z at 10 and at 90 %.
_SHAPES = (
    (lambda z: 1 / (1 + np.exp(-z)), -math.log(9), math.log(9)),
    (lambda z: np.exp(-np.exp(-z)), -math.log(math.log(10)), -math.log(-math.log(0.9))),
    (lambda z: 1 - np.exp(-np.exp(z)), math.log(-math.log(0.9)), math.log(math.log(10))),
    (lambda z: 1 - np.exp(-np.maximum(z, 0.0)), -math.log(0.9), math.log(10)),
)


def _of_width(x: Array, width: float) -> Iterator[tuple[Array, Array, Array, Array, Array]]:
    """Curves of each shape, and their width, `low`, `high` and `middle` as in `Rises`."""
    middle = np.arange(x[0] - width, x[-1] + width, width / _PLACES)
    nearest = [np.searchsorted(x, middle + side * width) for side in (-1, 1)]
    middle = middle[nearest[0] < nearest[1]]  # the others are steps
    start, end = middle - width / 2, middle + width / 2
    off = width / _PLACES / 2  # of the middle of any curve from the nearest one here
    places = np.concatenate([[-np.inf], x, [np.inf]])
    before = places[np.searchsorted(x, start - off, "right")]
    behind = places[np.searchsorted(x, end + off) + 1]
    first = places[np.searchsorted(x, start + off) + 1]
    last = places[np.searchsorted(x, end - off, "right")]
    low = np.maximum(last - first, 0.0) if width > _WIDTHS[0] else np.zeros_like(middle)
    high = behind - before
    for shape, z10, z90 in _SHAPES:
        z = z10 + (z90 - z10) * (x - start[:, None]) / width
        with np.errstate(over="ignore"):
            yield shape(z), np.full_like(middle, width), low, high, middle


@dataclasses.dataclass(frozen=True)
class Rises:
    """K curves on n checkpoints; `low` to `high` are the widths that each stands for."""

    x: Array  # [n] ascending
    curves: Array  # [K, n], without their mean, of length 1
    width: Array  # [K], as those below
    low: Array
    high: Array  # inf where a curve has not begun or not ended
    middle: Array  # place between 10 and 90 %
    gain: Array  # from the first to the last checkpoint

    @classmethod
    def of(cls, x: Array) -> Rises:
        """All curves whose rise is at least partly between the checkpoints `x`."""
        spacing = np.diff(x)
        steps = 1 - np.tri(len(spacing), len(x))
        parts = [(steps, 0 * spacing, 0 * spacing, spacing, x[1:] - spacing / 2)]
        parts += [part for width in _WIDTHS for part in _of_width(x, width)]
        curves, width, low, high, middle = map(np.concatenate, zip(*parts, strict=True))
        curves -= curves.mean(axis=1, keepdims=True)
        length = np.linalg.norm(curves, axis=1, keepdims=True)
        curves /= np.where(length > 1e-6, length, np.inf)
        return cls(x, curves, width, low, high, middle, curves[:, -1] - curves[:, 0])

    def fit(self, scores: Array, noise: Array) -> pd.DataFrame:
        """Fit curves `scores` [n, C] with standard errors `noise` [C], 0 where unknown.

        A row per curve: the fitted `gain`; `tokens` at the middle of the rise, NaN where `high` is
        inf; its `width` with its 95 % interval, `low` to `high`; and `p` of the null hypothesis
        that the rise is at least `SUDDEN` wide, or that less than 80 % of the gain are made within
        `SUDDEN` around its middle.
        """
        batches = range(0, scores.shape[1], _BATCH)
        fits = [self._fit(scores[:, at : at + _BATCH], noise[at : at + _BATCH]) for at in batches]
        return pd.concat(fits, ignore_index=True)

    def _fit(self, scores: Array, noise: Array) -> pd.DataFrame:
        y = scores - scores.mean(axis=0)
        coefficients = np.maximum(self.curves @ y, 0.0)
        explained = coefficients**2
        best = explained.argmax(axis=0)
        coefficient = coefficients.max(axis=0)
        rest = y - self.curves[best].T * coefficient
        freedom = len(self.x) - _PARAMETERS
        squares = (rest**2).sum(axis=0) + 1e-18
        variance = np.maximum(squares / freedom, noise**2)
        correlation = np.clip((rest[1:] * rest[:-1]).sum(axis=0) / squares, 0.0, 0.95)
        variance *= (1 + correlation) / (1 - correlation)
        likely = explained >= explained.max(axis=0) - variance * stats.f.ppf(0.95, 1, freedom)
        lost = explained.max(axis=0) - explained[self.width >= SUDDEN].max(axis=0)
        p = stats.f.sf(lost / variance, 1, freedom)
        low = np.where(likely, self.low[:, None], np.inf).min(axis=0)
        high = np.where(likely, self.high[:, None], -np.inf).max(axis=0)
        for at in np.flatnonzero(high < SUDDEN):
            p[at] = max(p[at], self._p_outside(self.middle[best[at]], y[:, at], variance[at]))
        gain = coefficient * self.gain[best]
        width = np.clip(self.width[best], low, high)
        tokens = np.where(np.isfinite(high), 10 ** self.middle[best], math.nan)
        result = {"gain": gain, "tokens": tokens, "width": width, "low": low, "high": high, "p": p}
        return pd.DataFrame(result)

    def _p_outside(self, middle: float, y: Array, variance: float) -> float:
        """p-value of the null hypothesis that a fifth of the gain lies outside of the rise.

        Outside of `SUDDEN` around its middle y is a line on either side.
        """
        left, right = self.x <= middle - SUDDEN / 2, self.x >= middle + SUDDEN / 2
        if not (left.any() and right.any()):
            return 1.0
        start, end = self.x[left].max(), self.x[right].min()
        before, after = np.minimum(self.x - start, 0.0), np.maximum(self.x - end, 0.0)
        design = np.column_stack([np.ones_like(y), right, before, after])[left | right]
        fitted = np.linalg.lstsq(design, y[left | right], rcond=None)[0]
        contrast = np.array([0.0, 1.0, 4 * before.min(), -4 * after.max()])
        error = math.sqrt(variance * contrast @ np.linalg.pinv(design.T @ design) @ contrast)
        return float(stats.norm.sf(contrast @ fitted / error))
