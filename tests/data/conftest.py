"""A small corpus on disk in every format, and a configuration that reads it as bytes."""

import gzip
import json
from pathlib import Path

import numpy as np
import pyarrow
import pytest

from jaxllm.data.config import DataConfig, VocabularyConfig
from jaxllm.data.store import (
    Counts,
    ShardWriter,
    TokenStore,
    read_records,
    write_corpus,
    write_part,
)
from jaxllm.data.tokenizer import Separators
from jaxllm.kvstore import KeyValueStore


def zstd(data: bytes) -> bytes:
    """One zstd frame."""
    return pyarrow.compress(data, codec="zstd", asbytes=True)


def write_jsonl(path: Path, texts: list[str]) -> Path:
    """Writes one JSON object per text, compressed as the suffix says."""
    data = "".join(json.dumps({"id": str(i), "text": t}) + "\n" for i, t in enumerate(texts))
    path.parent.mkdir(parents=True, exist_ok=True)
    raw = data.encode()
    if path.suffix == ".gz":
        raw = gzip.compress(raw, mtime=0)
    elif path.suffix == ".zst":
        raw = zstd(raw)
    path.write_bytes(raw)
    return path


def write_store(
    directory: Path,
    ids: np.ndarray,
    lengths: np.ndarray,
    parts: int = 1,
    separators: tuple[int | None, int | None] = (None, 0),
) -> TokenStore:
    """A store of documents of `lengths` tokens, concatenated in `ids`."""
    files = KeyValueStore(directory)
    documents = np.split(ids, np.cumsum(lengths)[:-1])
    names = [f"part{part}" for part in range(parts)]
    for name, chosen in zip(names, np.array_split(np.arange(len(lengths)), parts), strict=True):
        writer = ShardWriter(files, name, ids.dtype)
        for number in chosen:
            writer.add(documents[number], lengths[[number]])
        writer.flush()
        tokens = sum(shard.tokens for shard in writer.shards)
        write_part(files, name, writer.shards, Counts(len(chosen), tokens))
    records = [record for record in read_records(files, names) if record]
    write_corpus(files, "corpus", records, ids.dtype, Separators(*separators))
    return TokenStore(directory, "corpus")


def texts(domain: str, count: int) -> list[str]:
    """Texts of varied lengths in which every document can be told from every other."""
    return [f"{domain} {i}: " + "all work and no play " * (i * 7 % 23) for i in range(count)]


@pytest.fixture
def corpus_dir(tmp_path: Path) -> Path:
    root = tmp_path / "corpus"
    write_jsonl(root / "prose" / "source" / "train.jsonl.gz", texts("prose", 120))
    write_jsonl(root / "prose" / "source" / "valid.jsonl.gz", texts("held out", 5))
    write_jsonl(root / "notes" / "train-00.jsonl.zst", texts("notes", 40))
    write_jsonl(root / "notes" / "train-01.jsonl", texts("more notes", 30))
    (root / "plays").mkdir()
    (root / "plays" / "input.txt").write_text("ROMEO: Ay me!\n\nJULIET: \tO Romeo\n" * 50)
    return root


@pytest.fixture
def config(corpus_dir: Path, tmp_path: Path) -> DataConfig:
    return DataConfig(
        mixture_or_task_name="corpora",
        corpus_dir=str(corpus_dir),
        cache_dir=str(tmp_path / "cache"),
        sequence_length=64,
        batch_size=8,
        weights={"prose": 3, "notes": 2, "plays": 1},
        vocabulary=VocabularyConfig("bytes"),
    )
