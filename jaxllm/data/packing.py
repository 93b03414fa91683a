"""How documents become rows of T inputs and the T targets that follow them.

`concat` and `concat_masked` cut the concatenated documents into chunks: chunk k reads tokens
kT .. kT + T - 1 and predicts kT + 1 .. kT + T, so each token but the very first is a target once.
`pack` lays documents whole into rows as far as they fit. In each layout a document's BOS, which
nothing can predict, has weight 0, and the last chunk or an unfilled row is padded: no token is
dropped, and each other token of a domain is a target with weight 1 exactly once per epoch.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from jaxllm.data.store import TokenStore

Row = dict[str, np.ndarray]
PACK_WINDOW = 1 << 16


def empty_rows(count: int, length: int) -> Row:
    """`count` rows of padding."""
    names = ("inputs", "targets", "positions", "segment_ids")
    rows = {name: np.zeros((count, length), np.int32) for name in names}
    return rows | {"weights": np.zeros((count, length), np.float32)}


class ConcatRows:
    """Rows cut from the concatenated documents; masked, a row does not attend across them."""

    def __init__(self, store: TokenStore, length: int, masked: bool) -> None:
        self._store, self._length, self._masked = store, length, masked
        self.count = max(1, -(-(store.counts.tokens - 1) // length))

    def fill(self, row: Row, index: int) -> None:
        """Writes row `index` into the (zeroed) arrays [T] of `row`."""
        start = index * self._length
        stop = min(start + self._length + 1, self._store.counts.tokens)
        tokens = self._store.read(start, stop)
        n = len(tokens) - 1
        row["inputs"][:n] = tokens[:-1]
        row["targets"][:n] = tokens[1:]
        row["weights"][:n] = 1
        starts = self._store.starts
        low, high = np.searchsorted(starts, np.array([start + 1, stop], np.uint64))
        begins = starts[low:high].astype(np.int64) - start  # in 1 .. n: documents that start here
        row["weights"][begins - 1] = 0
        if self._masked:
            begins = np.concatenate([[0], begins[begins < n]])
            lengths = np.diff(np.append(begins, n))
            row["segment_ids"][:n] = np.repeat(np.arange(1, len(begins) + 1), lengths)
            row["positions"][:n] = np.arange(n) - np.repeat(begins, lengths)
        else:
            row["segment_ids"][:n] = 1
            row["positions"][:n] = np.arange(n)


@dataclasses.dataclass(frozen=True)
class PackPlan:
    """Which pieces of documents lie in which row.

    Attributes:
      starts: int64 [pieces], where each piece starts among the store's tokens.
      lengths: int32 [pieces], its inputs (it spans one token more, its last target).
      rows: int64 [rows + 1]; row r holds pieces rows[r] .. rows[r + 1] - 1.
    """

    starts: np.ndarray
    lengths: np.ndarray
    rows: np.ndarray


class PackedRows:
    """Rows of whole documents, as `plan` lays them; none attends to another."""

    def __init__(self, store: TokenStore, plan: PackPlan) -> None:
        self._store, self._plan = store, plan
        self.count = len(plan.rows) - 1

    def fill(self, row: Row, index: int) -> None:
        """Writes row `index` into the (zeroed) arrays [T] of `row`."""
        at = 0
        low, high = int(self._plan.rows[index]), int(self._plan.rows[index + 1])
        for segment, piece in enumerate(range(low, high), 1):
            start, n = int(self._plan.starts[piece]), int(self._plan.lengths[piece])
            tokens = self._store.read(start, start + n + 1)
            row["inputs"][at : at + n] = tokens[:-1]
            row["targets"][at : at + n] = tokens[1:]
            row["weights"][at : at + n] = 1
            row["segment_ids"][at : at + n] = segment
            row["positions"][at : at + n] = np.arange(n)
            at += n


def plan_packing(starts: np.ndarray, length: int, window: int = PACK_WINDOW) -> PackPlan:
    """Lays documents into rows of `length` inputs by best-fit decreasing.

    A longer document is cut into pieces of `length` and a rest. Pieces are packed in windows of
    `window` that follow the corpus, so memory stays bounded and a row's pieces lie near each
    other. Best-fit decreasing after Ding et al., "Fewer Truncations Improve Language Modeling",
    2024, section 3.

    Args:
      starts: integer [documents + 1], where each document starts, and the end of the last.
    """
    edges = np.asarray(starts, dtype=np.int64)
    inputs = np.diff(edges) - 1  # the last token of a document is only a target
    pieces = -(-inputs // length)  # none for a document of one token: it has nothing to predict
    number = np.arange(pieces.sum()) - np.repeat(np.cumsum(pieces) - pieces, pieces)
    piece_starts = np.repeat(edges[:-1], pieces) + number * length
    piece_lengths = np.minimum(np.repeat(inputs, pieces) - number * length, length)
    order: list[np.ndarray] = []
    counts: list[np.ndarray] = []
    for low in range(0, len(piece_starts), window):
        rows = _best_fit(piece_lengths[low : low + window], length)
        order += [np.array(row, np.int64) + low for row in rows]
        counts.append(np.array([len(row) for row in rows], np.int64))
    taken = np.concatenate(order) if order else np.zeros(0, np.int64)
    ends = np.cumsum(np.concatenate([[0], *counts]))
    return PackPlan(
        piece_starts[taken], piece_lengths[taken].astype(np.int32), ends.astype(np.int64)
    )


def _best_fit(lengths: np.ndarray, capacity: int) -> list[list[int]]:
    """Rows of piece numbers: longest piece first, each into the fullest row that has room."""
    rows: list[list[int]] = []
    by_room: list[list[int]] = [[] for _ in range(capacity + 1)]
    rooms = 0  # bit r is set while a row with room r is open: the fullest is one bit scan away
    for piece in np.argsort(-lengths, kind="stable").tolist():
        need = int(lengths[piece])
        fitting = rooms >> need
        if fitting:
            room = need + (fitting & -fitting).bit_length() - 1
            row = by_room[room].pop()
            if not by_room[room]:
                rooms &= ~(1 << room)
        else:
            room, row = capacity, len(rows)
            rows.append([])
        rows[row].append(piece)
        left = room - need
        if left:
            by_room[left].append(row)
            rooms |= 1 << left
    return rows
