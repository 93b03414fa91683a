"""Files give their documents back, and every unreadable line is named by file and number."""

import gzip
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxllm.data import files
from jaxllm.errors import UserError
from tests.data.conftest import zstd

ROWS = [{"id": "a", "text": "one\ntwo"}, {"id": "b", "text": "дрэ"}, {"text": ""}]
LINES = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS).encode()


@pytest.mark.parametrize("suffix", ["", ".gz", ".zst"])
@pytest.mark.parametrize("array", [False, True])
def test_json_in_every_compression(tmp_path: Path, suffix: str, array: bool) -> None:
    raw = json.dumps(ROWS, indent=1).encode() if array else LINES
    compress = {"": bytes, ".gz": gzip.compress, ".zst": zstd}[suffix]
    path = tmp_path / f"f.{'json' if array else 'jsonl'}{suffix}"
    path.write_bytes(compress(raw))
    read = list(files.read_documents(path))
    assert [row["text"] for row in read] == [row["text"] for row in ROWS]
    assert [row["id"] for row in read[:2]] == ["a", "b"]
    assert read[2]["id"].startswith(path.name)


@given(st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=400))
def test_a_text_file_is_its_documents_joined(tmp_path_factory, text: str) -> None:
    path = tmp_path_factory.mktemp("text") / "f.txt"
    path.write_bytes(text.encode())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "TEXT_CHUNK_BYTES", 40)
        documents = list(files.read_documents(path))
    assert "".join(d["text"] for d in documents).encode() == text.encode()
    assert len({d["id"] for d in documents}) == len(documents)


def bad_lines(path: Path) -> tuple[list[str], list[str]]:
    bad: list[str] = []
    return [d["text"] for d in files.read_documents(path, bad.append)], bad


def test_bad_json_lines_are_named_and_the_others_are_read(tmp_path: Path) -> None:
    path = tmp_path / "f.jsonl"
    path.write_bytes(
        b'{"text": "ok"}\n{"text": "cut o\n\n{"text": "\xff"}\n{"txt": "no"}\n[1]\n'
        b'{"text": 3}\n{"text": "\\ud800"}\n{"text": "ok too"}\n'
    )
    read, bad = bad_lines(path)
    assert read == ["ok", "ok too"]
    assert [int(message.split(":")[1]) for message in bad] == [2, 4, 5, 6, 7, 8]
    assert all(message.startswith(f"{path}:") for message in bad)
    for message, reason in zip(bad, ["broken JSON", "invalid UTF-8", "`text`"], strict=False):
        assert reason in message


def test_invalid_utf8_in_text_is_named_by_line(tmp_path: Path) -> None:
    path = tmp_path / "f.txt"
    path.write_bytes(b"fine\n\xc3\x28\nfine too\n")
    read, bad = bad_lines(path)
    assert read == ["fine\nfine too\n"]
    assert len(bad) == 1 and bad[0].startswith(f"{path}:2: invalid UTF-8")


def test_without_a_count_the_first_bad_line_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "f.jsonl"
    path.write_text('{"text": "ok"}\nnonsense\n')
    with pytest.raises(UserError, match=r"f\.jsonl:2: broken JSON"):
        list(files.read_documents(path))


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_a_truncated_file_is_an_error_and_not_a_short_corpus(tmp_path: Path, suffix: str) -> None:
    compress = {".gz": gzip.compress, ".zst": zstd}[suffix]
    path = tmp_path / f"f.jsonl{suffix}"
    path.write_bytes(compress(LINES * 50)[:-9])
    with pytest.raises(UserError, match=str(path)):
        list(files.read_documents(path))


def test_missing_and_unknown_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no file .*f\.jsonl"):
        list(files.read_documents(tmp_path / "f.jsonl"))
    with pytest.raises(UserError, match=r"f\.parquet: not one of"):
        list(files.read_documents(tmp_path / "f.parquet"))
