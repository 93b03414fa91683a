"""Start-up barrier of the processes of a run, with an error that names missing ones.

JAX has its own start-up timeout, but aborts every process from C++, with a stack trace and no name,
if one is missing. So the processes connect first, on the port that JAX will use.
"""

from __future__ import annotations

import contextlib
import re
import socket
import time
from typing import NamedTuple

from jaxllm.errors import UserError

_GO = "go"


class ProcessSpec(NamedTuple):
    """One of `processes` processes; the first listens at `address`, HOST:PORT."""

    address: str
    processes: int
    process: int
    local_device_ids: list[int] | None = None


def wait_for_hosts(spec: ProcessSpec, timeout: float) -> None:
    """Return in every process once all have connected.

    UserError if some have not within `timeout` seconds.
    """
    if spec.processes > 1:
        deadline = time.monotonic() + timeout
        answer = _connect(spec, deadline) if spec.process else _accept(spec, deadline)
        if answer != _GO:
            waited = f"within {timeout:.0f} s (--initialization_timeout)"
            raise UserError(f"process {spec.process} of {spec.processes}: {answer} {waited}")


def _accept(spec: ProcessSpec, deadline: float) -> str:
    """Process 0: wait for the others, then answer all of them."""
    port = int(spec.address.rpartition(":")[2])
    missing = set(range(1, spec.processes))
    dual = socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if dual else socket.AF_INET
    with contextlib.ExitStack() as opened:
        try:
            server = socket.create_server(("", port), family=family, dualstack_ipv6=dual)
        except OSError as error:
            raise UserError(f"process 0 cannot listen on port {port}: {error.strerror}") from error
        opened.enter_context(server)
        peers = []
        while missing and (left := deadline - time.monotonic()) > 0:
            server.settimeout(left)
            with contextlib.suppress(OSError):
                peer = opened.enter_context(server.accept()[0])
                peer.settimeout(5.0)
                # anything may connect to a port: a health probe, a scan, a host of another run
                hello = re.fullmatch(rb"jaxllm (\d{1,9}) (\d{1,9})", peer.recv(100))
                if hello and int(hello[2]) == spec.processes:
                    peers.append(peer)
                    missing.discard(int(hello[1]))
        names = ", ".join(map(str, sorted(missing)))
        answer = f"process {names} did not come to {spec.address}" if missing else _GO
        for peer in peers:
            with contextlib.suppress(OSError):
                peer.sendall(answer.encode())
    return answer


def _connect(spec: ProcessSpec, deadline: float) -> str:
    """Other processes: connect to process 0, with retries, and wait for its answer."""
    host, _, port = spec.address.rpartition(":")
    hello = f"jaxllm {spec.process} {spec.processes}".encode()
    while (left := deadline - time.monotonic()) > 0:
        with contextlib.suppress(OSError):
            with socket.create_connection((host.strip("[]"), int(port)), timeout=left) as server:
                server.sendall(hello)
                server.settimeout(left + 5.0)  # process 0 may have started later
                answer = server.recv(200).decode(errors="replace")
            if answer == _GO or answer.startswith("process "):
                return answer
        time.sleep(0.2)
    return f"process 0 did not answer at {spec.address}"
