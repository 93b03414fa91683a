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

    `states` gives those of a checkpoint by its index in `names`, see `similarities`; those of the
    last and of one other are in memory.
    """
    last, parts = states(len(names) - 1), []
    for number, name in enumerate(names[:-1]):
        cka, svcca = similarities(states(number), last)
        layers = np.indices(cka.shape).reshape(2, -1) + 1
        row = (token_set, name, names[-1], *layers, cka.ravel(), svcca.ravel())
        parts.append(pd.DataFrame(dict(zip(SIMILARITY, row, strict=True))))
    return pd.concat(parts, ignore_index=True)


def similarities(a: Array, b: Array) -> tuple[Array, Array]:
    """Linear CKA and SVCCA [L, M] of all pairs of layers a [L, n, D] and b [M, n, E].

    CKA is that of minibatches (Nguyen et al. 2021, arXiv 2010.15327, equation 3), so the n > 3
    tokens are in random order.
    """
    both, own, other, wide = np.zeros(1), np.zeros(1), np.zeros(1), np.result_type(a, np.float32)
    for part in np.array_split(np.arange(a.shape[1]), max(a.shape[1] // _MINIBATCH, 1)):
        x, y = (states[:, part].astype(wide) for states in (a, b))
        both = both + hsic(x, y)
        own, other = own + hsic(x, x).diagonal(), other + hsic(y, y).diagonal()
    return both / np.sqrt(np.outer(own, other)), svcca(a, b)


def hsic(a: Array, b: Array) -> Array:
    """Unbiased linear HSIC [L, M] of all pairs of layers a [L, n, D] and b [M, n, E], n > 3."""
    n = a.shape[1]
    centered = (states - states.mean(axis=1, keepdims=True) for states in (a, b))  # for rounding
    x, y = (each @ each.swapaxes(1, 2) * (1 - np.eye(n)) for each in centered)
    x_sums, y_sums = x.sum(axis=2), y.sum(axis=2)
    trace = x.reshape(len(x), -1) @ y.reshape(len(y), -1).T
    total = np.outer(x_sums.sum(axis=1), y_sums.sum(axis=1)) / ((n - 1) * (n - 2))
    return np.asarray((trace + total - 2 / (n - 2) * x_sums @ y_sums.T) / (n * (n - 3)))


def svcca(a: Array, b: Array) -> Array:
    """Mean canonical correlations [L, M] of layers a [L, n, D] and b [M, n, E], K directions each.

    These have 99 % of the variance (Raghu et al. 2017, arXiv 1706.05806); chance: sqrt(K / n).
    """
    bases, wide = [], np.result_type(a, np.float32)  # what bfloat16 states are centred in
    for layers in (a, b):
        centered = (x - x.mean(axis=0, dtype=wide) for x in layers)
        found = [np.linalg.svd(x, full_matrices=False)[:2] for x in centered]
        counts = [1 + np.searchsorted(np.cumsum(s**2), 0.99 * (s**2).sum()) for _, s in found]
        bases.append([u[:, :count].copy() for (u, _), count in zip(found, counts, strict=True)])
    means = [[np.linalg.svd(u.T @ v, compute_uv=False).mean() for v in bases[1]] for u in bases[0]]
    return np.array(means)
