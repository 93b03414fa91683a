"""Files survive being cut anywhere, and places are those that users mean."""

import math
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from etils import epath

from jaxllm import generate, io
from jaxllm.errors import UserError
from jaxllm.io import JsonLines, atomic_write, location
from jaxllm.kvstore import KeyValueStore
from jaxllm.training.config import TrainConfig
from tests.buckets import Proxy


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("~/run", "/home/someone/run"),
        ("hf:~/model", "hf:/home/someone/model"),
        ("file:///tmp/run", "/tmp/run"),
        ("gs://bucket/~/run", "gs://bucket/~/run"),
        ("runs/~mine", "runs/~mine"),
    ],
)
def test_a_place_is_where_the_user_means_it(
    text: str, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", "/home/someone")
    assert location(text) == place


def test_runs_lie_in_the_home_directory_not_in_a_folder_called_tilde(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert TrainConfig(model_dir="~/run").model_dir == os.path.join(tmp_path, "run")
    assert TrainConfig(model_dir="file:///data/run").model_dir == "/data/run"
    with pytest.raises(UserError, match=f"^{tmp_path}/run is no run"):
        generate.main(["--model_dir=~/run", "--prompt=x"])
    with pytest.raises(UserError, match=r"^/nowhere is no run"):
        generate.main(["--model_dir=file:///nowhere", "--prompt=x"])


def test_rows_come_back_exactly(tmp_path: Path) -> None:
    rows = [{"step": 1, "loss": 0.1 + 0.2}, {"step": 2, "loss": None, "text": "Ω\n"}]
    for row in rows:
        JsonLines(tmp_path / "a.jsonl").append(row)
    assert JsonLines(tmp_path / "a.jsonl").read() == (rows, [])


def test_no_number_that_json_cannot_write(tmp_path: Path) -> None:
    JsonLines(tmp_path / "a.jsonl").append({"step": 1, "mfu": math.nan, "parts": [math.inf, 1.0]})
    assert JsonLines(tmp_path / "a.jsonl").read()[0] == [
        {"step": 1, "mfu": None, "parts": [None, 1.0]}
    ]


def test_a_file_cut_at_any_byte_keeps_its_whole_lines(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    for step in range(3):
        JsonLines(path).append({"step": step, "text": "é"})
    whole = path.read_bytes()
    line = len(whole) // 3
    for cut in range(len(whole) + 1):
        path.write_bytes(whole[:cut])
        # a line that lacks only its newline is whole
        complete = (cut + 1) // line
        rows, broken = JsonLines(path).read()
        assert [row["step"] for row in rows] == list(range(complete))
        assert len(broken) == (1 if cut > complete * line else 0)
        JsonLines(path).keep_until(1)
        JsonLines(path).append({"step": 9})
        expected = [s for s in range(complete) if s <= 1] + [9]
        rows, broken = JsonLines(path).read()
        assert ([row["step"] for row in rows], broken) == (expected, []), f"cut at byte {cut}"


def test_replacing_a_file_leaves_the_old_one_when_it_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "config.gin"
    atomic_write(path, "old")

    def full(file: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(io, "_to_disk", full)
    with pytest.raises(OSError, match="No space"):
        atomic_write(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_lines_in_a_bucket_are_uploaded_seldom_and_in_the_background(
    bucket: Proxy, tmp_path: Path
) -> None:
    there = f"gs://bucket/{tmp_path.name}/a.jsonl"
    lines, before = JsonLines(there, upload_seconds=0.5), bucket.requests["POST"]
    began = time.monotonic()

    def wait_until(ready: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 60
        while not ready():
            assert time.monotonic() < deadline
            time.sleep(0.05)

    bucket.rule = lambda method, path: 403 if method == "POST" else None
    lines.append({"step": 0})
    wait_until(lambda: bucket.requests["POST"] > before)
    bucket.rule = lambda method, path: None
    for step in range(1, 50):
        lines.append({"step": step})
    wait_until(lambda: len(JsonLines(there).read()[0]) == 50)
    lines.flush()  # what is there already
    assert bucket.requests["POST"] - before <= 2 + (time.monotonic() - began) / 0.5


def test_what_others_write_into_a_bucket_is_seen(bucket: Proxy, tmp_path: Path) -> None:
    there = epath.Path(f"gs://bucket/{tmp_path.name}")
    for step in ("1", "2"):
        KeyValueStore(there).write({f"{step}/file": b""})
        assert (there / step / "file").exists()
        assert sorted(path.name for path in there.iterdir())[-1] == step
