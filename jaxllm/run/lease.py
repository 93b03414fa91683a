"""One writer per run: a lease on MODEL_DIR, in MODEL_DIR/writer.json, with a heartbeat.

It is over when its process has ended, where that can be seen (on one machine), or when the file has
not changed for EXPIRY_SECONDS by the reader's clock: clocks of machines differ. Writes depend on
the version that was read, and are read again, since some stores ignore that condition.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from jaxllm import runtime, uploads
from jaxllm.errors import UserError
from jaxllm.kvstore import KeyValueStore
from jaxllm.run.layout import Layout

BEAT_SECONDS, EXPIRY_SECONDS, POLL_SECONDS = 10.0, 60.0, 2.0


class Holder(NamedTuple):
    """The process that has a lease, as the file names it; by default that of a damaged file."""

    host: str = "unknown host"
    machine: str = ""  # for as long as its process ids mean the same
    pid: int = 0
    start: str = ""  # tells processes of one id apart
    since: str = "unknown time"
    beats: int = 0  # of its heart

    def __str__(self) -> str:
        return f"process {self.pid} of {self.host}, since {self.since}"


class LeaseLost(UserError):
    """Another process may write to the run now."""


class Lease:
    """The lease of this process on a run; as a `Writer` of it, it refuses when it is lost."""

    def __init__(self, model_dir: str, log: Callable[[str], None] = print) -> None:
        """Take the lease; UserError if another process has it."""
        self._file = Layout(model_dir).writer
        self._store = KeyValueStore(self._file.parent)
        machine = host = socket.gethostname()
        with contextlib.suppress(OSError):  # no Linux
            boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
            machine = f"{host} {boot} {os.readlink('/proc/self/ns/pid')}"
        since = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime())
        start = runtime.process_start(os.getpid())
        self._own = Holder(host, machine, os.getpid(), start, since)
        self._lock, self._closed, self._lost = threading.Lock(), threading.Event(), ""
        if not self._write(self._wait(log)):
            self._refuse()
        uploads.guards[str(self._file.parent)] = self._held
        threading.Thread(target=self._beat_on, daemon=True).start()

    def write_metrics(self, *_: Any) -> None:
        """Raise LeaseLost if another process may have taken the lease."""
        if not self._held():
            raise LeaseLost(self._lost)

    begin = write_records = flush = write_metrics

    def close(self) -> None:
        """Do nothing: other writers are still open; `release` comes last."""

    def release(self) -> None:
        """Give the lease back."""
        with self._lock, contextlib.suppress(UserError):
            if not self._closed.is_set() and self._is_own(self._read()[0]):
                self._store.delete([self._file.name])
                uploads.guards.pop(str(self._file.parent), None)
            self._closed.set()

    def _held(self) -> bool:
        if time.monotonic() - self._beaten > EXPIRY_SECONDS / 2:  # as after SIGSTOP
            self._beat()
        return not self._lost

    def _is_own(self, holder: Holder | None) -> bool:
        return holder is not None and holder._replace(beats=self._own.beats) == self._own

    def _wait(self, log: Callable[[str], None]) -> bytes:
        """Wait for the end of another lease, and return the version of the file that is over."""
        first, version = self._read()
        if first and first.machine == self._own.machine:
            start = runtime.process_start(first.pid)
            if first.pid == self._own.pid or start not in ("", first.start):
                return version
            if start:  # it is that process
                self._refuse()
        if now := first:
            log(f"waiting up to {EXPIRY_SECONDS:.0f} s for a heartbeat of {first}")
        end = time.monotonic() + EXPIRY_SECONDS
        while now and time.monotonic() < end:
            time.sleep(POLL_SECONDS)
            now, version = self._read()
            if now and now != first:
                self._refuse()
        return version

    def _beat_on(self) -> None:
        while not self._closed.wait(BEAT_SECONDS):
            with contextlib.suppress(UserError):  # a store that does not answer
                self._beat()

    def _beat(self) -> None:
        with self._lock:
            now, version = self._read()
            if self._closed.is_set():
                return
            if now and self._is_own(now):
                self._own = now  # a beat may be there whose write was reported as failed
                now = now if self._write(version) else self._read()[0]
            if not self._is_own(now):
                self._lost = f"this run may not write any more: {self._file} is {now or 'deleted'}"

    def _read(self) -> tuple[Holder | None, bytes]:
        content, version = self._store.read_version(self._file.name)
        if content is None:
            return None, version
        with contextlib.suppress(ValueError, TypeError, RecursionError):
            found = Holder(**json.loads(content))
            if [*map(type, found)] == [*map(type, Holder())] and found.pid >> 31 == 0:
                return found, version
        return Holder(), version

    def _write(self, version: bytes) -> bool:
        """Write the next beat if the file still has this version; return whether it is there."""
        began, own = time.monotonic(), self._own._replace(beats=self._own.beats + 1)
        content = json.dumps(own._asdict()).encode()
        self._store.write_version(self._file.name, content, version)
        if written := self._read()[0] == own:  # what a repeated request returns is of no matter
            self._own, self._beaten = own, began
        return written

    def _refuse(self) -> None:
        holder = self._read()[0] or Holder()
        how = f"(kill {holder.pid})" if holder.machine == self._own.machine else "there"
        raise UserError(
            f"{self._file.parent} is trained by {holder}, and one process at a time may: end that "
            f"one {how}, or delete {self._file} if it has ended"
        )


@contextlib.contextmanager
def lease(model_dir: str, log: Callable[[str], None] = print) -> Iterator[list[Lease]]:
    """Hold the lease inside, on the first host; UserError on all if another process has it."""
    held, error = list[Lease](), None
    try:
        held += [Lease(model_dir, log)] if runtime.is_first() else []
    except UserError as refusal:
        error = refusal
    runtime.raise_together(error)
    with contextlib.ExitStack() as stack:
        for one in held:
            stack.callback(one.release)
        yield held
