"""Similarity of the layers of two models, by their hidden states at the same tokens."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from jaxllm.analysis.stats import Array

_MINIBATCH = 512  # tokens


def linear_cka(batches: Iterable[tuple[Array, Array]]) -> Array:
    """Linear CKA [L, M] of all pairs of layers (Kornblith et al. 2019), in the memory of one batch.

    A batch has states [L, n, D] and [M, n, E] of n > 3 tokens in random order, of which there are
    minibatches (Nguyen et al. 2021, arXiv 2010.15327, equation 3).
    """
    both, own, other = np.zeros(1), np.zeros(1), np.zeros(1)
    for batch in batches:
        count = max(batch[0].shape[1] // _MINIBATCH, 1)
        for a, b in zip(*(np.array_split(states, count, axis=1) for states in batch), strict=True):
            both = both + hsic(a, b)
            own, other = own + hsic(a, a).diagonal(), other + hsic(b, b).diagonal()
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
