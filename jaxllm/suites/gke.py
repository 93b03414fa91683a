"""Runs as workloads of a GKE cluster, through xpk."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from jaxllm.suites.launchers import Launcher, Options, State, answer, ask

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


def words(options: Options) -> list[str]:
    """Options as words of a command: --name=VALUE, or --name of a switch."""
    return [f"--{name}={value}" if value else f"--{name}" for name, value in options.items()]
