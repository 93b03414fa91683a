"""One process at a time writes a run: the lease, its heartbeat, and its end."""

import json
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from jaxllm.errors import UserError
from jaxllm.run import lease
from jaxllm.run.layout import Layout
from jaxllm.run.lease import Lease
from tests import buckets
from tests.conftest import REPOSITORY

HOLD = """
import sys
from jaxllm.run.lease import Lease
Lease(sys.argv[1])
print("held", flush=True)
sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """A heartbeat of 50 ms, over after a second."""
    for name, seconds in {"BEAT": 0.05, "POLL": 0.02, "EXPIRY": 1.0}.items():
        monkeypatch.setattr(lease, f"{name}_SECONDS", seconds)


def holder(run: Path | str) -> dict[str, Any]:
    return json.loads(Layout(run).writer.read_text())


def rewrite(run: Path | str, **changes: Any) -> None:
    Layout(run).writer.write_text(json.dumps(holder(run) | changes))


def test_a_living_process_of_this_machine_is_named_and_a_killed_one_is_not_waited_for(
    tmp_path: Path,
) -> None:
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    other = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=REPOSITORY, text=True
    )
    assert other.stdout and other.stdout.readline() == "held\n"
    refused = rf"is trained by process {other.pid} of .*, since 20.* UTC.*\(kill {other.pid}\)"
    with pytest.raises(UserError, match=refused):
        Lease(str(tmp_path))
    other.kill()
    # Not waited for: a process that nobody has asked for its exit code has ended, too.
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        try:
            began = time.monotonic()
            mine = Lease(str(tmp_path))
            break
        except UserError:
            time.sleep(0.01)
    assert time.monotonic() - began < 0.9, "it did not wait for a heartbeat"
    mine.close()
    assert not Layout(tmp_path).writer.exists()
    other.communicate()


def test_an_id_that_another_process_has_by_now_holds_nothing(tmp_path: Path) -> None:
    Lease(str(tmp_path))
    rewrite(tmp_path, pid=1, start="1")
    Lease(str(tmp_path)).close()


def test_a_process_elsewhere_holds_it_while_its_heart_beats_by_our_clock(tmp_path: Path) -> None:
    """Its clock, in `since`, is of no matter."""
    Lease(str(tmp_path)).close()
    Layout(tmp_path).writer.write_text("{}")
    there = {"host": "there", "machine": "there", "pid": 7, "start": "9", "since": "2099"}
    stop = threading.Event()

    def beat() -> None:
        beats = 0
        while not stop.wait(0.1):
            rewrite(tmp_path, **there, beats=(beats := beats + 1))

    rewrite(tmp_path, **there, beats=0)
    thread = threading.Thread(target=beat)
    thread.start()
    with pytest.raises(UserError, match="is trained by process 7 of there, since 2099"):
        Lease(str(tmp_path))
    stop.set()
    thread.join()
    said: list[str] = []
    began = time.monotonic()
    Lease(str(tmp_path), said.append).close()
    assert time.monotonic() - began > 0.9
    assert said == ["waiting up to 1 s for a heartbeat of process 7 of there, since 2099"]


@pytest.mark.parametrize("content", ["", "{", "[]", '{"pid": 1, "more": 2}', "\0\0\0"])
def test_a_damaged_file_is_waited_for_and_replaced(tmp_path: Path, content: str) -> None:
    Layout(tmp_path).writer.write_text(content)
    Lease(str(tmp_path), lambda line: None).close()


@pytest.mark.parametrize("how", ["taken", "deleted"])
def test_a_process_that_has_lost_it_writes_nothing_more(tmp_path: Path, how: str) -> None:
    mine = Lease(str(tmp_path))
    mine.write_metrics(1, {})
    if how == "taken":
        rewrite(tmp_path, pid=7, host="there")
    else:
        Layout(tmp_path).writer.unlink()
    deadline = time.monotonic() + 30
    reason = "process 7 of there" if how == "taken" else "deleted"
    with pytest.raises(UserError, match=f"may not write .* is {reason}"):
        while time.monotonic() < deadline:
            mine.flush()
            time.sleep(0.01)
    mine.close()
    assert Layout(tmp_path).writer.exists() == (how == "taken"), "the other one's stays"


def test_a_process_that_stood_still_asks_before_it_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after SIGSTOP: its thread has not had a turn yet."""
    monkeypatch.setattr(lease, "BEAT_SECONDS", 60.0)
    mine = Lease(str(tmp_path))
    rewrite(tmp_path, pid=7)
    mine.write_metrics(1, {})
    monkeypatch.setattr(lease, "EXPIRY_SECONDS", 0.0)
    with pytest.raises(UserError, match="process 7"):
        mine.write_records(2, [])
    mine.close()


def test_of_many_that_begin_at_once_one_has_it(tmp_path: Path) -> None:
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    several = [
        subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            cwd=REPOSITORY, text=True,
        )
        for _ in range(4)
    ]  # fmt: skip
    said = []
    for process in several:
        assert process.stdout
        said.append(process.stdout.readline())
    assert sorted(said) == ["", "", "", "held\n"]
    for process in several:
        process.communicate()


def test_in_a_bucket(bucket: buckets.Proxy) -> None:
    run = "gs://bucket/leased"
    mine = Lease(run)
    first = holder(run)["beats"]
    deadline = time.monotonic() + 30
    while holder(run)["beats"] == first and time.monotonic() < deadline:
        time.sleep(0.05)
    mine.flush()
    with pytest.raises(UserError, match="of there"):
        while time.monotonic() < deadline:
            rewrite(run, host="there", machine="there")  # against a heart that beats
            time.sleep(0.05)
            mine.flush()
    Lease(run, lambda line: None).close()
    assert not Layout(run).writer.exists()
