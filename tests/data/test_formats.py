"""Files give their documents back, in parts as whole, and unreadable lines are numbered."""

import bz2
import gzip
import json
import lzma
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tensorflow as tf
from array_record.python import array_record_module
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxllm.data import formats
from jaxllm.data.formats import BadLine, FilePart, parts_of
from jaxllm.errors import UserError
from tests.data.conftest import zstd

ROWS = [{"id": "a", "text": "one\ntwo"}, {"id": "b", "text": "дрэ"}, {"text": ""}]
LINES = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS).encode()
COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    "": bytes,
    ".gz": gzip.compress,
    ".zst": zstd,
    ".xz": lzma.compress,
    ".bz2": bz2.compress,
    ".lz4": lambda data: pa.compress(data, codec="lz4", asbytes=True),
}


def read(path: Path, text: str = "text", **kwargs) -> list[dict[str, str]]:
    return list(FilePart(str(path), path.stat().st_size, text=text).documents(**kwargs))


def texts(path: Path, text: str = "text") -> list[str]:
    return [document["text"] for document in read(path, text)]


def bad_lines(path: Path) -> tuple[list[str], list[BadLine]]:
    bad: list[BadLine] = []
    return [d["text"] for d in read(path, on_error=bad.append)], bad


@pytest.mark.parametrize("suffix", COMPRESS)
@pytest.mark.parametrize("name", ["f.json", "f.jsonl", "F.NDJSON"])
def test_json_in_every_compression(tmp_path: Path, suffix: str, name: str) -> None:
    raw = json.dumps(ROWS, indent=1).encode() if name == "f.json" else LINES
    path = tmp_path / f"{name}{suffix}"
    path.write_bytes(COMPRESS[suffix](raw))
    documents = read(path)
    assert [row["text"] for row in documents] == [row["text"] for row in ROWS]
    assert [row["id"] for row in documents[:2]] == ["a", "b"]
    assert documents[2]["id"].startswith(path.name)


@given(st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=400))
def test_a_text_file_is_its_documents_joined(tmp_path_factory, text: str) -> None:
    path = tmp_path_factory.mktemp("text") / "f.txt"
    path.write_bytes(text.encode())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(formats, "TEXT_CHUNK_BYTES", 40)
        documents = read(path)
    assert "".join(d["text"] for d in documents).encode() == text.encode()
    assert len({d["id"] for d in documents}) == len(documents)


@settings(deadline=None)
@given(
    st.lists(st.text(alphabet="ab\n\N{CYRILLIC SMALL LETTER A}", max_size=30), max_size=30),
    st.integers(1, 90),
    st.booleans(),
)
def test_the_parts_of_a_file_are_its_documents(tmp_path_factory, found, size, last) -> None:
    path = tmp_path_factory.mktemp("parts") / "f.jsonl"
    lines = [json.dumps({"text": text}, ensure_ascii=False) for text in found]
    path.write_text("\n".join(lines) + ("\n" if last else ""))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(formats, "PART_BYTES", size)
        parts = parts_of(str(path), path.stat().st_size, "")
    numbers = []
    documents = []

    def count(part: FilePart):
        numbers.append((yield from part.documents()))

    for part in parts:
        documents += [document["text"] for document in count(part)]
    assert documents == found
    assert sum(numbers) == len(path.read_bytes().splitlines())
    assert len({part.key for part in parts}) == len(parts)
    assert sum(part.size for part in parts) == path.stat().st_size


@pytest.mark.parametrize("kind", ["parquet", "arrow"])
def test_tables(tmp_path: Path, kind: str, monkeypatch) -> None:
    path = tmp_path / f"f.{kind}"
    found = [f"text {i}" for i in range(50)]
    table = pa.table({"text": found, "meta": [{"body": t.upper()} for t in found], "n": range(50)})
    if kind == "parquet":
        pq.write_table(table, path, row_group_size=7)
    else:
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table, max_chunksize=7)
    assert texts(path) == found
    assert texts(path, "meta.body") == [t.upper() for t in found]
    assert read(path)[3]["id"] == f"{path.name}:4"
    with pytest.raises(UserError, match=r"has no column content; it has text, meta, n"):
        texts(path, "content")
    bad: list[BadLine] = []
    assert not read(path, "n", on_error=bad.append) and len(bad) == 50
    monkeypatch.setattr(formats, "PART_BYTES", 100)
    parts = parts_of(str(path), path.stat().st_size, "")
    assert len(parts) == (8 if kind == "parquet" else 1)
    assert [d["text"] for part in parts for d in part.documents()] == found


def write_records(path: Path, records: list[bytes]) -> None:
    writer = array_record_module.ArrayRecordWriter(str(path), "group_size:4")
    for record in records:
        writer.write(record)
    writer.close()


def example(**features: str) -> bytes:
    feature = {
        name.replace("__", "/"): tf.train.Feature(
            bytes_list=tf.train.BytesList(value=[value.encode()])
        )
        for name, value in features.items()
    }
    return tf.train.Example(features=tf.train.Features(feature=feature)).SerializeToString()


