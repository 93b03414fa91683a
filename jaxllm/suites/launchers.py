"""Where the runs of a suite train: each is `python -m jaxllm.train` with its own flags."""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Literal, Protocol

from jaxllm.errors import UserError, one_line

State = Literal["none", "running", "ended", "failed"]
TRAIN = ("-m", "jaxllm.train")  # as Python's arguments
PAUSES = (5, 15, 45, 135)  # seconds between the tries of a question that a cluster did not answer
Options = Mapping[str, str]  # of a launcher's command, without dashes; a switch has the value ""


class Launcher(Protocol):
    """Starts runs somewhere, and knows whether they are still there.

    A run is known by its name there, so that a suite command that was lost and is given again finds
    the runs that go on. Every method raises UserError where a command is missing or refuses.
    """

    here: bool  # whether its runs save and end with the suite command, unless that is killed
    poll_seconds: float  # between two looks

    def submit(self, name: str, flags: Sequence[str], log: Path) -> None:
        """Start jaxllm.train with `flags`; what it or its launcher prints goes to `log`."""

    def state(self, name: str) -> State:
        """The state of a run; running from when it waits in a queue on, none where unknown."""

    def cancel(self, name: str) -> None:
        """Ask a run to save and stop."""


class Local(Launcher):
    """Processes of this machine, which Ctrl-C in a terminal does not reach on its own."""

    here = True
    poll_seconds = 0.5

    def __init__(self) -> None:
        self._processes: dict[str, subprocess.Popen[bytes]] = {}

    def submit(self, name: str, flags: Sequence[str], log: Path) -> None:
        """Start a process."""
        self._processes[name] = begin(name, [sys.executable, *TRAIN, *flags], log)

    def state(self, name: str) -> State:
        """Whether the process runs, even one of a suite that was killed, and how it ended."""
        if name not in self._processes:
            return "running" if process_of(name) else "none"
        code = self._processes[name].poll()
        return "running" if code is None else "failed" if code else "ended"

    def cancel(self, name: str) -> None:
        """SIGTERM, upon which a run saves."""
        if process := process_of(name):
            os.kill(process, signal.SIGTERM)


def begin(name: str, command: Sequence[str], log: Path) -> subprocess.Popen[bytes]:
    """Start a process of that name, in a session of its own; it holds the lock of the name."""
    with _lock(name) as file, log.open("ab") as output:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=output,
            start_new_session=True, pass_fds=[file.fileno()],
        )  # fmt: skip
        file.truncate(0)
        file.write(str(process.pid))
    return process


def process_of(name: str) -> int | None:
    """The process that began with that name and lives, by whichever command; or None."""
    try:
        with _lock(name):
            return None
    except BlockingIOError:
        return int(_lock_file(name).read_text())


def _lock_file(name: str) -> Path:
    return Path(tempfile.gettempdir()) / f"jaxllm-{os.getuid()}-{name}.lock"


@contextlib.contextmanager
def _lock(name: str) -> Iterator[IO[str]]:
    """Hold the lock of a name, as children that inherit its file; BlockingIOError if one does."""
    _lock_file(name).touch()  # lest it is cleared away as old
    with _lock_file(name).open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield file


def ask(command: Sequence[str]) -> str:
    """The `answer` of a command that may be repeated, as a cluster is now and then too busy."""
    for pause in PAUSES:
        try:
            return answer(command)
        except UserError as error:
            if isinstance(error.__cause__, OSError):
                raise
            print(f"{error}; again in {pause} s", file=sys.stderr)
            time.sleep(pause)
    return answer(command)


def answer(command: Sequence[str]) -> str:
    """What a launcher's command prints; UserError, with its last line, if it fails."""
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
        )
    except OSError as error:
        raise UserError(f"--launcher needs the command {command[0]}: {error.strerror}") from error
    if done.returncode:
        said = (done.stderr.strip() or done.stdout.strip() or "it says nothing").splitlines()[-1]
        raise UserError(f"{command[0]} failed with {done.returncode}: {one_line(said)}")
    return done.stdout
