"""Pack spans into few sequences: fixed shapes, little padding, shared prefixes.

Evaluation harnesses are slow because they pad every example to the longest and encode a context
again for each of its options. Here the spans of a task are sorted, so that those with a common
prefix are adjacent, and laid out as a tree: tokens that a span shares with the previous one are not
repeated. `visible_until` is the position up to which a token may be attended to, which isolates
branches and groups. The options of a question share its context, and the questions of a subject
their few-shot examples.

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


@dataclasses.dataclass(frozen=True)
class PrefixGroup:
    """Adjacent spans in sorted order, packed into one sequence with shared prefixes.

    Attributes:
      spans: indices of the spans, each sharing a prefix with the previous one.
      shared: number of leading tokens that each shares with the previous one; 0 for the first.
      size: positions of the group in its sequence.
    """

    spans: tuple[int, ...]
    shared: tuple[int, ...]
    size: int


@dataclasses.dataclass(frozen=True)
class PackedBatch:
    """One device batch, and the location of each span in its scores.

    Attributes:
      batch: NumPy arrays; [B, T] and [B, slots].
      spans: int64 [S], indices of the spans.
      starts, ends: int64 [S], bounds of a span's scored targets in the flattened [B * slots].
    """

    batch: TreeBatch
    spans: np.ndarray
    starts: np.ndarray
    ends: np.ndarray


@dataclasses.dataclass(frozen=True)
class Packed:
    """All batches of a task.

    Attributes:
      batches: device batches.
      spans: all spans, by index.
      tokens: positions with a token; shared prefixes count once.
      slots: all positions, padding included.
    """

    batches: tuple[PackedBatch, ...]
    spans: tuple[Span, ...]
    tokens: int
    slots: int

    @property
    def padding(self) -> float:
        """Fraction of the positions without a token."""
        return 1 - self.tokens / self.slots if self.slots else 0.0

    @property
    def sharing(self) -> float:
        """Fraction of the spans' tokens saved by shared prefixes."""
        alone = sum(span.length for span in self.spans)
        return 1 - self.tokens / alone if alone else 0.0


