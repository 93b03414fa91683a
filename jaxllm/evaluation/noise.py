"""Corrupt tokens of a text, as in section 4.1 of "Training Trajectories" (arXiv 2212.09803)."""

from __future__ import annotations

import zlib

import numpy as np

LENGTH = 100  # tokens of a text, in the paper
BEFORE, NOISY, AFTER = range(3)  # parts of it: before any noise, noise, after some


def corrupt(
    ids: np.ndarray, noise: str, among: np.ndarray, seed: str
) -> tuple[np.ndarray, np.ndarray]:
    """The tokens with <kind>_<percent> noise, and the part of each: BEFORE, NOISY or AFTER.

    replace: by tokens drawn from `among`. delete: what follows the first gap is AFTER; one token
    stays. insert: a drawn token after each of the share. repeat: each of the share twice. For a
    `seed`, the tokens changed at 20 % are among those at 40 %, and change alike.
    """
    kind, _, percent = noise.partition("_")
    rng, n = np.random.default_rng(zlib.crc32(seed.encode())), len(ids)
    count = min(round(int(percent) / 100 * n), n - (kind == "delete"))
    chosen, drawn = np.isin(np.arange(n), rng.permutation(n)[:count]), rng.choice(among, n)
    noisy = chosen
    if kind == "replace":
        ids = np.where(chosen, drawn, ids)
    elif kind == "delete":
        ids, noisy = ids[~chosen], chosen[~chosen]
    else:
        places, added = np.flatnonzero(chosen) + 1, drawn if kind == "insert" else ids
        ids, noisy = np.insert(ids, places, added[chosen]), np.insert(chosen & False, places, True)
    first = int(np.argmax(chosen if kind == "delete" else noisy)) if count > 0 else len(ids)
    return ids, np.where(np.arange(len(ids)) < first, BEFORE, np.where(noisy, NOISY, AFTER))