@pytest.mark.parametrize(
    ("write", "field"),
    [
        (lambda text: example(text=text, other="x"), "text"),
        (lambda text: example(page__body=text), "page.body"),  # as TFDS flattens features
        (lambda text: json.dumps({"page": {"body": text}}).encode(), "page.body"),
        (str.encode, ""),
    ],
)
@pytest.mark.parametrize("name", ["f.array_record", "c4-train.array_record-00000-of-00002"])
def test_records_of_array_record(tmp_path: Path, write, field: str, name: str, monkeypatch) -> None:
    found = [f"текст {i}" for i in range(2500)]
    path = tmp_path / name
    write_records(path, [write(text) for text in found])
    assert texts(path, field) == found
    assert read(path, field)[2100]["id"] == f"{name}:2100"
    monkeypatch.setattr(formats, "PART_BYTES", path.stat().st_size // 3 - 1)
    parts = parts_of(str(path), path.stat().st_size, "", field)
    assert len(parts) == len({part.key for part in parts}) == 4
    assert [d["text"] for part in parts for d in part.documents()] == found
    assert [d["id"] for part in parts for d in part.documents()][2100] == f"{name}:2100"


def test_records_that_are_no_text_are_named(tmp_path: Path) -> None:
    path = tmp_path / "f.array_record"
    write_records(
        path, [example(text="ok"), example(txt="no"), b"plain", b"{]", b'{"text": "too"}']
    )
    documents, bad = bad_lines(path)
    assert documents == ["ok", "too"] and [line for line, _ in bad] == [2, 3, 4]
    assert "no `text` string" in bad[0].reason and "neither a tf.Example" in bad[1].reason
    for damaged in (path.read_bytes()[:-9], b"x" * 70_000):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match=f"{path} is damaged, or no ArrayRecord"):
            read(path)


def test_other_fields_hold_the_text(tmp_path: Path) -> None:
    path = tmp_path / "f.jsonl"
    path.write_text('{"content": "one", "a": {"b": "two"}}\n')
    assert texts(path, "content") == ["one"]
    assert texts(path, "a.b") == ["two"]


def test_a_byte_order_mark_and_blank_lines_before_an_array(tmp_path: Path) -> None:
    path = tmp_path / "f.json"
    path.write_bytes(b"\xef\xbb\xbf\n\n" + json.dumps(ROWS).encode())
    assert texts(path) == [row["text"] for row in ROWS]
    path.write_bytes(b"\xef\xbb\xbf" + LINES)
    assert texts(path) == [row["text"] for row in ROWS]


def test_bad_json_lines_are_named_and_the_others_are_read(tmp_path: Path) -> None:
    path = tmp_path / "f.jsonl"
    path.write_bytes(
        b'{"text": "ok"}\n{"text": "cut o\n\n{"text": "\xff"}\n{"txt": "no"}\n[1]\n'
        b'{"text": 3}\n{"text": "\\ud800"}\n{"text": "ok too"}\n'
        b'{"text": ' + b"[" * 200_000 + b"\n" + b'{"n": ' + b"7" * 5000 + b"}\n"
    )
    documents, bad = bad_lines(path)
    assert documents == ["ok", "ok too"]
    assert [line for line, _ in bad] == [2, 4, 5, 6, 7, 8, 10, 11]
    for (_, reason), said in zip(bad, ["broken JSON", "byte 0xff", "`text`"], strict=False):
        assert said in reason
    with pytest.raises(UserError, match=rf"{path}:2: broken JSON"):
        read(path)


def test_invalid_utf8_in_text_is_named_by_line(tmp_path: Path) -> None:
    path = tmp_path / "f.txt"
    path.write_bytes(b"fine\n\xc3\x28\nfine too\n")
    documents, bad = bad_lines(path)
    assert documents == ["fine\nfine too\n"]
    assert len(bad) == 1 and bad[0].line == 2 and bad[0].reason.startswith("invalid UTF-8")


@pytest.mark.parametrize("suffix", [suffix for suffix in COMPRESS if suffix])
def test_a_truncated_file_is_an_error_and_not_a_short_corpus(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"f.jsonl{suffix}"
    path.write_bytes(COMPRESS[suffix](LINES * 50)[:-9])
    with pytest.raises(UserError, match=str(path)):
        read(path)


def test_a_window_that_takes_too_much_memory_is_named_with_the_way_out(tmp_path: Path) -> None:
    path = tmp_path / "f.jsonl.zst"
    path.write_bytes(bytes.fromhex("28b52ffd 00 90 010000"))  # an empty block, a window of 2^28
    with pytest.raises(UserError, match=rf"{path} .*window of 128 MB or less, as zstd --long=27"):
        read(path)


def test_a_truncated_table_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "f.parquet"
    pq.write_table(pa.table({"text": ["one"]}), path)
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(UserError, match=str(path)):
        read(path)


def test_missing_and_unknown_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"f\.jsonl cannot be read .*: no such file"):
        list(FilePart(str(tmp_path / "f.jsonl"), 0).documents())
    with pytest.raises(UserError, match=r"f\.csv: not one of"):
        list(FilePart(str(tmp_path / "f.csv"), 0).documents())
