"""Where the runs of a suite train: each is `python -m jaxllm.train` with its own flags."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, Protocol

from jaxllm.errors import UserError, one_line

State = Literal["none", "running", "ended", "failed"]
TRAIN = ("-m", "jaxllm.train")  # as Python's arguments
Options = Mapping[str, str]  # of a launcher's command, without dashes; a switch has the value ""


class Launcher(Protocol):
    """Starts runs somewhere, and knows whether they are still there.

    A run is known by its name there, so that a suite command that was lost and is given again finds
    the runs that go on. Every method raises UserError where a command is missing or refuses.

    Attributes:
      here: whether its runs end with the suite command.
      poll_seconds: between two looks.
    """

    here: bool
    poll_seconds: float

    def submit(self, name: str, flags: Sequence[str], log: Path) -> None:
        """Start jaxllm.train with `flags`; what it or its launcher prints goes to `log`."""

    def state(self, name: str) -> State:
        """The state of a run; running from when it waits in a queue on, none where unknown."""

    def cancel(self, name: str) -> None:
        """Ask a run to save and stop."""


class Local(Launcher):
    """Processes of this machine."""

    here = True
    poll_seconds = 0.5

    def __init__(self) -> None:
        self._processes: dict[str, subprocess.Popen[bytes]] = {}

    def submit(self, name: str, flags: Sequence[str], log: Path) -> None:
        """Start a process."""
        with log.open("ab") as output:
            self._processes[name] = subprocess.Popen(
                [sys.executable, *TRAIN, *flags], stdout=output, stderr=subprocess.STDOUT
            )

    def state(self, name: str) -> State:
        """Whether the process runs, and how it ended."""
        if name not in self._processes:
            return "none"
        code = self._processes[name].poll()
        return "running" if code is None else "failed" if code else "ended"

    def cancel(self, name: str) -> None:
        """SIGTERM, upon which a run saves; returns when it has ended."""
        process = self._processes[name]
        if process.poll() is None:
            process.terminate()
        process.wait()


def answer(command: Sequence[str]) -> str:
    """What a launcher's command prints.

    Raises:
      UserError: it is missing, or fails; with the last line that it printed.
    """
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
