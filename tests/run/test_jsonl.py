"""Files of lines survive being cut anywhere."""

import math
from pathlib import Path

import pytest

from jaxllm.run import jsonl, manifest
from jaxllm.run.manifest import Entry

ENTRY = Entry(
    step=3, tokens=96, flops=1.5e9, learning_rate=1e-3, loss=2.25, data_position=12,
    dtype="float32", wall_time=1.0, wall_seconds=2.0, code_version="0", restarts=1,
    kind="scheduled",
)  # fmt: skip


def test_rows_come_back_exactly(tmp_path: Path) -> None:
    rows = [{"step": 1, "loss": 0.1 + 0.2}, {"step": 2, "loss": None, "text": "Ω\n"}]
    for row in rows:
        jsonl.append(tmp_path / "a.jsonl", row)
    assert jsonl.read(tmp_path / "a.jsonl") == (rows, 0)


def test_no_number_that_json_cannot_write(tmp_path: Path) -> None:
    jsonl.append(tmp_path / "a.jsonl", {"step": 1, "mfu": math.nan, "parts": [math.inf, 1.0]})
    assert jsonl.read(tmp_path / "a.jsonl")[0] == [{"step": 1, "mfu": None, "parts": [None, 1.0]}]


def test_a_file_cut_at_any_byte_keeps_its_whole_lines(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    for step in range(3):
        jsonl.append(path, {"step": step, "text": "é"})
    whole = path.read_bytes()
    line = len(whole) // 3
    for cut in range(len(whole) + 1):
        path.write_bytes(whole[:cut])
        # a line that lacks only its newline is whole
        complete = (cut + 1) // line
        rows, broken = jsonl.read(path)
        assert [row["step"] for row in rows] == list(range(complete))
        assert broken == (1 if cut > complete * line else 0)
        jsonl.keep_until(path, 1)
        jsonl.append(path, {"step": 9})
        expected = [s for s in range(complete) if s <= 1] + [9]
        rows, broken = jsonl.read(path)
        assert ([row["step"] for row in rows], broken) == (expected, 0), f"cut at byte {cut}"


def test_manifest_keeps_the_last_line_of_a_step(tmp_path: Path) -> None:
    manifest.append(tmp_path, ENTRY)
    again = Entry(**{**vars(ENTRY), "kind": "final"})
    manifest.append(tmp_path, again)
    manifest.append(tmp_path, Entry(**{**vars(ENTRY), "step": 7}))
    assert [e.step for e in manifest.read(tmp_path)] == [3, 7]
    assert manifest.read(tmp_path)[0] == again
    manifest.keep_until(tmp_path, 3)
    assert [e.step for e in manifest.read(tmp_path)] == [3]


def test_replacing_a_file_leaves_the_old_one_when_it_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "config.gin"
    jsonl.replace_text(path, "old")

    def full(file: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(jsonl, "_to_disk", full)
    with pytest.raises(OSError, match="No space"):
        jsonl.replace_text(path, "new")
    assert path.read_text() == "old"
