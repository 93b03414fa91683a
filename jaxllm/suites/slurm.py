"""Runs as Slurm jobs, through submitit."""

from __future__ import annotations

import ast
import dataclasses
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxllm.errors import UserError, one_line
from jaxllm.suites.launchers import TRAIN, Launcher, Options, State, ask

if TYPE_CHECKING:
    from submitit.helpers import DelayedSubmission

RESTARTS = 100  # after a time limit
SAVING_SECONDS = 300  # before it


class Slurm(Launcher):
    """Jobs of Slurm; at a job's time limit, or preempted, a run saves and its job is requeued."""

    here = False
    poll_seconds = 10

    def __init__(self, options: Options) -> None:
        """`options`: of sbatch, by submitit's names; `time` is in minutes."""
        self._options = {name: _value(text) for name, text in options.items()}
        if not isinstance(self._options.get("time"), int):
            raise UserError("--launcher=slurm needs --launcher_option=time=MINUTES, of a job")

    def submit(self, name: str, flags: Sequence[str], log: Path) -> None:
        """Submit a job, whose own files are in `submitit/` beside `log`."""
        try:
            from submitit import SlurmExecutor
        except ImportError as error:
            raise UserError("--launcher=slurm needs: pip install 'jaxllm[slurm]'") from error
        several = self._options.get("nodes", 1) * self._options.get("ntasks_per_node", 1) > 1
        command = [sys.executable, *TRAIN, *flags, *["--coordinator_address=auto"] * several]
        try:
            jobs = SlurmExecutor(log.parent / "submitit", max_num_timeout=RESTARTS)
            settings = {"signal_delay_s": SAVING_SECONDS} | self._options | {"job_name": name}
            jobs.update_parameters(**settings)
            jobs.submit(Job(command, str(log.absolute())))
        except (OSError, RuntimeError, ValueError) as error:
            why = one_line(error)[:200]
            raise UserError(f"--launcher=slurm: sbatch refuses {name}: {why}") from error

    def state(self, name: str) -> State:
        """Running while it is in the queue; how the run ended is in its directory."""
        queue = ask(["squeue", "--me", "--noheader", f"--name={name}", "--format=%A %T"])
        return "running" if queue.strip() else "none"

    def cancel(self, name: str) -> None:
        """Take it out of the queue, or send SIGTERM, upon which a run saves."""
        ask(["scancel", "--me", "--state=PENDING", f"--name={name}"])
        ask(["scancel", "--me", "--state=RUNNING", "--signal=TERM", f"--name={name}"])


@dataclasses.dataclass
class Job:
    """What runs in a Slurm job; submitit calls `checkpoint` before it requeues the job."""

    command: list[str]
    log: str

    def __call__(self) -> None:
        """Run the command to its end; CalledProcessError if it fails."""
        # Slurm sends submitit's signal to every process of a job.
        shielded = ["bash", "-c", "trap '' USR2; exec \"$@\"", "run", *self.command]
        with open(self.log, "ab") as output:
            self._pid = subprocess.Popen(shielded, stdout=output, stderr=output).pid
        code = self._wait()
        if code:
            raise subprocess.CalledProcessError(code, self.command)

    def checkpoint(self) -> DelayedSubmission:
        """Let the run save and end; what to run when the job is there again."""
        from submitit.helpers import DelayedSubmission

        os.kill(self._pid, 15)
        self._wait()
        return DelayedSubmission(Job(self.command, self.log))

    def _wait(self) -> int:
        # not Popen.wait, whose lock a signal handler that waits as well would never get
        return os.waitstatus_to_exitcode(os.waitpid(self._pid, 0)[1])


def _value(text: str) -> Any:
    try:
        return ast.literal_eval(text or "True")
    except (SyntaxError, ValueError):
        return text
