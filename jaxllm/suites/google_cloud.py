"""Runs on Google Cloud: as workloads of a GKE cluster through xpk, or on TPU VMs of their own."""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from jaxllm.errors import UserError
from jaxllm.suites.launchers import Launcher, Options, State, answer, ask, begin, process_of

SCRIPTS = Path(__file__).resolve().parents[2] / "tpu_scripts"
SAVING = {"termination-grace-period-seconds": "300"}


class Xpk(Launcher):
    """Workloads whose image is that of tpu_scripts/Dockerfile."""

    here = False
    poll_seconds = 60

    def __init__(self, options: Options) -> None:
        """`options`: of `xpk workload create`."""
        self._options = dict(options)

    def submit(self, name: str, flags: Sequence[str], log: Path) -> None:
        """Create a workload; one of that name that has ended makes room."""
        if self.state(name) != "none":
            self.cancel(name)
        run = ["bash", "tpu_scripts/on_host.sh", "run", "--coordinator_address=auto", *flags]
        options = SAVING | self._options | {"workload": name, "command": shlex.join(run)}
        log.write_text(answer(["xpk", "workload", "create", *words(options)]))

    def state(self, name: str) -> State:
        """As the list of workloads has it, whose columns end with status, message and time."""
        listed = ask(self._command("list", **{"filter-by-job": name}))
        row = next((row for row in listed.splitlines() if row.split()[:1] == [name]), None)
        if row is None:
            return "none"
        if "Finished" not in row.split():
            return "running"
        return "failed" if "failed" in row.lower() else "ended"

    def cancel(self, name: str) -> None:
        """Delete the workload: its pods are sent SIGTERM, upon which a run saves."""
        ask(self._command("delete", workload=name))

    def _command(self, verb: str, **options: str) -> list[str]:
        where = {k: v for k, v in self._options.items() if k in ("cluster", "zone", "project")}
        return ["xpk", "workload", verb, *words(where | options)]


class TpuVm(Launcher):
    """A TPU for each run, which keep_running.sh asks for, keeps going and gives back.

    That script may end before its run: called again, it goes on from what it finds. While it lives
    it holds a lock, so that a run has one of them.
    """

    here = False
    poll_seconds = 5

    def __init__(self, options: Options) -> None:
        """`options`: of keep_running.sh."""
        if not SCRIPTS.exists() or not shutil.which("gcloud"):
            raise UserError("--launcher=tpu_vm needs a checkout of jaxllm, and the command gcloud")
        self._options = dict(options)

    def submit(self, name: str, flags: Sequence[str], log: Path) -> None:
        """Start keep_running.sh."""
        keep = _script("keep_running", name, self._options | {"delete_when_finished": ""})
        answer([*keep, "--dry_run", "--", *flags])
        begin(name, [*keep, "--", *flags], log)

    def state(self, name: str) -> State:
        """Running while its script is; how the run ended is in its directory."""
        return "running" if process_of(name) else "none"

    def cancel(self, name: str) -> None:
        """End the script, let the run save and stop, and give back the TPU or the request."""
        if keeper := process_of(name):
            os.killpg(keeper, signal.SIGTERM)
        where = {k: v for k, v in self._options.items() if k in ("zone", "project", "slices")}
        try:
            answer(_script("stop", name, where))
        except UserError as error:  # of a TPU that is not there yet
            print(f"{name}: not stopped ({error}); its TPU is given back", file=sys.stderr)
        ask(_script("delete", name, where))


def _script(script: str, name: str, options: Options) -> list[str]:
    return [str(SCRIPTS / f"{script}.sh"), f"--name={name}", *words(options)]


def words(options: Options) -> list[str]:
    """Options as words of a command: --name=VALUE, or --name of a switch."""
    return [f"--{name}={value}" if value else f"--{name}" for name, value in options.items()]
