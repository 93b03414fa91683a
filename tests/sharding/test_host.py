"""Memory that a program frees serves its next call: no page faults, hence no time lost to them."""

import subprocess
import sys

import pytest

from jaxllm.sharding.host import keep_freed_memory

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
