"""Meshes multiply to the devices, or say in one line why not."""

import importlib.util
import os
import subprocess
import sys

import jax
import pytest

from jaxllm.errors import UserError
from jaxllm.sharding.mesh import MESH_AXES, MeshConfig, make_mesh
from tests.conftest import REPOSITORY


@pytest.mark.parametrize(
    ("config", "shape"),
    [
        (MeshConfig(), (1, 8, 1, 1)),
        (MeshConfig(data=2, tensor=2), (2, 2, 1, 2)),
        (MeshConfig(data=-1, fsdp=2), (4, 2, 1, 1)),
        (MeshConfig(fsdp=2, sequence=2, tensor=2), (1, 2, 2, 2)),
    ],
)
def test_sizes(config: MeshConfig, shape: tuple[int, ...]) -> None:
    mesh = make_mesh(config)
    assert tuple(mesh.shape[axis] for axis in MESH_AXES) == shape
    assert mesh.axis_names == MESH_AXES
    assert len({device.id for device in mesh.devices.flat}) == 8


def test_a_part_of_the_devices() -> None:
    assert make_mesh(MeshConfig(), jax.devices()[:3]).shape["fsdp"] == 3


@pytest.mark.parametrize(
    ("config", "culprit"),
    [
        (MeshConfig(tensor=3), "tensor=3.* does not divide 8 devices"),
        (MeshConfig(fsdp=4), "fsdp=4.* does not divide 8 devices"),
        (MeshConfig(data=-1, fsdp=-1), "one of them may be -1"),
        (MeshConfig(data=0), "data=0"),
        (MeshConfig(tensor=-2), "tensor=-2"),
    ],
)
def test_refusals(config: MeshConfig, culprit: str) -> None:
    with pytest.raises(UserError, match=culprit):
        make_mesh(config)


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed")
def test_axes_may_cut_through_a_torus() -> None:
    """16 x 16 chips: no product of whole axes is 64 or 8."""
    code = """
from jaxllm.planning.targets import tpu_target
from jaxllm.sharding.mesh import MeshConfig, make_mesh
devices = tpu_target("v5e-256").devices
for config in (MeshConfig(data=4, fsdp=64), MeshConfig(fsdp=32, tensor=8)):
    print(len({device.id for device in make_mesh(config, devices).devices.flat}))
"""
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "XLA_FLAGS": ""}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False
    )
    assert done.stdout.split() == ["256", "256"], done.stderr[-1000:]
