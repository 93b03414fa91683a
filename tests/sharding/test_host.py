"""Memory that a program frees serves its next call: no page faults, hence no time lost to them.

And libtpu does not complain where there is no TPU.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from jaxllm.sharding.host import keep_freed_memory, quiet_libtpu

CALLS = 16
PROGRAM = """
import resource, sys
if sys.argv[1] == "keep":
    from jaxllm.sharding.host import keep_freed_memory
    assert keep_freed_memory()
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
    assert keep_freed_memory()


def test_libtpu_is_quiet_where_no_tpu_is() -> None:
    program = (
        "from jaxllm.sharding.host import quiet_libtpu\n"
        "quiet_libtpu()\nimport jax\nprint(jax.devices()[0].platform)"
    )
    environment = {k: v for k, v in os.environ.items() if k != "JAX_PLATFORMS"}
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert "TPU" not in done.stderr


def test_a_tpu_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TPU_ACCELERATOR_TYPE", "")
    monkeypatch.delenv("TPU_ACCELERATOR_TYPE")
    monkeypatch.setenv("TPU_WORKER_HOSTNAMES", "mine")
    for slot, vendor in (("0000:00:04.0", "0x8086"), ("0000:00:05.0", "0x1ae0")):
        (tmp_path / slot).mkdir()
        (tmp_path / slot / "vendor").write_text(f"{vendor}\n")
    quiet_libtpu(str(tmp_path))
    assert "TPU_ACCELERATOR_TYPE" not in os.environ
    quiet_libtpu(str(tmp_path / "0000:00:04.0"))
    assert os.environ["TPU_ACCELERATOR_TYPE"] == "v4-8"
    assert os.environ["TPU_WORKER_HOSTNAMES"] == "mine"
