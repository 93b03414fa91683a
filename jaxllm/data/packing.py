"""From documents to sequences of T inputs and T next-token targets.

`concat` and `concat_masked` split the concatenated documents: sequence k has inputs kT .. kT+T-1
and targets kT+1 .. kT+T, so each token but the very first is a target once. `pack` packs whole
documents, and splits those longer than T. In each layout the first token of a document (its BOS),
which cannot be predicted, has weight 0, and incomplete sequences are padded: no token is dropped,
and each other token of a domain is a target with weight 1 exactly once per epoch.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from jaxllm.data.store import TokenStore

SequenceArrays = dict[str, np.ndarray]
PACK_WINDOW = 1 << 16


def empty_sequences(count: int, length: int) -> SequenceArrays:
    """`count` sequences of padding: int32 [count, length] by name, `weights` float32."""
    names = ("inputs", "targets", "positions", "segment_ids")
    arrays = {name: np.zeros((count, length), np.int32) for name in names}
    return arrays | {"weights": np.zeros((count, length), np.float32)}


class ConcatSequences:
    """Chunks of the concatenated documents; `masked` disables attention across documents.

    Attributes:
      count: sequences per epoch.
    """

    def __init__(self, store: TokenStore, length: int, masked: bool) -> None:
        self._store, self._length, self._masked = store, length, masked
        self.count = max(1, -(-(store.counts.tokens - 1) // length))

    def fill(self, out: SequenceArrays, index: int) -> None:
        """Write sequence `index` into the (zeroed) arrays [T] of `out`."""
        start = index * self._length
        stop = min(start + self._length + 1, self._store.counts.tokens)
        tokens = self._store.read(start, stop)
        n = len(tokens) - 1
        out["inputs"][:n] = tokens[:-1]
        out["targets"][:n] = tokens[1:]
        out["weights"][:n] = 1
        starts = self._store.starts
        low, high = np.searchsorted(starts, np.array([start + 1, stop], np.uint64))
        begins = starts[low:high].astype(np.int64) - start  # in 1 .. n: documents that start here
        out["weights"][begins - 1] = 0
        if self._masked:
            begins = np.concatenate([[0], begins[begins < n]])
            lengths = np.diff(np.append(begins, n))
            out["segment_ids"][:n] = np.repeat(np.arange(1, len(begins) + 1), lengths)
            out["positions"][:n] = np.arange(n) - np.repeat(begins, lengths)
        else:
            out["segment_ids"][:n] = 1
            out["positions"][:n] = np.arange(n)


class PackPlan(NamedTuple):
    """The assignment of document chunks to sequences.

    Attributes:
      starts: int64 [chunks], offset of each chunk in the store's tokens.
      lengths: int32 [chunks], inputs per chunk (it spans one token more, its last target).
      edges: int64 [sequences + 1]; sequence s holds chunks edges[s] .. edges[s + 1] - 1.
    """

    starts: np.ndarray
    lengths: np.ndarray
    edges: np.ndarray


class PackedSequences:
    """Sequences of packed documents, as planned, without attention across documents.

    Attributes:
      count: sequences per epoch.
    """

    def __init__(self, store: TokenStore, plan: PackPlan) -> None:
        self._store, self._plan = store, plan
        self.count = len(plan.edges) - 1

    def fill(self, out: SequenceArrays, index: int) -> None:
        """Write sequence `index` into the (zeroed) arrays [T] of `out`."""
        at = 0
        low, high = int(self._plan.edges[index]), int(self._plan.edges[index + 1])
        for segment, chunk in enumerate(range(low, high), 1):
            start, n = int(self._plan.starts[chunk]), int(self._plan.lengths[chunk])
            tokens = self._store.read(start, start + n + 1)
            out["inputs"][at : at + n] = tokens[:-1]
            out["targets"][at : at + n] = tokens[1:]
            out["weights"][at : at + n] = 1
            out["segment_ids"][at : at + n] = segment
            out["positions"][at : at + n] = np.arange(n)
            at += n


def plan_packing(starts: np.ndarray, length: int, window: int = PACK_WINDOW) -> PackPlan:
    """Pack documents into sequences of `length` inputs by best-fit decreasing.

    Longer documents are split into chunks of `length` and a remainder. Each window of `window`
    chunks, in corpus order, is packed on its own, so memory stays bounded and the chunks of a
    sequence lie near each other. Best-fit decreasing after Ding et al., "Fewer Truncations Improve
    Language Modeling", 2024, section 3.

    Args:
      starts: integer [documents + 1], offset of each document, and the end of the last.
    """
    edges = np.asarray(starts, dtype=np.int64)
    inputs = np.diff(edges) - 1  # the last token of a document is only a target
    chunks = -(-inputs // length)  # 0 for a document of one token, which has no target
    number = np.arange(chunks.sum()) - np.repeat(np.cumsum(chunks) - chunks, chunks)
    chunk_starts = np.repeat(edges[:-1], chunks) + number * length
    chunk_lengths = np.minimum(np.repeat(inputs, chunks) - number * length, length)
    order: list[np.ndarray] = []
    counts: list[np.ndarray] = []
    for low in range(0, len(chunk_starts), window):
        bins = _best_fit(chunk_lengths[low : low + window], length)
        order += [np.array(members, np.int64) + low for members in bins]
        counts.append(np.array([len(members) for members in bins], np.int64))
    taken = np.concatenate(order) if order else np.zeros(0, np.int64)
    ends = np.cumsum(np.concatenate([[0], *counts]))
    return PackPlan(
        chunk_starts[taken], chunk_lengths[taken].astype(np.int32), ends.astype(np.int64)
    )


def _best_fit(lengths: np.ndarray, capacity: int) -> list[list[int]]:
    """Bins of chunk indices: longest chunk first, each into the fullest bin with room."""
    bins: list[list[int]] = []
    by_room: list[list[int]] = [[] for _ in range(capacity + 1)]
    rooms = 0  # bit r is set while a bin with room r is open: the fullest is one bit scan away
    for chunk in np.argsort(-lengths, kind="stable").tolist():
        need = int(lengths[chunk])
        fitting = rooms >> need
        if fitting:
            room = need + (fitting & -fitting).bit_length() - 1
            number = by_room[room].pop()
            if not by_room[room]:
                rooms &= ~(1 << room)
        else:
            room, number = capacity, len(bins)
            bins.append([])
        bins[number].append(chunk)
        left = room - need
        if left:
            by_room[left].append(number)
            rooms |= 1 << left
    return bins
