"""From documents to sequences of T inputs and T next-token targets.

`concat` and `concat_masked` split the concatenated documents: sequence k has inputs kT .. kT+T-1
and targets kT+1 .. kT+T, so each token but the very first is a target once. `pack` packs whole
documents, and splits those longer than T. In each layout the first token of a document (its BOS),
which cannot be predicted, has weight 0, and incomplete sequences are padded: no token is dropped,
and each other token of a domain is a target with weight 1 exactly once per epoch.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from jaxllm.data import blocks
from jaxllm.data.store import TokenStore, read_records, write_record
from jaxllm.errors import UserError
from jaxllm.kvstore import ByteRange

SequenceArrays = dict[str, np.ndarray]
Chunks = list[np.ndarray]
Range = tuple[int, int]
zip_ = functools.partial(zip, strict=True)


def empty_sequences(count: int, length: int) -> SequenceArrays:
    """`count` sequences of padding: int32 [count, length] by name, `weights` float32."""
    names = ("inputs", "targets", "positions", "segment_ids")
    arrays = {name: np.zeros((count, length), np.int32) for name in names}
    return arrays | {"weights": np.zeros((count, length), np.float32)}


class ConcatSequences:
    """The sequences of `concat`; and `concat_masked`, without attention across documents."""

    def __init__(self, store: TokenStore, length: int, masked: bool) -> None:
        self._store, self._length, self._masked = store, length, masked
        self.count = max(1, -(-(store.counts.tokens - 1) // length))  # per epoch

    def ranges(self, indices: Sequence[int]) -> list[list[Range]]:
        """The tokens of each chunk of sequences `indices`, the last target included."""
        starts, end = [index * self._length for index in indices], self._store.counts.tokens
        return [[(start, min(start + self._length + 1, end))] for start in starts]

    def find(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        """The sequences with targets among tokens [start, stop) of a shard, and their numbers."""
        targets = np.arange(max(start, 1), stop)
        return np.unique((targets - 1) // self._length, return_counts=True)

    def fill(self, out: SequenceArrays, chunks: Chunks) -> None:
        """Write a sequence with these chunks into the (zeroed) arrays [T] of `out`."""
        (tokens,) = chunks
        n = len(tokens) - 1
        begins = self._store.separators.begins(tokens)  # of tokens 1 .. n
        out["inputs"][:n] = tokens[:-1]
        out["targets"][:n] = tokens[1:]
        out["weights"][:n] = ~begins
        edges = np.concatenate([[0], np.flatnonzero(begins[:-1]) + 1] if self._masked else [[0]])
        lengths = np.diff(edges, append=n)
        out["segment_ids"][:n] = np.repeat(np.arange(1, len(edges) + 1), lengths)
        out["positions"][:n] = np.arange(n) - np.repeat(edges, lengths)


class PackedSequences:
    """The sequences of `pack`, as `pack_shard` planned them; UserError if it has not."""

    def __init__(self, store: TokenStore, length: int) -> None:
        self._store, self._name = store, packing_name(length)
        (plan,) = read_records(store.files, [_plan_name(store, length)])
        if plan is None:
            raise UserError(f"{store.files.directory} has no plan for {self._name}: prepare it")
        self._edges = np.cumsum([0, *plan["sequences"]])  # sequences before each shard
        self.count = int(self._edges[-1])
        self._held = functools.lru_cache(maxsize=2)(self._read_plan)

    def ranges(self, indices: Sequence[int]) -> list[list[Range]]:
        """As of `ConcatSequences`."""
        read = functools.partial(blocks.start_reads, self._store.files)
        places = np.asarray(indices)
        shards = np.searchsorted(self._edges, places, side="right") - 1
        names = [self._plan(shard) for shard in shards]
        places = 4 * (places - self._edges[shards])
        edges = read([ByteRange(f"{n}.edges", p, p + 8) for n, p in zip_(names, places.tolist())])
        spans = [(8 * np.frombuffer(pair, "<u4").astype(int)).tolist() for pair in edges()]
        plans = read([ByteRange(f"{n}.chunks", *span) for n, span in zip_(names, spans)])
        chunks = [np.frombuffer(plan, "<u4").astype(int).reshape(-1, 2) for plan in plans()]
        return [
            [(begin + int(start), begin + int(start + inputs) + 1) for start, inputs in plan]
            for begin, plan in zip_(self._store.edges[shards].tolist(), chunks)
        ]

    def find(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        """As of `ConcatSequences`."""
        shard = int(np.searchsorted(self._store.edges, start, side="right")) - 1
        edges, chunks = self._held(shard)
        first = self._store.edges[shard] + chunks[:, 0] + 1
        targets = np.minimum(stop, first + chunks[:, 1]) - np.maximum(start, first)
        (held,) = np.nonzero(targets > 0)
        sequences = np.searchsorted(edges, held, side="right") - 1 + self._edges[shard]
        return sequences, targets[held]

    def _plan(self, shard: int) -> str:
        return f"{self._name}/{self._store.shards[shard].name}"

    def _read_plan(self, shard: int) -> tuple[np.ndarray, np.ndarray]:
        """The edges [sequences + 1] and chunks [chunks, 2] of a shard."""

        def read(name: str, size: int) -> np.ndarray:
            everything = ByteRange(f"{self._plan(shard)}.{name}", 0, size)
            (content,) = blocks.start_reads(self._store.files, [everything])()
            return np.frombuffer(content, "<u4").astype(int)

        edges = read("edges", 4 * int(self._edges[shard + 1] - self._edges[shard] + 1))
        return edges, read("chunks", 8 * edges[-1]).reshape(-1, 2)

    def fill(self, out: SequenceArrays, chunks: Chunks) -> None:
        """As of `ConcatSequences`."""
        at = 0
        for segment, tokens in enumerate(chunks, 1):
            n = len(tokens) - 1
            place = slice(at, at + n)
            out["inputs"][place] = tokens[:-1]
            out["targets"][place] = tokens[1:]
            out["weights"][place] = 1
            out["segment_ids"][place] = segment
            out["positions"][place] = np.arange(n)
            at += n


def start_reads(store: TokenStore, ranges: list[list[Range]]) -> Callable[[], list[Chunks]]:
    """Start to read sequences with these `ranges` of chunks, all at once.

    Returns a function that waits for them: of each sequence the tokens of its chunks, int32, the
    inputs and then the last target.
    """
    wait = store.start_reads([one for chunks in ranges for one in chunks])

    def tokens() -> list[Chunks]:
        found = iter(wait())
        return [list(itertools.islice(found, len(chunks))) for chunks in ranges]

    return tokens


class ShardItem(NamedTuple):
    """A shard of a prepared corpus to be planned."""

    directory: str
    corpus: str
    shard: int
    size: int


def pack_shard(length: int, item: ShardItem) -> None:
    """Write the plan of a shard for sequences of `length` inputs, a job for `jaxllm.data.jobs`.

    It is the uint32 edges and chunks of `PackPlan`, and then the sequences' number.
    """
    store = TokenStore(item.directory, item.corpus)
    plan = plan_packing(store.document_starts(item.shard), length)
    name = f"{packing_name(length)}/{store.shards[item.shard].name}"
    chunks = np.stack([plan.starts, plan.lengths], axis=1)
    edges, table = plan.edges.astype("<u4").tobytes(), chunks.astype("<u4").tobytes()
    blocks.write(store.files, {f"{name}.edges": edges, f"{name}.chunks": table})
    write_record(store.files, name, {"sequences": len(plan.edges) - 1})


def unplanned_shards(store: TokenStore, length: int) -> list[ShardItem]:
    """The shards that are missing in the plan for sequences of `length` inputs."""
    if read_records(store.files, [_plan_name(store, length)]) != [None]:
        return []
    return [
        ShardItem(store.files.directory, store.name, index, 8 * shard.documents)
        for index, (shard, count) in enumerate(zip_(store.shards, _planned(store, length)))
        if count is None
    ]


def complete_packing(store: TokenStore, length: int) -> None:
    """Write the list of sequences per shard, once every shard is planned."""
    if read_records(store.files, [_plan_name(store, length)]) == [None]:
        counts = _planned(store, length)
        if None in counts:
            raise UserError(f"{store.files.directory}: {packing_name(length)} is not complete")
        write_record(store.files, _plan_name(store, length), {"sequences": counts})


def forget_plan(store: TokenStore, length: int) -> None:
    """Delete the records of a plan, for `prepare` to make it again."""
    names = [store.name, *(shard.name for shard in store.shards)]
    store.files.delete([f"{packing_name(length)}/{name}.json" for name in names])


def _planned(store: TokenStore, length: int) -> list[int | None]:
    names = [f"{packing_name(length)}/{shard.name}" for shard in store.shards]
    records = read_records(store.files, names)
    return [record["sequences"] if record else None for record in records]


def packing_name(length: int) -> str:
    """The folder with plans for sequences of `length` inputs."""
    return f"packing-{length}"


def _plan_name(store: TokenStore, length: int) -> str:
    return f"{packing_name(length)}/{store.name}"


class PackPlan(NamedTuple):
    """The assignment of document chunks to sequences."""

    starts: np.ndarray  # int64 [chunks], offset of each chunk in the store's tokens
    # int64 [chunks], inputs per chunk (it spans one token more, its last target)
    lengths: np.ndarray
    # int64 [sequences + 1]; sequence s holds chunks edges[s] .. edges[s + 1] - 1.
    edges: np.ndarray


def plan_packing(starts: np.ndarray, length: int) -> PackPlan:
    """Pack documents into sequences of `length` inputs by best-fit decreasing.

    Longer documents are split into chunks of `length` and a remainder. Best-fit decreasing after
    Ding et al., "Fewer Truncations Improve Language Modeling", 2024, section 3. A store is planned
    shard by shard, so memory stays bounded and the chunks of a sequence lie near each other.
    `starts` are integers [documents + 1], the offset of each document, and the end of the last.
    """
    edges = np.asarray(starts, dtype=np.int64)
    inputs = np.diff(edges) - 1  # the last token of a document is only a target
    chunks = -(-inputs // length)  # 0 for a document of one token, which has no target
    number = np.arange(chunks.sum()) - np.repeat(np.cumsum(chunks) - chunks, chunks)
    chunk_starts = np.repeat(edges[:-1], chunks) + number * length
    chunk_lengths = np.minimum(np.repeat(inputs, chunks) - number * length, length)
    bins = _best_fit(chunk_lengths, length)
    order = np.array([chunk for members in bins for chunk in members], np.int64)
    ends = np.cumsum([0, *map(len, bins)])
    return PackPlan(chunk_starts[order], chunk_lengths[order], ends)


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
