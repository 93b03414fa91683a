"""One process at a time writes a run: the lease, its heartbeat, and its end."""

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jaxllm import runtime
from jaxllm.errors import UserError
from jaxllm.io import JsonLines, atomic_write
from jaxllm.kvstore import KeyValueStore, read_file
from jaxllm.run import lease
from jaxllm.run.checkpoint_schedule import CheckpointConfig
from jaxllm.run.checkpoints import CheckpointWriter
from jaxllm.run.layout import Layout
from jaxllm.run.lease import Lease, LeaseLost
from jaxllm.run.run import Run
from jaxllm.uploads import Upload
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
    return json.loads(read_file(Layout(run).writer) or b"")  # in one request, as beats go on


def rewrite(run: Path | str, **changes: Any) -> None:
    atomic_write(Layout(run).writer, json.dumps(holder(run) | changes))


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
    mine.release()
    assert not Layout(tmp_path).writer.exists()
    other.communicate()


def test_an_id_that_another_process_has_by_now_holds_nothing(tmp_path: Path) -> None:
    Lease(str(tmp_path))
    rewrite(tmp_path, pid=1, start="1")
    Lease(str(tmp_path)).release()


def test_a_process_elsewhere_holds_it_while_its_heart_beats_by_our_clock(tmp_path: Path) -> None:
    """Its clock, in `since`, is of no matter."""
    Lease(str(tmp_path)).release()
    Layout(tmp_path).writer.write_text("{}")
    there = {"host": "there", "machine": "there", "pid": 7, "start": "9", "since": "2099"}
    stop = threading.Event()

    def beat() -> None:
        beats = 0
        while not stop.wait(0.1):
            rewrite(tmp_path, **there, beats=(beats := beats + 1))

    rewrite(tmp_path, **there, beats=0)
    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    with pytest.raises(UserError, match="is trained by process 7 of there, since 2099"):
        Lease(str(tmp_path))
    stop.set()
    thread.join()
    said: list[str] = []
    began = time.monotonic()
    Lease(str(tmp_path), said.append).release()
    assert time.monotonic() - began > 0.9
    assert said == ["waiting up to 1 s for a heartbeat of process 7 of there, since 2099"]


DAMAGED = [
    "", "{", "[]", '{"pid": 1, "more": 2}', "\0\0\0", '{"pid": "7"}', '{"pid": -1}', "[" * 9999,
    '{"pid": 1e9}', f'{{"pid": {10**30}}}', '{"host": {"a": 1}}',
]  # fmt: skip


@pytest.mark.parametrize("content", DAMAGED)
def test_a_damaged_file_is_waited_for_and_replaced(tmp_path: Path, content: str) -> None:
    Layout(tmp_path).writer.write_text(content)
    Lease(str(tmp_path), lambda line: None).release()


def test_a_process_of_another_machine_is_not_to_be_killed_here(tmp_path: Path) -> None:
    mine = Lease(str(tmp_path))
    rewrite(tmp_path, machine="there", pid=7)
    with pytest.raises(UserError, match="end that one there, or delete") as refused:
        mine._refuse()
    assert "kill" not in str(refused.value)


def test_a_heartbeat_after_the_last_look_is_not_written_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Lease(str(tmp_path)).release()
    Layout(tmp_path).writer.write_text(json.dumps(lease.Holder("there", "there", 7)._asdict()))
    read, end = Lease._read, time.monotonic() + 1.0

    def then_beat(self: Lease) -> Any:
        found = read(self)
        if time.monotonic() > end and not holder(tmp_path)["beats"]:
            rewrite(tmp_path, beats=1)
        return found

    monkeypatch.setattr(Lease, "_read", then_beat)
    with pytest.raises(UserError, match="is trained by process 7 of there"):
        Lease(str(tmp_path), lambda line: None)
    assert holder(tmp_path)["beats"] == 1


