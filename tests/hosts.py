"""Starts one command as the processes of several hosts, with virtual devices shared among them."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from tests.conftest import REPOSITORY

Host = subprocess.Popen[str]


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
) -> list[Host]:
    """`python -m jaxllm.<command>` on `count` hosts that have `devices` together.

    One host joins itself, too: its collectives are those of several then, not XLA's own. The last
    host has the flags `last` besides, and works in `last_home`.
    """
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices // count}",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
        "JAX_COMPILATION_CACHE_DIR": os.environ.get(
            "JAX_COMPILATION_CACHE_DIR", str(home / f"xla-{count}")
        ),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "PYTHONUNBUFFERED": "1",
        "PYTHONPATH": str(REPOSITORY),
    }
    address = f"--coordinator_address=localhost:{free_port()}"
    return [
        subprocess.Popen(
            [
                sys.executable, "-m", f"jaxllm.{command}", *flags,
                address, f"--num_processes={count}", f"--process_id={process}",
                *(last if process == count - 1 else ()),
            ],
            env=environment, cwd=(last_home if process == count - 1 else None) or home,
            text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )
        for process in range(count)
    ]  # fmt: skip


def finish(hosts: list[Host], code: int = 0) -> list[str]:
    """The outputs of processes that must all end with `code`."""
    outputs = [host.communicate(timeout=300)[0] for host in hosts]
    assert [host.returncode for host in hosts] == [code] * len(hosts), "\n".join(outputs)
    return outputs


def wait_for(hosts: list[Host], ready: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 300
    while not ready():
        ended = [host.communicate()[0] for host in hosts if host.poll() is not None]
        assert not ended and time.monotonic() < deadline, ended
        time.sleep(0.002)
