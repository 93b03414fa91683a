"""Several hosts: how they find each other, and how one of them leaves.

    --coordinator_address=auto                 on every host of a TPU pod or a Slurm job
    --coordinator_address=HOST:PORT --num_processes=4 --process_id=0     elsewhere: 0, 1, 2, 3

Where a host does not come, JAX ends the others from C++, with a stack trace and no name. So they
meet here first, on the port that JAX will use: process 0 counts them and says who is missing.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import socket
import sys
import time
from typing import NamedTuple

from jaxllm.errors import UserError

_HELLO, _GO = "jaxllm", "go"


class Place(NamedTuple):
    """Where a process is among `processes`, of which the first listens at `address`, HOST:PORT."""

    address: str
    processes: int
    process: int
    local_device_ids: list[int] | None = None


_joined: list[Place] = []  # this process's, once it has joined others


def add_flags(flags: argparse.ArgumentParser) -> None:
    """The flags with which a command is started on several hosts."""
    group = flags.add_argument_group("several hosts")
    group.add_argument(
        "--coordinator_address", metavar="HOST:PORT",
        help="of process 0, or 'auto' on TPU pods and Slurm (default: TrainConfig.coordinator)",
    )  # fmt: skip
    group.add_argument("--num_processes", type=int, metavar="N", help="processes in all")
    group.add_argument("--process_id", type=int, metavar="I", help="this one: 0 to N-1")
    group.add_argument(
        "--initialization_timeout", type=int, default=300, metavar="SECONDS",
        help="how long to wait for the others (default: 300)",
    )  # fmt: skip
    group.add_argument(
        "--heartbeat_timeout", type=int, default=100, metavar="SECONDS",
        help="a process that is silent for so long is given up, and the others end (default: 100)",
    )  # fmt: skip


def join(args: argparse.Namespace, coordinator: str | None = None) -> None:
    """Joins the hosts that the flags name, or `coordinator` where they give no address.

    Raises:
      UserError: a flag is missing or wrong, or a host does not come in time: all say which.
    """
    address, timeout = args.coordinator_address or coordinator, args.initialization_timeout
    if address is None:
        if args.num_processes is not None or args.process_id is not None:
            raise UserError("--num_processes and --process_id need --coordinator_address=HOST:PORT")
        return
    import jax

    auto = address == "auto"
    place = _found(timeout) if auto else _named(address, args.num_processes, args.process_id)
    meet(place, timeout)
    jax.distributed.initialize(
        *place,
        initialization_timeout=timeout,
        heartbeat_timeout_seconds=args.heartbeat_timeout,
    )
    if place.processes > 1:
        _joined.append(place)


def is_first() -> bool:
    """Whether this is the process that writes files and prints."""
    import jax

    return jax.process_index() == 0


def leave(code: int) -> None:
    """Ends a process that failed at once, where others could wait for it, and it for them.

    An ordinary end meets the other processes a last time. They learn of this one's from its
    heartbeat, which stops, and end as well.
    """
    if _joined:
        place = _joined[0]
        print(
            f"error: process {place.process} of {place.processes} ends, and the others will. If it "
            "lost a connection, another host failed first: see that one's output",
            file=sys.stderr,
            flush=True,
        )
        os._exit(code)


def meet(place: Place, timeout: float) -> None:
    """Returns in every process when all have come.

    Raises:
      UserError: they have not after `timeout` seconds.
    """
    if place.processes > 1:
        deadline = time.monotonic() + timeout
        answer = _greet(place, deadline) if place.process else _gather(place, deadline)
        if answer != _GO:
            waited = f"within {timeout:.0f} s (--initialization_timeout)"
            raise UserError(f"process {place.process} of {place.processes}: {answer} {waited}")


def _named(address: str, processes: int | None, process: int | None) -> Place:
    if processes is None or process is None:
        raise UserError(f"--coordinator_address={address} needs --num_processes and --process_id")
    if not 0 <= process < processes:
        raise UserError(f"--process_id={process}: it goes from 0 to {processes - 1}")
    if not (":" in address and address.rpartition(":")[2].isdigit()):
        raise UserError(f"--coordinator_address={address}: write HOST:PORT, or auto")
    return Place(address, processes, process)


def _found(timeout: int) -> Place:
    """What `jax.distributed.initialize()` would find: it does not tell."""
    from jax._src.clusters import ClusterEnv

    address, processes, process, devices = ClusterEnv.auto_detect_unset_distributed_params(
        None, None, None, None, None, timeout
    )
    if address is None or processes is None or process is None:
        raise UserError(
            "--coordinator_address=auto: JAX finds no TPU pod and no Slurm job here; "
            "give HOST:PORT of process 0, --num_processes and --process_id"
        )
    return Place(address, processes, process, None if devices is None else list(devices))


def _gather(place: Place, deadline: float) -> str:
    """Process 0: waits for the others and answers them all at once."""
    port = int(place.address.rpartition(":")[2])
    missing = set(range(1, place.processes))
    with contextlib.ExitStack() as opened:
        try:
            family = socket.AF_INET6 if socket.has_dualstack_ipv6() else socket.AF_INET
            server = opened.enter_context(
                socket.create_server(
                    ("", port), family=family, dualstack_ipv6=family == socket.AF_INET6
                )
            )
        except OSError as error:
            raise UserError(f"process 0 cannot listen on port {port}: {error.strerror}") from error
        guests = []
        while missing and (left := deadline - time.monotonic()) > 0:
            server.settimeout(left)
            with contextlib.suppress(OSError):
                guest = opened.enter_context(server.accept()[0])
                guest.settimeout(5.0)
                hello, process, processes = guest.recv(100).decode(errors="replace").split()
                if hello == _HELLO and int(processes) == place.processes:
                    guests.append(guest)
                    missing.discard(int(process))
        names = ", ".join(map(str, sorted(missing)))
        answer = f"process {names} did not come to {place.address}" if missing else _GO
        for guest in guests:
            with contextlib.suppress(OSError):
                guest.sendall(answer.encode())
    return answer


def _greet(place: Place, deadline: float) -> str:
    """Another process: says that it is here, as often as needed, and waits for the answer."""
    host, _, port = place.address.rpartition(":")
    hello = f"{_HELLO} {place.process} {place.processes}".encode()
    while (left := deadline - time.monotonic()) > 0:
        with contextlib.suppress(OSError):
            with socket.create_connection((host.strip("[]"), int(port)), timeout=left) as server:
                server.sendall(hello)
                server.settimeout(left + 5.0)  # process 0 may have begun to wait later
                answer = server.recv(200).decode(errors="replace")
            if answer == _GO or answer.startswith("process "):
                return answer
        time.sleep(0.2)
    return f"process 0 did not answer at {place.address}"
