"""Counts of n-grams are those of a Counter, over shards and blocks."""

from collections import Counter

import numpy as np
import pytest

from jaxllm.data import ngrams
from tests.data.conftest import write_store


@pytest.mark.parametrize("block", [3, 17, 1 << 22])
def test_counts_are_those_of_a_counter(tmp_path, monkeypatch, block: int) -> None:
    monkeypatch.setattr(ngrams, "BLOCK", block)
    draw = np.random.default_rng(0)
    corpus = draw.integers(0, 5, 400).astype(np.uint16)
    lengths = np.array([90, 10, 150, 1, 2, 147])
    store = write_store(tmp_path, corpus, lengths, parts=3)
    tokens, documents = draw.integers(0, 7, 60), np.repeat([0, 1, 2], [3, 40, 17])
    counted = Counter[tuple[int, ...]]()
    for begin, end in zip(store.edges[:-1], store.edges[1:], strict=True):  # of each shard
        for n in range(1, 6):
            for at in range(begin, end - n + 1):
                counted[tuple(corpus[at : at + n].tolist())] += 1
    found = ngrams.count_ngrams(store, tokens, documents)
    for n in range(1, 6):
        for at in range(60):
            own = documents[max(0, at - n + 1)] == documents[at] and at >= n - 1
            gram = tuple(tokens[at - n + 1 : at + 1].tolist())
            assert found[n - 1, at] == (counted[gram] if own else 0)
    assert (found[4] > 0).any() and (found[1] == 0).any()
