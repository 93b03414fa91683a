"""The second process that needs a program finds it; where it is kept depends on the CPU."""

import os
import subprocess
import sys
from pathlib import Path

from tests.conftest import REPOSITORY

PROGRAM = """
import sys
import jax
import jax.numpy as jnp
from jaxllm.sharding.compiled import keep_compiled

hits = []
jax.monitoring.register_event_listener(
    lambda event, **_: hits.append(event) if event.endswith("/cache_hits") else None
)
keep_compiled(sys.argv[1])
keep_compiled(None)
values = jax.jit(lambda x: jnp.tanh(x @ x).sum())(jnp.linspace(0, 0.1, 4096).reshape(64, 64))
print(len(hits), float(values).hex())
"""


def run(directory: Path, **environment: str) -> list[str]:
    settings = {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0", "PYTHONPATH": str(REPOSITORY)}
    known = {k: v for k, v in os.environ.items() if k != "JAX_COMPILATION_CACHE_DIR"}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(directory)],
        env=known | settings | environment, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert "machine" not in done.stderr.lower(), "no warning of other CPU features"
    return done.stdout.split()


def test_a_program_is_compiled_once_and_gives_the_same(tmp_path: Path) -> None:
    hits, first = run(tmp_path)
    assert hits == "0"
    (kind,) = tmp_path.iterdir()
    assert kind.name.startswith(os.uname().machine)
    assert list(kind.glob("jit*"))
    hits, second = run(tmp_path)
    assert int(hits) > 0
    assert second == first


def test_jaxs_own_variable_wins(tmp_path: Path) -> None:
    run(tmp_path / "ours", JAX_COMPILATION_CACHE_DIR=str(tmp_path / "theirs"))
    assert not (tmp_path / "ours").exists()
    assert list((tmp_path / "theirs").glob("jit*"))
