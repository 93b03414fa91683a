"""How often the n-grams of some tokens occur in a corpus, counted in one pass over its store."""

from __future__ import annotations

import numpy as np

from jaxllm.data.store import TokenStore

BLOCK = 1 << 20  # tokens in memory at a time, beside a shard


def count_ngrams(
    store: TokenStore, tokens: np.ndarray, documents: np.ndarray, order: int = 5
) -> np.ndarray:
    """The counts in `store` of the n-grams that end at each of `tokens`, for n = 1 .. `order`.

    Exact, and bounded by what is asked: an n-gram is its first n - 1 tokens, by their number among
    those asked for, and a token, so that what does not occur in `tokens` is left out at once.

    `tokens` and `documents` are int [N]; n-grams do not reach from one document into the next.
    Returns int64 [order, N]; 0 where a document has fewer than n tokens up to there.
    """
    follows = np.append(False, documents[1:] == documents[:-1])
    numbers = [np.unique(tokens, return_inverse=True)]
    for _ in range(1, order):
        before = np.append(-1, numbers[-1][1][:-1])
        keys = np.where(follows & (before >= 0), before << 32 | tokens, -1)
        table = np.unique(keys[keys >= 0])
        numbers.append((table, np.where(keys >= 0, np.searchsorted(table, keys), -1)))
    counts = [np.zeros(len(table), np.int64) for table, _ in numbers]
    for shard in store.shards:
        content = store.shard_tokens(shard)
        for start in range(0, len(content), BLOCK):
            low = max(0, start - order + 1)  # for the n-grams that began in the block before
            block = content[low : start + BLOCK].astype(np.int64)
            found = np.zeros(len(block), np.int64)
            for n, (table, _) in enumerate(numbers):
                places = np.flatnonzero(found[:-1] >= 0) + 1 if n else np.arange(len(block))
                keys = found[places - 1] << 32 | block[places] if n else block
                found = np.full(len(block), -1)
                at = np.searchsorted(table, keys)
                same = np.append(table, -1)[at] == keys
                found[places[same]] = at[same]
                own = found[start - low :]
                counts[n] += np.bincount(own[own >= 0], minlength=len(table))
    return np.stack([np.append(c, 0)[ids] for c, (_, ids) in zip(counts, numbers, strict=True)])
