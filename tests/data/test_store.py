"""A store gives back the tokens that went in, from anywhere, and knows when it is complete."""

import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from jaxllm.data import blocks, store
from jaxllm.data.store import Counts, Shard, ShardWriter, TokenStore, write_corpus, write_part
from jaxllm.data.tokenizer import Separators
from jaxllm.errors import UserError
from jaxllm.kvstore import ByteRange, KeyValueStore
from tests.data.conftest import write_store


@pytest.mark.parametrize("dtype", ["<u2", "<u4"])
def test_any_stretch_reads_back(tmp_path: Path, monkeypatch, dtype: str) -> None:
    monkeypatch.setattr(store, "SHARD_TOKENS", 128)
    random = np.random.default_rng(0)
    lengths = random.integers(1, 90, 60)
    ids = random.integers(0, min(np.iinfo(dtype).max, 2**31 - 1), lengths.sum(), dtype)
    opened = write_store(tmp_path, ids, lengths, parts=7)
    assert len(opened.shards) > 10
    starts = [opened.document_starts(shard) for shard in range(len(opened.shards))]
    places = [edge + one[:-1] for edge, one in zip(opened.edges[:-1], starts, strict=True)]
    np.testing.assert_array_equal(np.concatenate(places), np.cumsum([0, *lengths[:-1]]))
    np.testing.assert_array_equal(opened.read(0, len(ids)), ids.astype(np.int32))
    ranges = np.sort(random.integers(0, len(ids) + 1, (300, 2)), axis=1)
    ranges = [(int(start), int(stop)) for start, stop in ranges if start < stop]
    for (start, stop), read in zip(ranges, opened.start_reads(ranges)(), strict=True):
        np.testing.assert_array_equal(read, ids[start:stop])
        assert read.dtype == np.int32
    assert opened.counts.documents == 60
    assert opened.counts.tokens == len(ids)
    with pytest.raises(IndexError):
        opened.read(0, len(ids) + 1)


def test_a_missing_or_short_shard_is_named(tmp_path: Path) -> None:
    opened = write_store(tmp_path, np.arange(9000, dtype="<u2"), np.array([4000, 5000]))
    file = tmp_path / f"{opened.shards[0].name}.tokens"
    file.write_bytes(file.read_bytes()[:9000])
    with pytest.raises(UserError, match=str(tmp_path)):
        opened.read(4000, 5000)
    file.unlink()
    with pytest.raises(UserError, match=rf"{file.name} is missing"):
        opened.read(0, 10)


@pytest.mark.parametrize("size", [1, 4091, 4092, 4093, 9000])
def test_no_flipped_bit_of_a_range_is_read(tmp_path: Path, size: int) -> None:
    """In any byte of the file: of the content, of a checksum, or after the end."""
    files, random = KeyValueStore(tmp_path), np.random.default_rng(size)
    content, path = random.bytes(size), tmp_path / "file"
    blocks.write(files, {"file": content})
    read = lambda start, stop: blocks.start_reads(files, [ByteRange("file", start, stop)])()[0]
    for start, stop in np.sort(random.integers(0, size + 1, (20, 2)), axis=1).tolist():
        assert stop == start or read(start, stop) == content[start:stop]
    stored = bytearray(path.read_bytes())
    assert len(stored) == 4096 * -(-size // 4092)
    for place in random.integers(0, len(stored), 60).tolist():
        stored[place] ^= 1 << place % 8
        path.write_bytes(stored)
        within = place // 4096 * 4092
        with pytest.raises(UserError, match=rf"{path} is damaged: .*prepare --check"):
            read(within, min(within + 2, size))
        stored[place] ^= 1 << place % 8


def test_a_corpus_is_there_once_it_is_complete(tmp_path: Path) -> None:
    files = KeyValueStore(tmp_path)
    writer = ShardWriter(files, "part", np.dtype("<u2"))
    writer.add(np.arange(10), np.array([10]))
    writer.flush()
    write_part(files, "part", writer.shards, Counts(1, 10))
    assert not TokenStore.exists(tmp_path, "corpus")
    with pytest.raises(UserError, match="does not have the prepared corpus corpus"):
        TokenStore(tmp_path, "corpus")
    records = store.read_records(files, ["part", "other"])
    assert records[1] is None
    write_corpus(files, "corpus", [records[0]], np.dtype("<u2"), Separators(0, None))
    assert TokenStore.exists(tmp_path, "corpus")


def test_the_digest_follows_tokens_and_documents(tmp_path: Path) -> None:
    digests = set()
    for number, (last, lengths) in enumerate([(4, [5]), (5, [5]), (4, [2, 3]), (4, [3, 2])]):
        ids = np.array([0, 1, 2, 3, last], "<u2")
        digests.add(write_store(tmp_path / str(number), ids, np.array(lengths)).meta["digest"])
    assert len(digests) == 4


def test_a_corpus_of_a_trillion_tokens_opens_in_little_memory(tmp_path: Path) -> None:
    """1.2T tokens in 1.2B documents: 18,000 shards, whose index is all that is read."""
    count, tokens = 18_000, 1 << 26
    shards = [Shard(f"{i:016x}-000", tokens // 1000, tokens, 32 * "0") for i in range(count)]
    part = {"shards": shards, "documents": count * tokens // 1000, "tokens": count * tokens}
    part |= {"text_bytes": 0, "empty": 0, "bad": 0, "inner_separators": 0}
    files = KeyValueStore(tmp_path)
    write_corpus(files, "corpus", [part], np.dtype("<u2"), Separators(1, 2))
    tracemalloc.start()
    opened = TokenStore(tmp_path, "corpus")
    assert tracemalloc.get_traced_memory()[1] < 50e6
    tracemalloc.stop()
    assert opened.counts.tokens > 1.2e12
    name = f"{shards[17_000].name}.tokens"
    blocks.write(files, {name: np.arange(100, dtype="<u2").tobytes()})
    np.testing.assert_array_equal(opened.read(17_000 * tokens + 3, 17_000 * tokens + 6), [3, 4, 5])
