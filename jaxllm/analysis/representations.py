"""Similarity of the layers of two models, by their hidden states at the same tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd

from jaxllm.analysis.stats import Array
from jaxllm.run.run import SIMILARITY

_MINIBATCH = 512  # tokens for CKA at a time


def compare(token_set: str, names: Sequence[str], states: Callable[[int], Array]) -> pd.DataFrame:
    """The layers of checkpoints with those of the last: a row per pair, with columns `SIMILARITY`.

    `states` gives those of a checkpoint by its index in `names`, [L, n, D]; those of the last and
    of one other are in memory, with their directions in float32, at most as many. n > 3, in random
    order.
    """
    last, parts = states(len(names) - 1), []
    known = directions(last)
    for number, name in enumerate(names[:-1]):
        own = states(number)
        values = cka(own, last), svcca(directions(own), known)
        layers = np.indices(values[0].shape).reshape(2, -1) + 1
        row = (token_set, name, names[-1], *layers, *(each.ravel() for each in values))
        parts.append(pd.DataFrame(dict(zip(SIMILARITY, row, strict=True))))
        del own  # before the next are read
    return pd.concat(parts, ignore_index=True)


def cka(a: Array, b: Array) -> Array:
    """Linear CKA [L, M] of all pairs of layers a [L, n, D] and b [M, n, E].

    That of minibatches (Nguyen et al. 2021, arXiv 2010.15327, equation 3).
    """
    both, own, other, wide = np.zeros(1), np.zeros(1), np.zeros(1), np.result_type(a, np.float32)
    for part in np.array_split(np.arange(a.shape[1]), max(a.shape[1] // _MINIBATCH, 1)):
        x, y = (states[:, part].astype(wide) for states in (a, b))
        both = both + hsic(x, y)
        own, other = own + hsic(x, x).diagonal(), other + hsic(y, y).diagonal()
    return both / np.sqrt(np.outer(own, other))


def hsic(a: Array, b: Array) -> Array:
    """Unbiased linear HSIC [L, M] of all pairs of layers a [L, n, D] and b [M, n, E], n > 3."""
    n = a.shape[1]
    centered = (states - states.mean(axis=1, keepdims=True) for states in (a, b))  # for rounding
    x, y = (each @ each.swapaxes(1, 2) * (1 - np.eye(n)) for each in centered)
    x_sums, y_sums = x.sum(axis=2), y.sum(axis=2)
    trace = x.reshape(len(x), -1) @ y.reshape(len(y), -1).T
    total = np.outer(x_sums.sum(axis=1), y_sums.sum(axis=1)) / ((n - 1) * (n - 2))
    return np.asarray((trace + total - 2 / (n - 2) * x_sums @ y_sums.T) / (n * (n - 3)))


def svcca(a: Sequence[Array], b: Sequence[Array]) -> Array:
    """Mean canonical correlations [L, M] of the `directions` of layers; chance: sqrt(K / n)."""
    pair = lambda u, v: np.linalg.svd(u.T @ v, compute_uv=False).mean()
    return np.array([[pair(u, v) for v in b] for u in a])


def directions(states: Array) -> list[Array]:
    """The K principal directions [n, K] with 99 % of the variance of each layer of [L, n, D].

    (Raghu et al. 2017, arXiv 1706.05806.)
    """
    found, wide = [], np.result_type(states, np.float32)  # what bfloat16 states are centred in
    for x in states:
        u, s, _ = np.linalg.svd(x - x.mean(axis=0, dtype=wide), full_matrices=False)
        found.append(u[:, : 1 + np.searchsorted(np.cumsum(s**2), 0.99 * (s**2).sum())].copy())
    return found
