"""What is set before JAX starts: memory, libtpu, and the cache of compiled programs."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from jaxllm.run.times import GoodputTimer
from jaxllm.runtime import exit_by_signals, process_age, silence_libtpu, tune_malloc
from tests.conftest import REPOSITORY

CALLS = 4
AGE = "import time; time.sleep(0.5); from jaxllm.runtime import process_age; print(process_age())"
PROGRAM = """
import resource, sys
if sys.argv[1] == "keep":
    from jaxllm.runtime import tune_malloc
    assert tune_malloc()
import jax, jax.numpy as jnp

f = jax.jit(lambda x: jnp.cumsum(jnp.sin(x) @ jnp.cos(x).T, axis=0).sum())
x = jnp.ones((4096, 16))  # two temporary buffers of 64 MiB
f(x).block_until_ready()
f(x).block_until_ready()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(CALLS):
    f(x).block_until_ready()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def page_faults(mode: str) -> int:
    program = PROGRAM.replace("CALLS", str(CALLS))
    command = [sys.executable, "-c", program, mode]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="glibc")
def test_later_calls_find_their_pages_in_place() -> None:
    default = page_faults("default")
    if default < CALLS * 16_384:
        pytest.skip("this C library keeps large blocks by itself")
    assert page_faults("keep") < default / 2
    assert tune_malloc()


def test_libtpu_is_quiet_where_no_tpu_is() -> None:
    program = (
        "from jaxllm.runtime import silence_libtpu\n"
        "silence_libtpu()\nimport jax\nprint(jax.devices()[0].platform)"
    )
    environment = {k: v for k, v in os.environ.items() if k != "JAX_PLATFORMS"}
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert "TPU" not in done.stderr


def test_tensorflow_is_imported_without_its_lines_of_log() -> None:
    program = (
        "import sys\nfrom jaxllm.runtime import import_seqio\n"
        "import_seqio().TaskRegistry\nprint('what follows', file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stderr == "what follows\n"


def test_a_tpu_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TPU_ACCELERATOR_TYPE", "")
    monkeypatch.delenv("TPU_ACCELERATOR_TYPE")
    monkeypatch.setenv("TPU_WORKER_HOSTNAMES", "mine")
    for slot, vendor in (("0000:00:04.0", "0x8086"), ("0000:00:05.0", "0x1ae0")):
        (tmp_path / slot).mkdir()
        (tmp_path / slot / "vendor").write_text(f"{vendor}\n")
    silence_libtpu(str(tmp_path))
    assert "TPU_ACCELERATOR_TYPE" not in os.environ
    silence_libtpu(str(tmp_path / "0000:00:04.0"))
    assert os.environ["TPU_ACCELERATOR_TYPE"] == "v4-8"
    assert os.environ["TPU_WORKER_HOSTNAMES"] == "mine"


CACHED = """
import sys
import jax
import jax.numpy as jnp
from jaxllm.runtime import enable_compilation_cache

hits = []
jax.monitoring.register_event_listener(
    lambda event, **_: hits.append(event) if event.endswith("/cache_hits") else None
)
enable_compilation_cache(sys.argv[1])
values = jax.jit(lambda x: jnp.tanh(x @ x).sum())(jnp.linspace(0, 0.1, 4096).reshape(64, 64))
print(len(hits), float(values).hex())
"""


def run_cached(directory: Path, **environment: str) -> list[str]:
    settings = {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0", "PYTHONPATH": str(REPOSITORY)}
    known = {k: v for k, v in os.environ.items() if k != "JAX_COMPILATION_CACHE_DIR"}
    done = subprocess.run(
        [sys.executable, "-c", CACHED, str(directory)],
        env=known | settings | environment, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert "machine" not in done.stderr.lower(), "no warning of other CPU features"
    return done.stdout.split()


def test_a_program_is_compiled_once_and_gives_the_same(tmp_path: Path) -> None:
    hits, first = run_cached(tmp_path)
    assert hits == "0"
    (kind,) = tmp_path.iterdir()
    assert kind.name.startswith(os.uname().machine)
    assert list(kind.glob("jit*"))
    hits, second = run_cached(tmp_path)
    assert int(hits) > 0
    assert second == first


def test_an_empty_variable_turns_the_cache_off(tmp_path: Path) -> None:
    run_cached(tmp_path / "ours", JAX_COMPILATION_CACHE_DIR="")
    assert not (tmp_path / "ours").exists()


def test_jaxs_own_variable_wins(tmp_path: Path) -> None:
    run_cached(tmp_path / "ours", JAX_COMPILATION_CACHE_DIR=str(tmp_path / "theirs"))
    assert not (tmp_path / "ours").exists()
    assert list((tmp_path / "theirs").glob("jit*"))


def test_the_time_of_a_process_counts_from_its_start() -> None:
    began = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", AGE], capture_output=True, text=True, check=True)
    assert 0.5 < float(done.stdout) < time.perf_counter() - began
    timer = GoodputTimer(100.0)
    timer.begin_steps()
    assert 100.0 < timer.total().setup < 101.0


def test_where_there_is_no_proc_psutil_tells_it(monkeypatch: pytest.MonkeyPatch) -> None:
    age = process_age()
    monkeypatch.setattr(Path, "read_text", lambda path: os.stat("/nowhere"))
    assert abs(process_age() - age) < 1.5  # in whole seconds since the machine's start


def test_a_notebook_outlives_ctrl_c_and_no_process_outlives_sigterm(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ended: list[int] = []
    monkeypatch.setattr(os, "_exit", ended.append)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # also in the background
    try:
        for number, error in ((signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, SystemExit)):
            assert not ended
            codes: dict[int, int] = {signal.SIGINT: 130, signal.SIGTERM: 143}
            with pytest.raises(error), exit_by_signals(codes, seconds=0.2):
                os.kill(os.getpid(), number)
                time.sleep(5)
            end = time.monotonic() + (0.6 if number == signal.SIGINT else 60)
            while not ended and time.monotonic() < end:  # a timer that is late would end pytest
                time.sleep(0.05)
    finally:
        signal.signal(signal.SIGINT, before)
    assert ended == [143]
