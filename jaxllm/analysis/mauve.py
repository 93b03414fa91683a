"""MAUVE of generated texts against human ones (arXiv 2102.01454), with an interval.

The score is that of the authors' package (`pip install jaxllm[mauve]`), from features of the texts.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from jaxllm.analysis.stats import Array
from jaxllm.errors import UserError

SCALE, WEIGHTS = 5.0, np.linspace(1e-6, 1 - 1e-6, 25)  # the package's defaults


class Mauve(NamedTuple):
    """A score from 0 to 1 (the same distribution), and its interval."""

    value: float
    low: float
    high: float
    clusters: int  # of the features, a tenth of the fewer texts


def mauve(
    human: Array, generated: Array, seed: int = 0, resamples: int = 1000, level: float = 0.95
) -> Mauve:
    """The score of features [n, D] and [m, D]; UserError if the package is not installed.

    The interval is for other texts in the same clusters, drawn anew with replacement. That adds
    about as much divergence as the sets already have from being samples, hence the basic bootstrap
    interval, 2 value - quantiles (Davison and Hinkley 1997, 5.2).
    """
    try:
        from mauve import compute_mauve
    except ImportError as error:
        raise UserError(f"MAUVE needs `pip install jaxllm[mauve]` ({error})") from error
    found = compute_mauve(p_features=human, q_features=generated, seed=seed, verbose=False)
    rng = np.random.default_rng(seed)
    draw = lambda of, share: rng.multinomial(len(of), share, resamples) / len(of)
    both = zip(draw(human, found.p_hist), draw(generated, found.q_hist), strict=True)
    tails = np.quantile([area(*pair) for pair in both], [(1 + level) / 2, (1 - level) / 2])
    low, high = np.clip(2 * found.mauve - tails, 0, 1)
    return Mauve(float(found.mauve), float(low), float(high), found.num_buckets)


def area(p: Array, q: Array) -> float:
    """The area under the divergence curve of two histograms (equations 1 and 2 of the paper)."""
    mixed, x, y = np.outer(WEIGHTS, p) + np.outer(1 - WEIGHTS, q), [1.0], [0.0]
    with np.errstate(divide="ignore", invalid="ignore"):
        for curve, of in ((x, q), (y, p)):
            curve += np.exp(-SCALE * np.where(of > 0, of * np.log(of / mixed), 0).sum(1)).tolist()
    points = np.array([[*x, 0.0], [*y, 1.0]])  # with the ends of the curve
    under = lambda x, y: np.trapezoid(y[np.argsort(x)], np.sort(x))
    return float(under(*points) + under(*points[::-1])) / 2
