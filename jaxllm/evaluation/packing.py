"""Pack spans into few sequences: fixed shapes, little padding, shared prefixes.

Evaluation harnesses are slow because they pad every example to the longest and encode a context
again for each of its options. Here the spans of a task are sorted and laid out as a tree: tokens
that a span shares with the previous one are not repeated, and `visible_until`, the position up to
which a token may be attended to, isolates branches and groups.

Attention costs length², so short groups go into shorter sequences; there are only a few sequence
lengths, each with one batch shape, so that the model is compiled once per shape, not per task.
"""

from __future__ import annotations

import bisect
import dataclasses
from collections.abc import Sequence

import numpy as np

from jaxllm.evaluation.spans import Span
from jaxllm.models.batch import TreeBatch

MIN_SHARED = 4  # a span joins a group if it shares at least 1/4 of its tokens


@dataclasses.dataclass
class PrefixGroup:
    """Adjacent spans in sorted order, packed into one sequence with shared prefixes."""

    # index of each span, and the number of leading tokens that it shares with the previous one
    members: list[tuple[int, int]] = dataclasses.field(default_factory=list)
    scored: int = 0  # number of scored targets
    size: int = 0  # positions of the group in its sequence


@dataclasses.dataclass(frozen=True)
class PackedBatch:
    """One device batch, and the location of each span in its scores."""

    batch: TreeBatch  # NumPy arrays; [B, T], and [B, S] of the targets
    spans: np.ndarray  # int64 [N], indices of the spans
    starts: np.ndarray  # int64 [N], of a span's scored targets in the flattened [B * S]
    ends: np.ndarray  # likewise
    tokens: int  # positions with a token; shared prefixes count once

    @property
    def shape(self) -> tuple[int, int]:
        """B and T."""
        rows, length = self.batch.inputs.shape
        return rows, length


def sequence_lengths(max_length: int, shortest: int) -> tuple[int, ...]:
    """Sequence lengths, ascending: `max_length`, a fourth of it, and so on down to `shortest`."""
    lengths = [max_length]
    while lengths[0] // 4 >= shortest:
        lengths.insert(0, lengths[0] // 4)
    return tuple(lengths)


def target_counts(length: int) -> tuple[int, ...]:
    """Allowed numbers of targets per sequence: length / 16, length / 4, length."""
    return tuple(sorted({max(1, length // 16), max(1, length // 4), length}))


def pack(
    spans: Sequence[Span], *, lengths: Sequence[int], tokens_per_batch: int
) -> tuple[PackedBatch, ...]:
    """Pack `spans` into batches of `tokens_per_batch` positions, in sequences of `lengths`.

    `lengths` ascend, and no span is longer than the last; `tokens_per_batch` is a multiple of it. A
    batch of length T has tokens_per_batch // T sequences.
    """
    groups = prefix_groups(spans, lengths[-1])
    sequences = bin_pack([group.size for group in groups], lengths)
    batches = []
    for length in lengths:
        contents = [[groups[i] for i in members] for size, members in sequences if size == length]
        # sequences with similarly many targets share a batch, so that few batches need all
        contents.sort(key=lambda sequence: -sum(group.scored for group in sequence))
        rows = tokens_per_batch // length
        for first in range(0, len(contents), rows):
            batches.append(_batch(spans, contents[first : first + rows], rows, length))
    return tuple(batches)


def prefix_groups(spans: Sequence[Span], longest: int) -> list[PrefixGroup]:
    """Sort the spans and group adjacent ones with a common prefix, up to `longest` positions."""
    order = sorted(range(len(spans)), key=lambda i: spans[i].tokens.astype(">i4").tobytes())
    groups: list[PrefixGroup] = []
    for previous, number in zip([None, *order], order, strict=False):
        span = spans[number]
        shared = 0 if previous is None else _common(spans[previous], span)
        new = span.length - shared
        if shared * MIN_SHARED < span.length or groups[-1].size + new > longest:
            groups.append(PrefixGroup())
            shared, new = 0, span.length
        groups[-1].members.append((number, shared))
        groups[-1].scored += span.scored
        groups[-1].size += new
    return groups


def _common(previous: Span, span: Span) -> int:
    """Number of leading tokens that `span` can share with the previous one.

    They end before its first scored target, because a position predicts only one target.
    """
    limit = min(previous.length, span.length - span.scored)
    differ = previous.tokens[:limit] != span.tokens[:limit]
    return int(differ.argmax()) if differ.any() else limit


def bin_pack(sizes: Sequence[int], lengths: Sequence[int]) -> list[tuple[int, list[int]]]:
    """Assign groups to sequences by best-fit decreasing bin packing.

    A group goes into the fullest sequence with room for it. If there is none, it opens a sequence
    of the smallest length that would hold it twice, so that the remainder is useful. `sizes` are
    the positions of the groups, at most `lengths[-1]`; `lengths` ascend. Returns the length of each
    sequence and the indices of its groups.
    """
    sequences: list[tuple[int, list[int]]] = []
    room: list[tuple[int, int]] = []  # (free positions, index of the sequence), sorted
    for group in sorted(range(len(sizes)), key=lambda i: -sizes[i]):
        size = sizes[group]
        place = bisect.bisect_left(room, (size, -1))
        if place < len(room):
            free, index = room.pop(place)
        else:
            free = next((length for length in lengths if length >= 2 * size), lengths[-1])
            index = len(sequences)
            sequences.append((free, []))
        sequences[index][1].append(group)
        if free > size:
            bisect.insort(room, (free - size, index))
    return sequences


def _batch(
    spans: Sequence[Span], contents: Sequence[Sequence[PrefixGroup]], rows: int, length: int
) -> PackedBatch:
    most = max(sum(group.scored for group in sequence) for sequence in contents)
    width = next(count for count in target_counts(length) if count >= most)
    inputs, positions = np.zeros((2, rows, length), np.int32)
    visible_until = np.tile(np.arange(1, length + 1, dtype=np.int32), (rows, 1))
    target_index, targets = np.zeros((2, rows, width), np.int32)
    bounds = []  # of each span: its index, start and end
    for row, sequence in enumerate(contents):
        offset = scored = 0
        for group in sequence:
            path = np.zeros(0, np.int64)  # positions of the current span's tokens
            for number, shared in group.members:
                span = spans[number]
                visible_until[row, path[shared:]] = offset
                new = np.arange(offset, offset + span.length - shared)
                path = np.concatenate([path[:shared], new])
                inputs[row, new] = span.tokens[shared:-1]
                positions[row, new] = np.arange(shared, span.length)
                offset += len(new)
                own = slice(scored, scored + span.scored)
                target_index[row, own] = path[-span.scored :]
                targets[row, own] = span.tokens[-span.scored :]
                bounds.append((number, row * width + own.start, row * width + own.stop))
                scored = own.stop
            visible_until[row, path] = offset
    batch = TreeBatch(inputs, positions, visible_until, target_index, targets)
    tokens = sum(group.size for sequence in contents for group in sequence)
    numbers, starts, ends = np.asarray(bounds, np.int64).T
    return PackedBatch(batch, numbers, starts, ends, tokens)
