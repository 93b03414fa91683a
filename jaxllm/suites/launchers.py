"""Where the runs of a suite train: each is `python -m jaxllm.train` with its own flags."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, Protocol

State = Literal["running", "ended", "failed"]


class Launcher(Protocol):
    """Starts runs somewhere, and knows whether they are still there."""

    def submit(self, name: str, command: Sequence[str], log: Path) -> None:
        """Start a command, whose output goes to `log`."""

    def state(self, name: str) -> State:
        """The state of a run that was submitted."""

    def cancel(self, name: str) -> None:
        """Ask a run to save and stop."""


class Local(Launcher):
    """Processes of this machine."""

    def __init__(self) -> None:
        self._processes: dict[str, subprocess.Popen[bytes]] = {}

    def submit(self, name: str, command: Sequence[str], log: Path) -> None:
        """Start a process."""
        with log.open("ab") as output:
            self._processes[name] = subprocess.Popen(
                [sys.executable, *command], stdout=output, stderr=subprocess.STDOUT
            )

    def state(self, name: str) -> State:
        """Whether the process runs, and how it ended."""
        code = self._processes[name].poll()
        return "running" if code is None else "failed" if code else "ended"

    def cancel(self, name: str) -> None:
        """SIGTERM, upon which a run saves; returns when it has ended."""
        process = self._processes[name]
        if process.poll() is None:
            process.terminate()
        process.wait()
