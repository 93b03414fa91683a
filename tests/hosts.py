"""Starts one command as the processes of several hosts, with virtual devices shared among them."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from tests.training.processes import environment
from tests.zygote import NO_REPORT, Process, zygote


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return probe.getsockname()[1]


def start_hosts(
    home: Path,
    count: int,
    devices: int,
    command: str,
    *flags: str,
    last: Sequence[str] = (),
    last_home: Path | None = None,
    missing: Sequence[int] = (),
) -> list[Process]:
    """`python -m jaxllm.<command>` on `count` hosts that have `devices` together.

    One host joins itself, too: its collectives are those of several then, not XLA's own. The last
    host has the flags `last` besides, and works in `last_home`; those `missing` are not started.
    """
    cache = os.environ["JAX_COMPILATION_CACHE_DIR"]
    if "://" not in cache:
        cache += f"/{count}-hosts"
    variables = environment(cache, devices // count) | NO_REPORT
    address = f"--coordinator_address=localhost:{free_port()}"
    return [
        Process(
            [
                f"jaxllm.{command}", *flags,
                address, f"--num_processes={count}", f"--process_id={process}",
                *(last if process == count - 1 else ()),
            ],
            (last_home if process == count - 1 else None) or home,
            variables, zygote().new_file(),
        )
        for process in range(count) if process not in missing
    ]  # fmt: skip


def finish(hosts: list[Process], code: int = 0) -> list[str]:
    """The outputs of processes that must all end with `code`."""
    outputs = [host.communicate(timeout=300)[0] for host in hosts]
    assert [host.returncode for host in hosts] == [code] * len(hosts), "\n".join(outputs)
    return outputs


def wait_for(hosts: list[Process], ready: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 300
    while not ready():
        ended = [host.communicate()[0] for host in hosts if host.poll() is not None]
        assert not ended and time.monotonic() < deadline, ended
        time.sleep(0.01)  # reading what they write takes time from them
