"""Phases of training: which n-gram model's predictions a checkpoint's are most like.

Models come to predict as unigrams do, then bigrams, and so on, and leave each behind ("Language
Model Behavioral Phases are Consistent…", arXiv 2510.24963): the correlation of their
log-probabilities with those of n-grams has its peak later for a larger n.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

BACKOFF = 0.4  # Brants et al. 2007, and arXiv 2510.24963


def log_scores(counts: np.ndarray, documents: np.ndarray, total: float) -> np.ndarray:
    """Logarithms of stupid backoff (Brants et al. 2007, equation 5) for n = 1 .. order.

    `counts` [order, N] are as in `data.ngrams.count_ngrams`, or a sum of corpora, by how often each
    is read; a token that is not in it counts as the rarest one, at most once. `documents` [N] are
    those of the tokens: at its n-th token, larger orders equal order n. `total` is the tokens of
    the corpus.
    """
    positive = np.where(counts > 0, counts, counts[counts > 0].min(initial=1.0))
    scores = np.log(positive / total)
    inside = np.zeros(len(documents), bool)  # whether a document has n tokens up to here
    inside[1:] = documents[1:] == documents[:-1]
    for n in range(1, len(counts)):
        known = np.log(positive[n] / np.append(1.0, positive[n - 1][:-1]))
        lower = scores[n - 1] + np.where(inside, np.log(BACKOFF), 0.0)
        scores[n] = np.where(counts[n] > 0, known, lower)
        inside[1:] &= inside[:-1]
        inside[0] = False
    return scores


def correlations(losses: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Pearson's r [S, order] of log-probabilities -`losses` [S, N] and `scores` [order, N], each
    over the tokens with a finite loss; NaN for fewer than two."""
    r = np.full((len(losses), len(scores)), np.nan)
    for row, own, known in zip(r, losses, np.isfinite(losses), strict=True):
        if known.sum() > 1:
            row[:] = np.corrcoef(-own[known], scores[:, known])[0, 1:]
    return r


def peaks(steps: np.ndarray, r: np.ndarray, tolerance: float = 0.01) -> pd.DataFrame:
    """Where the correlations r [S, order] have their peaks: n, step, r and r at the end.

    The peak is the first step within `tolerance` of the largest r, because a larger n ends on a
    plateau; `passed`: whether r has fallen by more than that since.
    """
    best, last = np.nanmax(r, axis=0), r[-1]
    at = (r >= best - tolerance).argmax(axis=0)
    columns = {"step": steps[at], "r": best, "last": last, "passed": last < best - tolerance}
    return pd.DataFrame({"n": np.arange(1, r.shape[1] + 1), **columns})
