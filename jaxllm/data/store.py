"""A prepared corpus: one domain and split, tokenized, in ArrayRecord shards with random access.

    tokens-00000.arrayrecord …   the concatenated documents in blocks of 8192 token ids, uint16 or
                                 uint32, little-endian; blocks ignore document boundaries
    starts.bin                   uint64, offset of each document in the tokens, and the total
    meta.json                    counts, shard sizes, a digest of the tokens; written last

Reading n tokens takes at most n / 8192 + 2 block reads. Opening maps `starts.bin` and reads only
the shards' footers.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

BLOCK = 8192
SHARD_BLOCKS = 1 << 15  # 268M tokens a shard
FORMAT_VERSION = 3


class Counts(NamedTuple):
    """The size of a prepared corpus, with counts of what was left out."""

    documents: int
    tokens: int  # BOS and EOS included
    text_bytes: int  # UTF-8
    empty: int  # documents without text
    bad: int  # unreadable lines


class TokenWriter:
    """The writer of a store at `directory`, which must exist and be empty."""

    def __init__(self, directory: Path, dtype: np.dtype) -> None:
        self._directory = directory
        self._dtype = np.dtype(dtype)
        self._starts = open(directory / "starts.bin", "wb")  # noqa: SIM115, closed by finish
        self._rest = np.zeros(0, self._dtype)
        self._writer = None
        self._shards: list[str] = []
        self._blocks = 0
        # Digests of all tokens and of all lengths, independent of how they were batched.
        self._ids_digest = hashlib.blake2b(digest_size=16)
        self._lengths_digest = hashlib.blake2b(digest_size=16)
        self.tokens = 0
        self.documents = 0

    def add(self, ids: np.ndarray, lengths: np.ndarray) -> None:
        """Append documents of `lengths` tokens, concatenated in `ids`."""
        if not len(ids):
            return
        ends = self.tokens + np.cumsum(lengths)
        self._starts.write((ends - lengths).astype("<u8").tobytes())
        self.tokens = int(ends[-1])
        self.documents += len(lengths)
        self._ids_digest.update(ids.astype("<u4").tobytes())
        self._lengths_digest.update(lengths.astype("<u8").tobytes())
        self._rest = np.concatenate([self._rest, ids.astype(self._dtype)])
        full = len(self._rest) // BLOCK * BLOCK
        for block in self._rest[:full].reshape(-1, BLOCK):
            self._write(block)
        self._rest = self._rest[full:].copy()

    def finish(self, **meta: object) -> None:
        """Write the last block, the end of the index, and `meta.json` with `meta` in it."""
        if len(self._rest):
            self._write(self._rest)
        self.close()
        with open(self._directory / "starts.bin", "ab") as starts:
            starts.write(np.array([self.tokens], "<u8").tobytes())
        sizes = {name: (self._directory / name).stat().st_size for name in self._shards}
        described = {
            "format": FORMAT_VERSION,
            "dtype": self._dtype.str,
            "shards": sizes,
            "tokens": self.tokens,
            "documents": self.documents,
            "digest": self._ids_digest.hexdigest() + self._lengths_digest.hexdigest(),
            **meta,
        }
        (self._directory / "meta.json").write_text(json.dumps(described, indent=1) + "\n")

    def close(self) -> None:
        """Close the files; the store is incomplete unless `finish` was called."""
        self._starts.close()
        self._close_shard()

    def _write(self, block: np.ndarray) -> None:
        from array_record.python.array_record_module import ArrayRecordWriter

        if self._blocks % SHARD_BLOCKS == 0:
            self._close_shard()
            self._shards.append(f"tokens-{len(self._shards):05d}.arrayrecord")
            path = str(self._directory / self._shards[-1])
            # A group is the unit of compression: one block, so that a read decodes no other.
            self._writer = ArrayRecordWriter(path, "group_size:1")
        assert self._writer is not None
        with _disk_errors():
            self._writer.write(block.tobytes())
        self._blocks += 1

    def _close_shard(self) -> None:
        if self._writer is not None:
            writer, self._writer = self._writer, None
            with _disk_errors():
                writer.close()  # flushes, so that a full disk raises here


@contextlib.contextmanager
def _disk_errors() -> Iterator[None]:
    """Convert ArrayRecord's RuntimeErrors, which are disk errors here, to OSErrors."""
    try:
        yield
    except RuntimeError as error:
        raise OSError(str(error)) from error


class TokenStore:
    """A prepared corpus, open for reading from any number of threads.

    Attributes:
      meta: the contents of meta.json.
      counts: size of the corpus.
      starts: uint64 [documents + 1], document offsets and the total; memory-mapped.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = Path(directory)
        self.meta = json.loads((self.directory / "meta.json").read_text())
        self.counts = Counts(*(self.meta[name] for name in Counts._fields))
        self.starts = np.memmap(self.directory / "starts.bin", "<u8", "r")
        self._dtype = np.dtype(self.meta["dtype"])
        self._readers: dict[int, Any] = {}
        self._lock = threading.Lock()

    @staticmethod
    def is_complete(directory: Path) -> bool:
        """Whether `directory` holds a complete store of this format: every file, with its size."""
        try:
            meta = json.loads((directory / "meta.json").read_text())
            sizes = {directory / name: size for name, size in meta["shards"].items()}
            sizes[directory / "starts.bin"] = 8 * (meta["documents"] + 1)
            return meta["format"] == FORMAT_VERSION and all(
                path.stat().st_size == size for path, size in sizes.items()
            )
        except (OSError, ValueError, KeyError):
            return False

    def read(self, start: int, stop: int) -> np.ndarray:
        """Tokens start .. stop - 1 of the concatenated documents, as int32 [stop - start]."""
        if not 0 <= start <= stop <= self.counts.tokens:
            raise IndexError(f"tokens {start}:{stop} of {self.counts.tokens}")
        if start == stop:
            return np.zeros(0, np.int32)
        first, last = start // BLOCK, (stop - 1) // BLOCK
        blocks: list[bytes] = []
        for shard in range(first // SHARD_BLOCKS, last // SHARD_BLOCKS + 1):
            begin = shard * SHARD_BLOCKS
            low, high = max(first - begin, 0), min(last - begin, SHARD_BLOCKS - 1)
            blocks += self._reader(shard).read(list(range(low, high + 1)))
        ids = np.frombuffer(b"".join(blocks), self._dtype)
        return ids[start - first * BLOCK : stop - first * BLOCK].astype(np.int32)

    def _reader(self, shard: int) -> Any:
        """The reader of a shard, opened on first use; its reads are thread-safe."""
        from array_record.python.array_record_module import ArrayRecordReader

        with self._lock:
            if shard not in self._readers:
                path = self.directory / list(self.meta["shards"])[shard]
                # No read-ahead and no further threads: Grain's threads are enough.
                options = "readahead_buffer_size:0,max_parallelism:0"
                self._readers[shard] = ArrayRecordReader(str(path), options)
            return self._readers[shard]
