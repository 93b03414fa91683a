"""The compiler takes every flag of the table, and one that it does not take is dropped by name."""

import importlib.util
import json
import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import pytest

from jaxllm.sharding import xla_flags
from jaxllm.sharding.mesh import MeshConfig, make_mesh
from tests.conftest import REPOSITORY


@pytest.fixture(scope="module")
def compiled() -> dict[str, Any]:
    """What libtpu's compiler says, for every generation."""
    if importlib.util.find_spec("libtpu") is None:
        pytest.skip("libtpu is not installed: pip install -e '.[tpu]'")
    program = Path(__file__).with_name("compile_flags.py")
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "XLA_FLAGS": ""}
    done = subprocess.run(
        [sys.executable, str(program)], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("slices", [1, 2])
@pytest.mark.parametrize("generation", xla_flags.FLAGS)
def test_the_compiler_takes_every_flag(compiled: Any, generation: str, slices: int) -> None:
    found = compiled[f"{generation} x {slices}"]
    assert found["used"] == found["table"]
    assert found["warnings"] == []
    assert len(found["table"]) == len(xla_flags.FLAGS[generation]) + 3 * (slices - 1)


@pytest.mark.parametrize("generation", ["v4", "v5p", "7x"])
def test_they_are_not_what_the_compiler_does_anyway(compiled: Any, generation: str) -> None:
    """Two products are enough to see it here; the others' flags need larger programs to act."""
    assert compiled[f"{generation} x 1"]["changes the program"]


def test_the_train_step_is_compiled_with_them(compiled: Any) -> None:
    assert compiled["train step"] == xla_flags.compiler_options("v5e")


def test_a_flag_that_the_tpu_compiler_refuses_is_dropped_by_name(compiled: Any) -> None:
    found = compiled["bogus"]
    assert found["used"] == xla_flags.compiler_options("v5e")
    assert [warning.split()[3] for warning in found["warnings"]] == [
        "xla_tpu_bogus=true,", "xla_bad=1,",
    ]  # fmt: skip


def test_any_compiler_is_asked(caplog: pytest.LogCaptureFixture) -> None:
    """The CPU's compiler as well takes the good one of three and names the others."""
    mesh = make_mesh(MeshConfig(), jax.devices()[:2])
    options = {"xla_nonsense": "1", "xla_embed_ir_in_executable": "True", "xla_backend_x": "maybe"}
    with caplog.at_level(logging.WARNING):
        taken = xla_flags.accepted(options, mesh)
    assert taken == {"xla_embed_ir_in_executable": "True"}
    assert [r.getMessage().split()[3] for r in caplog.records] == [
        "xla_nonsense=1,", "xla_backend_x=maybe,",
    ]  # fmt: skip


def test_only_tpus_have_flags() -> None:
    assert xla_flags.mesh_options(make_mesh(MeshConfig())) == {}


def test_what_the_user_sets_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIBTPU_INIT_ARGS", "--xla_tpu_scoped_vmem_limit_kib=32768 --xla_other=1")
    options = xla_flags.compiler_options("v5p")
    assert "xla_tpu_scoped_vmem_limit_kib" not in options
    assert len(options) == len(xla_flags.FLAGS["v5p"]) - 1
