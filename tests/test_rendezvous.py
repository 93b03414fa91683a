"""How hosts find each other; real runs on several of them are in tests/training/test_hosts.py."""

import socket
import threading
import time

import pytest

from jaxllm import cli, runtime
from jaxllm.errors import UserError
from jaxllm.rendezvous import ProcessSpec, wait_for_hosts
from tests.hosts import free_port


def join(*flags: str) -> None:
    parser = cli.parser("")
    runtime.add_host_flags(parser)
    runtime.join_hosts(cli.parse(parser, flags))


def meet_all(address: str, count: int, processes: list[int], timeout: float) -> dict[int, str]:
    """What `wait_for_hosts` says to each of `processes` of `count`; '' where it returns."""
    said = {}

    def meet(process: int) -> None:
        try:
            wait_for_hosts(ProcessSpec(address, count, process), timeout)
            said[process] = ""
        except UserError as error:
            said[process] = str(error)

    threads = [threading.Thread(target=meet, args=(process,), daemon=True) for process in processes]
    for thread in threads:
        thread.start()
        time.sleep(0.1)  # the first ones wait for the others
    for thread in threads:
        thread.join()
    return said


def test_hosts_meet_in_any_order_and_leave_the_port_free() -> None:
    port = free_port()
    assert meet_all(f"localhost:{port}", 3, [2, 0, 1], 20) == {0: "", 1: "", 2: ""}
    socket.create_server(("", port)).close()


def test_all_learn_who_is_missing() -> None:
    said = meet_all(f"localhost:{free_port()}", 4, [0, 2], 2)
    assert sorted(said) == [0, 2]
    assert all("process 1, 3 did not come to localhost:" in text for text in said.values())
    (alone,) = meet_all(f"localhost:{free_port()}", 2, [1], 1).values()
    assert "process 1 of 2: process 0 did not answer at localhost:" in alone


@pytest.mark.parametrize("sent", [b"", b"GET / HTTP/1.1\r\n\r\n", b"\xff\x00", b"jaxllm x 2"])
def test_a_stray_connection_does_not_end_the_rendezvous(sent: bytes) -> None:
    """A health probe or a port scan connects, says what it says, and closes."""
    port = free_port()
    said: dict[int, str] = {}
    meeting = threading.Thread(
        target=lambda: said.update(meet_all(f"localhost:{port}", 2, [0], 20))
    )
    meeting.start()
    for _ in range(200):
        try:
            with socket.create_connection(("localhost", port)) as probe:
                probe.sendall(sent)
            break
        except OSError:
            time.sleep(0.05)
    assert meet_all(f"localhost:{port}", 2, [1], 20) == {1: ""}
    meeting.join()
    assert said == {0: ""}


def test_a_host_of_another_run_is_not_counted() -> None:
    """It would be one of three, and these are two."""
    address = f"localhost:{free_port()}"
    other = threading.Thread(target=meet_all, args=(address, 3, [1], 1), daemon=True)
    other.start()
    assert "process 1 did not come" in meet_all(address, 2, [0], 2)[0]
    other.join()


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--num_processes=2"], "need --coordinator_address"),
        (["--coordinator_address=localhost:80"], "needs --num_processes and --process_id"),
        (["--coordinator_address=here", "--num_processes=2", "--process_id=0"], "write HOST:PORT"),
        (["--coordinator_address=a:1", "--num_processes=2", "--process_id=2"], "from 0 to 1"),
        (["--coordinator_address=auto"], "no TPU pod and no Slurm job"),
    ],
)
def test_flags_that_do_not_fit_are_named(flags: list[str], words: str) -> None:
    with pytest.raises(UserError, match=words):
        join(*flags)


def test_slurm_names_the_hosts(monkeypatch: pytest.MonkeyPatch) -> None:
    job = {"JOB_ID": "77", "STEP_NODELIST": "node[3-4]", "NTASKS": "2", "PROCID": "1"}
    for name, value in (job | {"LOCALID": "0", "STEP_NUM_NODES": "2"}).items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    spec = runtime._detected(1)
    assert spec.address.startswith("node3:")
    assert (spec.processes, spec.process) == (2, 1)
