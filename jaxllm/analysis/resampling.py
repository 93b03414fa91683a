"""Resampling in time: null distributions and intervals for correlated gains.

Gains (differences of a level between successive checkpoints) are shuffled in time for the null
hypothesis that two of them come at unrelated times, in the same way for all runs that share their
checkpoints, since runs of a suite see the same data at the same step. Shuffling also removes the
serial correlation of gains (noise in a level gives two successive gains of opposite sign), which
would make chance agreements look rare; a null is therefore widened by the square root of
Bartlett's variance factor, 1 + 2 sum_k (1 - k/n) rho_a(k) rho_b(k) (Bartlett 1946; Pyper and
Peterman 1998, eq. 1). Intervals come from a circular block bootstrap (Politis and Romano 1992) on
Fisher's z scale.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import stats

from jaxllm.analysis.curves import Array, Panel

LEVEL = 0.95
# Gains per run; with fewer no rank correlation reaches p < 0.05 after adjustment for many pairs.
FEWEST = 6
TOO_SHORT = f"needs a run of {FEWEST + 1} checkpoints"


def gains(data: Panel) -> tuple[list[Array], tuple[str, ...]]:
    """Gains [S_r, T] between checkpoints of the runs with enough of them; and a note."""
    every = [np.diff(scores[np.isfinite(scores).any(axis=1)], axis=0) for scores in data.score]
    enough = [of_run for of_run in every if len(of_run) >= FEWEST]
    short = len(every) - len(enough)
    note = f"{short} of {len(every)} runs have fewer than {FEWEST + 1} checkpoints: left out."
    return enough, (note,) if short else ()


def mean_correlation(
    series: list[Array], lag: int = 0, fewest: int = FEWEST
) -> tuple[Array, Array]:
    """Mean over runs of correlations [T, T] of column i with column j `lag` checkpoints later.

    Correlations over fewer than `fewest` common checkpoints are left out. Also their number.
    """
    of_runs = [correlation(x[: len(x) - lag], x[lag:]) for x in series]
    r, n = np.array(of_runs).swapaxes(0, 1)
    weight = np.where(np.isfinite(r) & (n >= fewest), n, 0.0)
    with np.errstate(all="ignore"):
        return np.nansum(r * weight, axis=0) / weight.sum(axis=0), weight.sum(axis=0)


def ranks(values: Array) -> Array:
    """Ranks within each column; NaN stays NaN."""
    known = np.isfinite(values)
    return np.where(known, stats.rankdata(np.where(known, values, np.inf), axis=0), np.nan)


def correlation(x: Array, y: Array) -> tuple[Array, Array]:
    """Pearson correlations [T, U] of columns over rows finite in both, and their number."""
    mx, my = np.isfinite(x).astype(float), np.isfinite(y).astype(float)
    x, y = np.where(mx > 0, x, 0.0), np.where(my > 0, y, 0.0)
    n = mx.T @ my
    sx, sy = x.T @ my, mx.T @ y
    with np.errstate(all="ignore"):
        covariance = x.T @ y - sx * sy / n
        variance = ((x * x).T @ my - sx**2 / n) * (mx.T @ (y * y) - sy**2 / n)
        r = np.where(variance > 1e-12, covariance / np.sqrt(variance), np.nan)
    return np.clip(r, -1.0, 1.0), n


def bartlett(series: list[Array]) -> Array:
    """Bartlett's variance factors [T, T] of correlations of serially correlated series, >= 1."""
    factors, weights = [], []
    for ranks in series:
        known = np.isfinite(ranks)
        mean = np.where(known, ranks, 0.0).sum(axis=0) / np.maximum(known.sum(axis=0), 1)
        x = np.where(known, ranks - mean, 0.0)
        n, most = len(x), max(1, len(x) // 4)
        variance = np.maximum((x * x).sum(axis=0), 1e-12)
        rho = [(x[k:] * x[: n - k]).sum(axis=0) / variance for k in range(1, most + 1)]
        terms = [(1 - k / n) * np.outer(r, r) for k, r in enumerate(rho, start=1)]
        factors.append(1 + 2 * np.sum(terms, axis=0))
        weights.append(n)
    return np.maximum(1.0, np.average(factors, axis=0, weights=weights))


def shuffles(series: list[Array], draws: int, rng: np.random.Generator) -> Iterator[list[Array]]:
    """Permute every column independently, alike for runs with the same checkpoints."""
    longest = max(len(x) for x in series)
    for _ in range(draws):
        keys = rng.random((longest, series[0].shape[1]))
        yield [np.take_along_axis(x, np.argsort(keys[: len(x)], axis=0), axis=0) for x in series]


def blocks(lengths: list[int], draws: int, rng: np.random.Generator) -> Iterator[list[Array]]:
    """Row indices of each run for a circular block bootstrap, alike for runs of equal length."""
    size = max(2, round(max(lengths) ** (1 / 3)))
    for _ in range(draws):
        starts = rng.random(math.ceil(max(lengths) / size))
        index = []
        for n in lengths:
            first = np.floor(starts * n).astype(int)
            index.append(((first[:, None] + np.arange(size)) % n).ravel()[:n])
        yield index


def interval(value: Array, draws: Array) -> tuple[Array, Array]:
    """Two-sided interval from the bootstrap's standard error on Fisher's z scale."""
    with np.errstate(all="ignore"):
        z = np.arctanh(np.clip(value, -0.9999, 0.9999))
        drawn = np.arctanh(np.clip(draws, -0.9999, 0.9999))
        known = np.isfinite(drawn).sum(axis=0)
        mean = np.nansum(drawn, axis=0) / known
        error = np.sqrt(np.nansum((drawn - mean) ** 2, axis=0) / (known - 1))
    reach = stats.norm.ppf((1 + LEVEL) / 2) * error
    return np.tanh(z - reach), np.tanh(z + reach)


def share(extreme: npt.NDArray[Any]) -> Array:
    """Permutation p-value over the first axis, counting the data as one of the draws."""
    return np.asarray((1 + extreme.sum(axis=0)) / (1 + len(extreme)))


def tail(value: Array, draws: Array) -> Array:
    """Permutation p-value; in the far tail, from a half-normal fitted to the draws."""
    counted = share(draws >= value)
    with np.errstate(all="ignore"):
        smooth = 2 * stats.norm.sf(value / np.sqrt((draws**2).mean(axis=0)))
    return np.where(counted * (1 + len(draws)) > 10, counted, np.maximum(smooth, 1e-12))
