"""A subset of tokens chosen by one model, followed in all others."""

import itertools
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import pandas as pd

from jaxllm.analysis.stats import Z95
from jaxllm.analysis.tokens.trends import TRENDS, Classes, Floats, Ints


def clustered_mean(values: npt.NDArray[np.generic], documents: Ints) -> Floats:
    """Mean of `values` [..., n] over tokens, and its standard error over documents: [2, ...].

    That of a ratio estimate over clusters (Cochran 1977, chapter 9A); NaN for a single document.
    """
    if not len(documents):
        return np.full((2, *values.shape[:-1]), np.nan)
    order = np.argsort(documents, kind="stable")
    starts = np.unique(documents[order], return_index=True)[1]
    sums = np.add.reduceat(values[..., order], starts, axis=-1, dtype=float)
    counts, clusters = np.diff([*starts, len(order)]), len(starts)
    mean = sums.sum(axis=-1) / len(order)
    squares = ((sums - mean[..., None] * counts) ** 2).sum(axis=-1)
    scale = clusters / (clusters - 1) if clusters > 1 else np.nan
    return np.stack([mean, np.sqrt(scale * squares) / len(order)])


def subset_perplexity(losses: Floats, subset: npt.NDArray[np.bool_], documents: Ints) -> Floats:
    """Perplexity [3, S] of a subset [n] by losses [S, n], and its 95 % interval over documents."""
    mean, stderr = clustered_mean(losses[:, subset], documents[subset])
    return np.exp([mean, mean - Z95 * stderr, mean + Z95 * stderr])


def overlap(
    classes: Mapping[str, Classes], documents: Ints, trend: str = "stagnated"
) -> pd.DataFrame:
    """Share of a class's tokens in one model that are of that class in each, too: `first`,
    `second`, `tokens` of the first's class, `share` of them in the second's, its `stderr`, the
    `chance` that any token is; share / chance, `lift`.
    """
    rows = []
    for first, second in itertools.product(classes, repeat=2):
        chosen, other = (classes[name] == TRENDS.index(trend) for name in (first, second))
        means = clustered_mean(other[chosen], documents[chosen])
        rows.append((first, second, chosen.sum(), *means, other.mean()))
    table = pd.DataFrame(rows, columns=["first", "second", "tokens", "share", "stderr", "chance"])
    return table.assign(lift=table["share"] / table["chance"])
