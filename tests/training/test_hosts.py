"""Two hosts train the run that one host trains, and one host goes on with it."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from jaxllm.checkpoints import jsonl
from jaxllm.checkpoints.manager import available
from tests.conftest import REPOSITORY


def start(model_dir: Path, port: int, index: int, count: int) -> subprocess.Popen[str]:
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={4 // count}",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
        "PYTHONPATH": str(REPOSITORY),
    }
    program = Path(__file__).with_name("one_host.py")
    return subprocess.Popen(
        [sys.executable, str(program), str(model_dir), str(port), str(index), str(count)],
        env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


def start_hosts(model_dir: Path) -> list[subprocess.Popen[str]]:
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    return [start(model_dir, port, index, 2) for index in (0, 1)]


def finish(processes: list[subprocess.Popen[str]], last_line: str) -> None:
    outputs = [process.communicate(timeout=240)[0] for process in processes]
    for process, output in zip(processes, outputs, strict=True):
        assert process.returncode == 0, output
        assert last_line in output


def losses(run: Path) -> list[float]:
    return [line["loss"] for line in jsonl.read(run / "metrics.jsonl")[0]]


@pytest.mark.slow
def test_hosts_share_a_run_and_hand_it_over(tmp_path: Path) -> None:
    """2 hosts x 2 devices; a preemption of one host stops both; 1 host x 4 devices goes on."""
    hosts = start_hosts(tmp_path / "two")
    while not losses(tmp_path / "two"):
        assert all(host.poll() is None for host in hosts), hosts[0].communicate()
        time.sleep(0.002)
    hosts[1].send_signal(signal.SIGTERM)
    outputs = [host.communicate(timeout=240)[0] for host in hosts]
    assert [host.returncode for host in hosts] == [0, 0], outputs
    lines = {output.splitlines()[-1] for output in outputs}
    assert len(lines) == 1, "both hosts stopped at the same step"
    assert lines == {f"stopped {available(tmp_path / 'two')[-1].step}"}
    finish([start(tmp_path / "two", 0, 0, 1)], "finished 40")

    finish([start(tmp_path / "one", 0, 0, 1)], "finished 40")
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=1e-5)
    assert [e.step for e in available(tmp_path / "two")] == [
        e.step for e in available(tmp_path / "one")
    ]
