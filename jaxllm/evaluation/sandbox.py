"""Runs a program that a model wrote, in a process of its own with limits on what it can do.

The walls are described in `jail.py`, which that process runs. What a program prints is thrown
away, and it gets an empty environment. It has passed if its last statement was reached: with the
tests behind it, no way out before them counts.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import os
import secrets
import select
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from jaxllm.errors import UserError

_JAIL = Path(__file__).with_name("jail.py")
_REPORT_BYTES = 4096


@dataclasses.dataclass(frozen=True)
class Limits:
    """What a program may use.

    Attributes:
      cpu_seconds: of each of its processes; Chen et al. (2021) allow 3 seconds.
      wall_seconds: from start to end; longer, so that a busy machine fails no program.
      memory_bytes: address space of each of its processes.
      file_bytes: a file's size, and where namespaces are, of all files together.
      files: open ones; and where namespaces are, existing ones.
      processes: with threads, at one time. Without namespaces there is one, with one thread.
    """

    cpu_seconds: int = 3
    wall_seconds: float = 30.0
    memory_bytes: int = 1 << 30
    file_bytes: int = 1 << 24
    files: int = 64
    processes: int = 16


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How a program ended.

    Attributes:
      passed: it ran to its end without an exception.
      reason: what ended it otherwise, in a few words.
      isolated: namespaces were there, see `jail.py`.
    """

    passed: bool
    reason: str
    isolated: bool


def run(program: str, limits: Limits | None = None, isolate: bool = True) -> Outcome:
    """Runs `program` in an empty scratch directory, and waits for its end.

    Args:
      program: Python source.
      limits: what it may use.
      isolate: use namespaces where the kernel allows them.
    """
    limits, token = limits or Limits(), secrets.token_hex(16)
    with tempfile.TemporaryDirectory(prefix="jaxllm-") as scratch, tempfile.TemporaryFile() as job:
        asked = {"program": program, "token": token, "scratch": scratch, "isolate": isolate}
        job.write(json.dumps(asked | dataclasses.asdict(limits)).encode())
        job.seek(0)
        process = subprocess.Popen(
            [sys.executable, "-s", "-P", str(_JAIL)],
            stdin=job, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True,
            env={
                "PATH": "/usr/bin:/bin", "HOME": scratch, "LANG": "C.UTF-8", "PYTHONHASHSEED": "0",
                "PYTHONDONTWRITEBYTECODE": "1", "OPENBLAS_NUM_THREADS": "1",
            },
        )  # fmt: skip
        try:
            said, in_time = _read(process, time.monotonic() + limits.wall_seconds)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    walls, _, report = said.decode(errors="replace").partition("\n")
    isolated = walls == "isolated"
    if report == token:
        return Outcome(True, "passed", isolated)
    if not in_time:
        return Outcome(False, f"longer than {limits.wall_seconds:g} s", isolated)
    code = process.returncode if process.returncode >= 0 else 128 - process.returncode
    if code == 128 + signal.SIGXCPU:
        report = f"more than {limits.cpu_seconds} s of CPU time"
    return Outcome(False, report or f"left before its end (exit status {code})", isolated)


@functools.cache
def isolated() -> bool:
    """Whether programs have namespaces of their own on this machine.

    Raises:
      UserError: none can be run at all.
    """
    outcome = run("pass")
    if not outcome.passed:
        raise UserError(f"programs cannot be run here: {outcome.reason}")
    return outcome.isolated


def _read(process: subprocess.Popen[bytes], deadline: float) -> tuple[bytes, bool]:
    """What the process writes until it ends, a few kilobytes at most; and whether it ended."""
    assert process.stdout is not None
    said, output = b"", process.stdout.fileno()
    poll = select.poll()
    poll.register(output)
    with process.stdout:
        while len(said) < _REPORT_BYTES:
            if not poll.poll(1000 * max(0.0, deadline - time.monotonic())):
                return said, False
            new = os.read(output, _REPORT_BYTES)
            if not new:
                break
            said += new
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(max(0.0, deadline - time.monotonic()))
    return said, process.returncode is not None
