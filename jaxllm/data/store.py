"""A prepared corpus: one domain and split, tokenized, in shards of token ids.

    <part>-000.tokens    the concatenated documents of a shard, uint16 or uint32, little-endian
    <part>-000.starts    uint64, offset of each document in the shard, and the total
    <part>.json          the shards of a part of the corpus, with counts; written after them
    <corpus>.json        the shards of all parts in order, and totals; written last

The directory is local or in a bucket (`jaxllm.kvstore`). Parts and corpora are named by hashes of
their contents, so that a corpus which gains a file shares the other parts with what it was, and
processes which prepare the same part write the same bytes. Files are written whole, once, and have
checksums: those of a shard are `blocks`.

Opening a corpus reads <corpus>.json. A stretch of tokens is a byte range of a shard, or of a few
neighbours, so no index is held in memory, and any number of ranges costs one round of requests.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np

from jaxllm.data import blocks
from jaxllm.data.tokenizer import Separators
from jaxllm.errors import UserError
from jaxllm.io import sealed, unsealed
from jaxllm.kvstore import ByteRange, Damaged, KeyValueStore

FORMAT_VERSION = 5
SHARD_TOKENS = 1 << 26


@dataclasses.dataclass(frozen=True)
class Counts:
    """The size of a corpus or a part of it, with counts of omissions."""

    documents: int = 0  # number of documents
    tokens: int = 0  # number of tokens, BOS and EOS included
    text_bytes: int = 0  # UTF-8 bytes of the texts
    empty: int = 0  # documents without text, left out
    bad: int = 0  # unreadable lines, left out
    # separators (see `Separators`) inside of documents, where sequences take another document to
    # begin
    inner_separators: int = 0


def counts_of(records: Sequence[Mapping[str, Any]]) -> Counts:
    """The sums of the counts in records of parts."""
    names = [field.name for field in dataclasses.fields(Counts)]
    return Counts(**{name: sum(record[name] for record in records) for name in names})


class Shard(NamedTuple):
    """A shard of a store: the files `<name>.tokens` and `<name>.starts`."""

    name: str
    documents: int
    tokens: int
    digest: str


def digest_of(tokens: bytes, starts: bytes) -> str:
    """The digest of a shard with these files."""
    digest = hashlib.blake2b(tokens, digest_size=16)
    digest.update(starts)
    return digest.hexdigest()


class ShardWriter:
    """The writer of the shards of one part."""

    def __init__(self, files: KeyValueStore, part: str, dtype: np.dtype) -> None:
        self._files, self._part, self._dtype = files, part, np.dtype(dtype)
        self._clear()
        self.shards: list[Shard] = []

    def _clear(self) -> None:
        self._ids: list[np.ndarray] = []
        self._lengths: list[np.ndarray] = []
        self._tokens = 0

    def add(self, ids: np.ndarray, lengths: np.ndarray) -> None:
        """Append documents of `lengths` tokens, concatenated in `ids`."""
        self._ids.append(ids.astype(self._dtype))
        self._lengths.append(lengths)
        self._tokens += len(ids)
        if self._tokens >= SHARD_TOKENS:
            self.flush()

    def flush(self) -> None:
        """Write a shard of the documents that were added since the last one."""
        if not self._tokens:
            return
        tokens = np.concatenate(self._ids).tobytes()
        edges = np.cumsum(np.concatenate([[0], *self._lengths]), dtype="<u8")
        starts = edges.tobytes()
        name = f"{self._part}-{len(self.shards):03d}"
        blocks.write(self._files, {f"{name}.tokens": tokens, f"{name}.starts": starts})
        self.shards.append(Shard(name, len(edges) - 1, self._tokens, digest_of(tokens, starts)))
        self._clear()


def write_record(files: KeyValueStore, name: str, record: Mapping[str, Any]) -> None:
    """Write <name>.json."""
    files.write({f"{name}.json": sealed(record).encode()})


def read_records(files: KeyValueStore, names: Sequence[str]) -> list[dict[str, Any] | None]:
    """The content of each <name>.json; None where it does not exist or is damaged."""

    def record(content: bytes | None) -> dict[str, Any] | None:
        with contextlib.suppress(ValueError):
            return unsealed(content) if content is not None else None
        return None

    return [record(content) for content in files.read(*(f"{name}.json" for name in names))]


def write_part(
    files: KeyValueStore, part: str, shards: Sequence[Shard], counts: Counts, **other: object
) -> None:
    """Write the record of a part whose shards are written."""
    write_record(files, part, {"shards": shards, **dataclasses.asdict(counts), **other})


def write_corpus(
    files: KeyValueStore,
    corpus: str,
    parts: Sequence[Mapping[str, Any]],
    dtype: np.dtype,
    separators: Separators,
    **other: object,
) -> None:
    """Complete a corpus of parts with these records."""
    shards = [Shard(*shard) for part in parts for shard in part["shards"]]
    digest = hashlib.blake2b("".join(s.digest for s in shards).encode(), digest_size=16)
    meta = {
        "format": FORMAT_VERSION,
        "dtype": np.dtype(dtype).str,
        "separators": separators,
        "digest": digest.hexdigest(),
        **dataclasses.asdict(counts_of(parts)),
        **other,
        "shards": shards,
    }
    write_record(files, corpus, meta)


class TokenStore:
    """A prepared corpus, open for reading from any number of threads.

    `name` is its hash, `meta` the contents of <name>.json; `edges`, int64 [shards + 1], are the
    offset of each shard's tokens, and the total.
    """

    def __init__(self, directory: str | os.PathLike, name: str) -> None:
        self.files, self.name = KeyValueStore(directory), name
        (meta,) = read_records(self.files, [name])
        if meta is None:
            raise UserError(f"{self.files.directory} does not have the prepared corpus {name}")
        self.meta = meta
        self.counts = counts_of([self.meta])
        self.separators = Separators(*self.meta["separators"])
        self.shards = [Shard(*shard) for shard in self.meta["shards"]]
        self.edges = np.cumsum([0, *(shard.tokens for shard in self.shards)])
        self._dtype = np.dtype(self.meta["dtype"])
        self._documents = np.cumsum([0, *(shard.documents for shard in self.shards)])
        absolute = lambda i: self.document_starts(i).astype(np.int64) + self.edges[i]
        self._starts = functools.lru_cache(maxsize=4)(absolute)

    @staticmethod
    def exists(directory: str | os.PathLike, name: str) -> bool:
        """Whether `directory` has the corpus `name`, complete."""
        return read_records(KeyValueStore(directory), [name]) != [None]

    def start_reads(self, ranges: Sequence[tuple[int, int]]) -> Callable[[], list[np.ndarray]]:
        """Start to read ranges of tokens [start, stop) of the concatenated documents, all at once.

        The result waits for them, as int32 arrays.
        """
        pieces: list[ByteRange] = []
        owners: list[int] = []  # the range of each piece
        size = self._dtype.itemsize
        for owner, (start, stop) in enumerate(ranges):
            if not 0 <= start < stop <= self.counts.tokens:
                raise IndexError(f"tokens {start}:{stop} of {self.counts.tokens}")
            first, last = np.searchsorted(self.edges, [start, stop - 1], side="right") - 1
            for shard in range(first, last + 1):
                begin, end = self.edges[shard : shard + 2]
                low, high = max(start, begin) - begin, min(stop, end) - begin
                name = f"{self.shards[shard].name}.tokens"
                pieces.append(ByteRange(name, int(low) * size, int(high) * size))
                owners.append(owner)
        wait = blocks.start_reads(self.files, pieces)

        def tokens() -> list[np.ndarray]:
            found: list[list[np.ndarray]] = [[] for _ in ranges]
            for owner, content in zip(owners, wait(), strict=True):
                found[owner].append(np.frombuffer(content, self._dtype))
            return [np.concatenate(parts).astype(np.int32) for parts in found]

        return tokens

    def read(self, start: int, stop: int) -> np.ndarray:
        """Tokens start .. stop - 1 of the concatenated documents, as int32 [stop - start]."""
        return self.start_reads([(start, stop)])()[0]

    def document_starts(self, shard: int) -> np.ndarray:
        """Offsets of a shard's documents in it, and the total, as uint64 [documents + 1]."""
        name, documents = self.shards[shard][:2]
        starts = ByteRange(f"{name}.starts", 0, 8 * (documents + 1))
        return np.frombuffer(blocks.start_reads(self.files, [starts])()[0], "<u8")

    def document(self, number: int) -> tuple[int, int]:
        """The tokens [start, stop) of the document with that number in the corpus, from 0."""
        shard = int(np.searchsorted(self._documents, number, side="right")) - 1
        start, stop = self._starts(shard)[number - self._documents[shard] :][:2].tolist()
        return start, stop

    def document_at(self, token: int) -> tuple[int, int, int]:
        """The number of the document with a token, and its tokens [start, stop)."""
        shard = int(np.searchsorted(self.edges, token, side="right")) - 1
        within = int(np.searchsorted(self._starts(shard), token, side="right")) - 1
        start, stop = self._starts(shard)[within : within + 2].tolist()
        return int(self._documents[shard]) + within, start, stop

    def shard_tokens(self, shard: Shard) -> np.ndarray:
        """All tokens of a shard, in the type that they are stored in."""
        whole = ByteRange(f"{shard.name}.tokens", 0, shard.tokens * self._dtype.itemsize)
        return np.frombuffer(blocks.start_reads(self.files, [whole])()[0], self._dtype)

    def take_back_damaged(self) -> int:
        """Remove the records of damaged parts, which `prepare` writes again; return how many."""

        def damaged_part(number: int) -> str | None:
            shard = self.shards[number]
            with contextlib.suppress(Damaged):
                starts = self.document_starts(number).tobytes()
                if digest_of(self.shard_tokens(shard).tobytes(), starts) == shard.digest:
                    return None
            return shard.name.rpartition("-")[0]

        # Each thread holds up to four copies of a shard, of 128 or 256 MB each.
        with ThreadPoolExecutor(2) as threads:
            parts = set(threads.map(damaged_part, range(len(self.shards)))) - {None}
        if parts:
            self.files.delete([f"{name}.json" for name in (*parts, self.name)])
        return len(parts)
