"""Many spans in few rows: fixed shapes, little padding, no attention between spans.

Padding every example to the longest is why evaluation harnesses are slow. Here the spans of a
task share rows, kept apart by segment ids. Attention costs length², so short spans go into
shorter rows; there are only a few row lengths, each with one batch shape, so that the model is
compiled once per length and not once per task.
"""

from __future__ import annotations

import bisect
import dataclasses
from collections.abc import Sequence

import numpy as np

from jaxllm.evaluation.spans import Span
from jaxllm.models.batch import Batch


@dataclasses.dataclass(frozen=True)
class PackedBatch:
    """One batch for the device, and where the spans lie in it.

    Attributes:
      batch: NumPy arrays [rows, length].
      spans: int64 [S], which span each of the next two is about.
      starts, ends: int64 [S], the scored targets of a span in the flattened [rows * length].
    """

    batch: Batch
    spans: np.ndarray
    starts: np.ndarray
    ends: np.ndarray


@dataclasses.dataclass(frozen=True)
class Packed:
    """All batches of a task.

    Attributes:
      batches: what to run.
      num_spans: number of spans packed.
      tokens: positions that hold a token of a span.
      slots: all positions, padding included.
    """

    batches: tuple[PackedBatch, ...]
    num_spans: int
    tokens: int
    slots: int

    @property
    def padding(self) -> float:
        """Share of the positions that is computed for nothing."""
        return 1 - self.tokens / self.slots if self.slots else 0.0


def row_lengths(max_length: int, shortest: int) -> tuple[int, ...]:
    """Row lengths in use, ascending: `max_length` and its quarters, down to `shortest`."""
    lengths = [max_length]
    while lengths[-1] // 4 >= shortest:
        lengths.append(lengths[-1] // 4)
    return tuple(reversed(lengths))


def assign_rows(lengths: Sequence[int], available: Sequence[int]) -> list[tuple[int, list[int]]]:
    """Which spans share a row: best-fit decreasing.

    A span goes into the fullest row that still holds it. If there is none, it opens a row of the
    smallest length that would hold it twice, so that what is left is useful to others.

    Args:
      lengths: positions that each span takes; none above the largest of `available`.
      available: row lengths, ascending.

    Returns:
      For each row its length and the numbers of its spans.
    """
    rows: list[tuple[int, list[int]]] = []
    room: list[tuple[int, int]] = []  # (positions left, number of the row), sorted
    for span in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        need = lengths[span]
        place = bisect.bisect_left(room, (need, -1))
        if place < len(room):
            left, row = room.pop(place)
        else:
            left = next((size for size in available if size >= 2 * need), available[-1])
            row = len(rows)
            rows.append((left, []))
        rows[row][1].append(span)
        if left > need:
            bisect.insort(room, (left - need, row))
    return rows


def pack(spans: Sequence[Span], *, lengths: Sequence[int], tokens_per_batch: int) -> Packed:
    """Packs `spans` into batches of `tokens_per_batch` positions, in rows of `lengths`.

    Args:
      spans: what to score.
      lengths: row lengths, ascending; the last holds every span.
      tokens_per_batch: a multiple of the largest length; a batch of rows of length l has
        tokens_per_batch // l rows.
    """
    rows = assign_rows([span.length for span in spans], lengths)
    batches = []
    for length in lengths:
        contents = [members for size, members in rows if size == length]
        per_batch = tokens_per_batch // length
        for first in range(0, len(contents), per_batch):
            batches.append(_batch(spans, contents[first : first + per_batch], per_batch, length))
    return Packed(
        batches=tuple(batches),
        num_spans=len(spans),
        tokens=sum(span.length for span in spans),
        slots=sum(batch.batch.inputs.size for batch in batches),
    )


def _batch(
    spans: Sequence[Span], contents: Sequence[Sequence[int]], rows: int, length: int
) -> PackedBatch:
    inputs, targets, positions, segments = (np.zeros((rows, length), np.int32) for _ in range(4))
    weights = np.zeros((rows, length), np.float32)
    numbers, starts, ends = [], [], []
    for row, members in enumerate(contents):
        offset = 0
        for segment, number in enumerate(members, start=1):
            span = spans[number]
            here = slice(offset, offset + span.length)
            inputs[row, here] = span.tokens[:-1]
            targets[row, here] = span.tokens[1:]
            positions[row, here] = np.arange(span.length)
            segments[row, here] = segment
            weights[row, here.stop - span.scored : here.stop] = 1
            numbers.append(number)
            starts.append(row * length + here.stop - span.scored)
            ends.append(row * length + here.stop)
            offset = here.stop
    domains = np.zeros(rows, np.int32)
    batch = Batch(
        inputs=inputs, targets=targets, weights=weights,
        positions=positions, segment_ids=segments, domains=domains,
    )  # fmt: skip
    return PackedBatch(batch, np.asarray(numbers), np.asarray(starts), np.asarray(ends))