@pytest.mark.parametrize("start", ["", "hidden"])
def test_a_process_that_cannot_be_seen_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, start: str
) -> None:
    """Without /proc, as after `kill -9` on macOS; with hidepid, another user's that lives."""
    Lease(str(tmp_path)).release()
    other = os.getppid()
    if start:
        read = Path.read_text
        hidden = lambda path, *_: os.stat("/no") if f"{other}/stat" in str(path) else read(path)
        monkeypatch.setattr(Path, "read_text", hidden)
        monkeypatch.setattr(os, "kill", lambda pid, number: os.stat("/no") if pid != other else 0)
    else:
        monkeypatch.setattr(runtime, "process_start", lambda pid: "")
    assert runtime.process_start(other) == ""
    own = Lease(str(tmp_path))
    machine = own._own.machine
    own.release()
    there = lease.Holder("here", machine, other, start)
    Layout(tmp_path).writer.write_text(json.dumps(there._asdict()))
    began, said = time.monotonic(), list[str]()
    Lease(str(tmp_path), said.append).release()
    assert time.monotonic() - began > 0.9 and "waiting" in said[0]


@pytest.mark.parametrize("failure", ["no answer", "another version", "no reading"])
def test_a_beat_that_is_there_but_was_not_confirmed_is_no_loss(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failure: str
) -> None:
    mine = Lease(str(tmp_path))
    write, read, failed = KeyValueStore.write_version, KeyValueStore.read_version, [False, False]

    def write_once(self: KeyValueStore, *args: Any) -> bool:
        written = write(self, *args)
        if not failed[0]:
            failed[0] = True
            if failure == "no answer":
                raise UserError("the store does not answer")
            return written and failure == "no reading"
        return written

    def read_once(self: KeyValueStore, name: str) -> Any:
        if failure == "no reading" and failed == [True, False]:
            failed[1] = True
            raise UserError("the store does not answer")
        return read(self, name)

    monkeypatch.setattr(KeyValueStore, "write_version", write_once)
    monkeypatch.setattr(KeyValueStore, "read_version", read_once)
    before, deadline = holder(tmp_path)["beats"], time.monotonic() + 30
    while holder(tmp_path)["beats"] < before + 4 and time.monotonic() < deadline:
        time.sleep(0.02)
        mine.flush()
    assert failed[0] and holder(tmp_path)["beats"] >= before + 4
    mine.release()
    assert not Layout(tmp_path).writer.exists()


def test_after_the_loss_no_thread_and_no_other_writer_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pending uploads, alarms, Orbax's commit, and a resume; a new lease writes again."""
    monkeypatch.setattr(lease, "BEAT_SECONDS", 60.0)
    mine, run = Lease(str(tmp_path)), Layout(tmp_path)
    pending, alarms = Upload(tmp_path / "events", seconds=0.05), JsonLines(run.alarms)
    checkpoints = CheckpointWriter(run, CheckpointConfig(), proven=True)
    metrics = JsonLines(run.metrics)
    metrics.append({"step": 1})
    waited: list[bool] = []
    monkeypatch.setattr(checkpoints._manager, "wait_until_finished", lambda: waited.append(True))
    rewrite(tmp_path, pid=7, host="there")
    monkeypatch.setattr(mine, "_beaten", -1e9)  # as after SIGSTOP
    pending.put(lambda: b"late")
    deadline = time.monotonic() + 30
    while pending._content is not None and time.monotonic() < deadline:
        time.sleep(0.01)
    alarms.append({"step": 1})
    checkpoints.close()
    with pytest.raises(LeaseLost, match="another process may write to"):
        Run(tmp_path).resume({}, {})  # which forgets what no checkpoint holds
    metrics.keep_until(-1)
    Run(tmp_path).trajectory.write(1, "task", [])
    Run(tmp_path).token_losses("texts").write(1, np.zeros(1))
    assert metrics.read() == ([{"step": 1}], []) and not waited
    assert sorted(os.listdir(tmp_path)) == ["checkpoints", "metrics.jsonl", "writer.json"]
    Layout(tmp_path).writer.unlink()
    again = Lease(str(tmp_path))
    alarms.append({"step": 1})
    checkpoints.close()
    Run(tmp_path).resume({}, {})
    assert alarms.read() == ([{"step": 1}], []) and waited
    assert metrics.read() == ([], [])
    again.release()


def test_the_lease_ends_after_all_that_writes(tmp_path: Path) -> None:
    with lease.lease(str(tmp_path)) as (mine,):
        mine.close()
        assert Layout(tmp_path).writer.exists()
        mine.flush()
    assert not Layout(tmp_path).writer.exists()


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
    mine.release()
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
    mine.release()


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
    mine.release()  # its heart beats no more
    Lease(run, lambda line: None).release()
    assert not Layout(run).writer.exists()