def row_lengths(max_length: int, shortest: int) -> tuple[int, ...]:
    """Sequence lengths, ascending: `max_length`, a fourth of it, and so on down to `shortest`."""
    lengths = [max_length]
    while lengths[-1] // 4 >= shortest:
        lengths.append(lengths[-1] // 4)
    return tuple(reversed(lengths))


def slot_counts(length: int) -> tuple[int, ...]:
    """Allowed numbers of scored positions per sequence: length / 16, length / 4, length."""
    return tuple(sorted({max(1, length // 16), max(1, length // 4), length}))


def prefix_groups(spans: Sequence[Span], longest: int) -> list[PrefixGroup]:
    """Sort the spans and group adjacent ones with a common prefix, up to `longest` positions.

    The shared prefix ends before a span's first scored target, because a position predicts only
    one target.
    """
    order = sorted(range(len(spans)), key=lambda i: spans[i].tokens.astype(">i4").tobytes())
    groups: list[PrefixGroup] = []
    members: list[int] = []
    shares: list[int] = []
    size = 0
    for place, number in enumerate(order):
        span = spans[number]
        share = _common(spans[order[place - 1]], span) if members else 0
        if members and (share * MIN_SHARED < span.length or size + span.length - share > longest):
            groups.append(PrefixGroup(tuple(members), tuple(shares), size))
            members, shares, size, share = [], [], 0, 0
        members.append(number)
        shares.append(share)
        size += span.length - share
    if members:
        groups.append(PrefixGroup(tuple(members), tuple(shares), size))
    return groups


def bin_pack(sizes: Sequence[int], available: Sequence[int]) -> list[tuple[int, list[int]]]:
    """Assign groups to sequences by best-fit decreasing bin packing.

    A group goes into the fullest sequence with room for it. If there is none, it opens a sequence
    of the smallest length that would hold it twice, so that the remainder is useful.

    Args:
      sizes: positions of each group; at most `available[-1]`.
      available: sequence lengths, ascending.

    Returns:
      For each sequence its length and the indices of its groups.
    """
    rows: list[tuple[int, list[int]]] = []
    room: list[tuple[int, int]] = []  # (free positions, sequence index), sorted
    for group in sorted(range(len(sizes)), key=lambda i: -sizes[i]):
        need = sizes[group]
        place = bisect.bisect_left(room, (need, -1))
        if place < len(room):
            left, row = room.pop(place)
        else:
            left = next((size for size in available if size >= 2 * need), available[-1])
            row = len(rows)
            rows.append((left, []))
        rows[row][1].append(group)
        if left > need:
            bisect.insort(room, (left - need, row))
    return rows


def pack(
    spans: Sequence[Span], *, lengths: Sequence[int], tokens_per_batch: int, isolate: bool = False
) -> Packed:
    """Pack `spans` into batches of `tokens_per_batch` positions, in sequences of `lengths`.

    Args:
      spans: the spans to score.
      lengths: sequence lengths, ascending; no span is longer than the last.
      tokens_per_batch: a multiple of the largest length; a batch of length T has
        tokens_per_batch // T sequences.
      isolate: whether each span gets its own sequence.
    """
    if isolate:
        groups = [PrefixGroup((i,), (0,), span.length) for i, span in enumerate(spans)]
        rows = [(lengths[bisect.bisect_left(lengths, g.size)], [i]) for i, g in enumerate(groups)]
    else:
        groups = prefix_groups(spans, lengths[-1])
        rows = bin_pack([group.size for group in groups], lengths)
    batches = []
    for length in lengths:
        contents = [[groups[i] for i in members] for size, members in rows if size == length]
        per_batch = tokens_per_batch // length
        # sequences with similarly many targets share a batch, so that few batches need all slots
        contents.sort(key=lambda row: -_scored(spans, row))
        for first in range(0, len(contents), per_batch):
            batches.append(_batch(spans, contents[first : first + per_batch], per_batch, length))
    return Packed(
        batches=tuple(batches),
        spans=tuple(spans),
        tokens=sum(group.size for group in groups),
        slots=sum(batch.batch.inputs.size for batch in batches),
    )


def _common(before: Span, span: Span) -> int:
    """Number of leading tokens that `span` can share with the previous one."""
    limit = min(before.length, span.length - span.scored)
    differ = before.tokens[:limit] != span.tokens[:limit]
    return int(differ.argmax()) if differ.any() else limit


def _scored(spans: Sequence[Span], groups: Sequence[PrefixGroup]) -> int:
    return sum(spans[number].scored for group in groups for number in group.spans)


def _batch(
    spans: Sequence[Span], contents: Sequence[Sequence[PrefixGroup]], rows: int, length: int
) -> PackedBatch:
    most = max(_scored(spans, row) for row in contents)
    width = next(count for count in slot_counts(length) if count >= most)
    inputs, positions = np.zeros((2, rows, length), np.int32)
    visible_until = np.tile(np.arange(1, length + 1, dtype=np.int32), (rows, 1))
    slots, targets = np.zeros((2, rows, width), np.int32)
    numbers, starts, ends = [], [], []
    for row, members in enumerate(contents):
        offset, slot = 0, 0
        for group in members:
            path = np.zeros(0, np.int64)  # positions of the current span's tokens
            for number, share in zip(group.spans, group.shared, strict=True):
                span = spans[number]
                visible_until[row, path[share:]] = offset
                fresh = np.arange(offset, offset + span.length - share)
                path = np.concatenate([path[:share], fresh])
                inputs[row, fresh] = span.tokens[share:-1]
                positions[row, fresh] = np.arange(share, span.length)
                offset += len(fresh)
                here = slice(slot, slot + span.scored)
                slots[row, here] = path[-span.scored :]
                targets[row, here] = span.tokens[-span.scored :]
                numbers.append(number)
                starts.append(row * width + here.start)
                ends.append(row * width + here.stop)
                slot = here.stop
            visible_until[row, path] = offset
    batch = TreeBatch(inputs, positions, visible_until, slots, targets)
    return PackedBatch(batch, np.asarray(numbers), np.asarray(starts), np.asarray(ends))
