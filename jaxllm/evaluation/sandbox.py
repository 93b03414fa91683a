"""Run a model-generated program in a separate, restricted process.

`sandbox_child.py`, the script of that process, describes the isolation. A program's output is
discarded and its environment is empty. It has passed if its last statement was reached: an exit
before the appended tests is a failure.
"""

from __future__ import annotations

import contextlib
import dataclasses
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

_CHILD = Path(__file__).with_name("sandbox_child.py")
_REPORT_BYTES = 4096
_WAYS = {
    True: "isolated here (EvalConfig.run_code='unisolated' runs them all the same, at the risk "
    "that they read and change your files and reach the network)",
    False: "run here",
}
_chosen = True


@dataclasses.dataclass(frozen=True)
class Limits:
    """Resource limits of a program."""

    cpu_seconds: int = 3  # CPU time per process; Chen et al. (2021) allow 3 seconds.
    wall_seconds: float = 30.0  # wall time; longer, so that a busy machine fails no program
    memory_bytes: int = 1 << 30  # address space per process
    file_bytes: int = 1 << 24  # size of a file; with namespaces also the total size of all files
    files: int = 64  # number of open files; with namespaces also of existing files
    processes: int = 16  # number of concurrent processes and threads; without namespaces always 1


@dataclasses.dataclass(frozen=True)
class Outcome:
    """Whether a program reached its end, the cause of a failure, and whether it was isolated."""

    passed: bool
    reason: str
    isolated: bool


def run(program: str, limits: Limits | None = None, isolate: bool | None = None) -> Outcome:
    """Run the Python source `program` in an empty scratch directory, and wait for its end.

    `isolate` decides about namespaces; None is the last `choose`, else True. UserError if isolation
    is not available here; nothing has run.
    """
    limits, token = limits or Limits(), secrets.token_hex(16)
    isolate = _chosen if isolate is None else isolate
    with tempfile.TemporaryDirectory(prefix="jaxllm-") as scratch, tempfile.TemporaryFile() as job:
        settings = {"program": program, "token": token, "scratch": scratch, "isolate": isolate}
        job.write(json.dumps(settings | dataclasses.asdict(limits)).encode())
        job.seek(0)
        process = subprocess.Popen(
            [sys.executable, "-s", "-P", str(_CHILD)],
            stdin=job, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True,
            env={
                "PATH": "/usr/bin:/bin", "HOME": scratch, "LANG": "C.UTF-8", "PYTHONHASHSEED": "0",
                "PYTHONDONTWRITEBYTECODE": "1", "OPENBLAS_NUM_THREADS": "1",
            },
        )  # fmt: skip
        try:
            output, in_time = _read(process, time.monotonic() + limits.wall_seconds)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    mode, _, report = output.decode(errors="replace").partition("\n")
    if mode == "refused":
        raise UserError(f"programs that a model writes cannot be {_WAYS[isolate]}: {report}")
    isolated = mode == "isolated"
    if report == token:
        return Outcome(True, "passed", isolated)
    if not in_time:
        return Outcome(False, f"longer than {limits.wall_seconds:g} s", isolated)
    code = process.returncode if process.returncode >= 0 else 128 - process.returncode
    if code == 128 + signal.SIGXCPU:
        report = f"more than {limits.cpu_seconds} s of CPU time"
    return Outcome(False, report or f"left before its end (exit status {code})", isolated)


def choose(isolate: bool) -> None:
    """Set whether this process isolates programs; UserError if that is not possible here."""
    global _chosen
    _chosen = True
    outcome = run("pass", isolate=isolate)
    if not outcome.passed:
        raise UserError(f"programs cannot be run here: {outcome.reason}")
    _chosen = isolate


def _read(process: subprocess.Popen[bytes], deadline: float) -> tuple[bytes, bool]:
    """Read the process' output, at most a few kilobytes; return it, and whether it has ended."""
    assert process.stdout is not None
    output, descriptor = b"", process.stdout.fileno()
    poll = select.poll()
    poll.register(descriptor)
    with process.stdout:
        while len(output) < _REPORT_BYTES:
            if not poll.poll(1000 * max(0.0, deadline - time.monotonic())):
                return output, False
            new = os.read(descriptor, _REPORT_BYTES)
            if not new:
                break
            output += new
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(max(0.0, deadline - time.monotonic()))
    return output, process.returncode is not None
