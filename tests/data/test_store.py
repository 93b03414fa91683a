"""A store gives back the tokens that went in, from anywhere, and knows when it is whole."""

import time
from pathlib import Path

import numpy as np
import pytest

from jaxllm.data import store
from jaxllm.data.store import TokenStore, TokenWriter


def write(directory: Path, ids: np.ndarray, lengths: np.ndarray, parts: int = 1) -> None:
    directory.mkdir(exist_ok=True)
    writer = TokenWriter(directory, ids.dtype)
    ends = np.cumsum(lengths)
    for chosen in np.array_split(np.arange(len(lengths)), parts):
        low = ends[chosen[0]] - lengths[chosen[0]]
        writer.add(ids[low : ends[chosen[-1]]], lengths[chosen])
    writer.finish(text_bytes=len(ids), empty=0, bad=0)


@pytest.mark.parametrize("dtype", ["<u2", "<u4"])
def test_any_stretch_reads_back(tmp_path: Path, monkeypatch, dtype: str) -> None:
    monkeypatch.setattr(store, "BLOCK", 32)
    monkeypatch.setattr(store, "SHARD_BLOCKS", 4)
    random = np.random.default_rng(0)
    lengths = random.integers(1, 90, 60)
    ids = random.integers(0, min(np.iinfo(dtype).max, 2**31 - 1), lengths.sum(), dtype)
    write(tmp_path, ids, lengths, parts=7)
    opened = TokenStore(tmp_path)
    assert len(opened.meta["shards"]) > 10
    np.testing.assert_array_equal(opened.starts, np.cumsum([0, *lengths]))
    np.testing.assert_array_equal(opened.read(0, len(ids)), ids.astype(np.int32))
    for start, stop in np.sort(random.integers(0, len(ids) + 1, (300, 2)), axis=1):
        np.testing.assert_array_equal(opened.read(int(start), int(stop)), ids[start:stop])
    assert opened.counts.documents == 60
    assert opened.counts.tokens == len(ids)
    with pytest.raises(IndexError):
        opened.read(0, len(ids) + 1)


def test_a_damaged_store_is_not_believed(tmp_path: Path) -> None:
    whole = tmp_path / "whole"
    assert not TokenStore.is_complete(whole)
    write(whole, np.arange(9000, dtype="<u2"), np.array([4000, 5000]))
    assert TokenStore.is_complete(whole)
    for name in ("starts.bin", "tokens-00000.arrayrecord", "meta.json"):
        data = (whole / name).read_bytes()
        (whole / name).write_bytes(data[:-1] if name != "meta.json" else data[:20])
        assert not TokenStore.is_complete(whole), name
        (whole / name).unlink()
        assert not TokenStore.is_complete(whole), name
        (whole / name).write_bytes(data)
    assert TokenStore.is_complete(whole)


def test_a_million_documents_open_in_under_a_second(tmp_path: Path) -> None:
    count = 1_000_000
    write(tmp_path, np.zeros(3 * count, "<u2"), np.full(count, 3))
    began = time.perf_counter()
    assert TokenStore.is_complete(tmp_path)
    opened = TokenStore(tmp_path)
    assert len(opened.read(2_999_000, 3_000_000)) == 1000
    assert int(opened.starts[-2]) == 3 * (count - 1)
    assert time.perf_counter() - began < 1
