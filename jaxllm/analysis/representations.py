"""Similarity of the layers of two models, by their hidden states at the same tokens."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from jaxllm.analysis.stats import Array

_MINIBATCH, _SAMPLE = 512, 4096  # tokens for CKA at a time, and for SVCCA


def similarities(batches: Iterable[tuple[Array, Array]]) -> tuple[Array, Array]:
    """Linear CKA and SVCCA [L, M] of all pairs of layers, in the memory of one batch.

    A batch has states [L, n, D] and [M, n, E] of n > 3 tokens in random order. CKA is that of
    minibatches (Nguyen et al. 2021, arXiv 2010.15327, equation 3), SVCCA of the first 4,096 tokens.
    """
    both, own, other = np.zeros(1), np.zeros(1), np.zeros(1)
    sample: list[tuple[Array, Array]] = []
    for batch in batches:
        count = max(batch[0].shape[1] // _MINIBATCH, 1)
        for a, b in zip(*(np.array_split(states, count, axis=1) for states in batch), strict=True):
            both = both + hsic(a, b)
            own, other = own + hsic(a, a).diagonal(), other + hsic(b, b).diagonal()
            if (left := _SAMPLE - sum(part.shape[1] for part, _ in sample)) > 0:
                sample.append((a[:, :left].copy(), b[:, :left].copy()))
    first, second = (np.concatenate(states, axis=1) for states in zip(*sample, strict=True))
    return both / np.sqrt(np.outer(own, other)), svcca(first, second)


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
    bases = []
    for layers in (a, b):
        found = [np.linalg.svd(x - x.mean(axis=0), full_matrices=False)[:2] for x in layers]
        counts = [1 + np.searchsorted(np.cumsum(s**2), 0.99 * (s**2).sum()) for _, s in found]
        bases.append([u[:, :count] for (u, _), count in zip(found, counts, strict=True)])
    means = [[np.linalg.svd(u.T @ v, compute_uv=False).mean() for v in bases[1]] for u in bases[0]]
    return np.array(means)
