"""Cloud names and what they stand for."""

import math

import pytest

from jaxllm.errors import UserError
from jaxllm.sharding.chips import CHIPS, chip_of, slice_of


@pytest.mark.parametrize(
    ("name", "shape", "devices"),
    [
        # docs.cloud.google.com/tpu/docs/v2, v3, v4, v5p, v5e, v6e and tpu7x
        ("v2-8", (2, 2), 8), ("v2-512", (16, 16), 512), ("v3-32", (4, 4), 32),
        ("v3-2048", (32, 32), 2048), ("v4-8", (2, 2, 1), 4), ("v4-16", (2, 2, 2), 8),
        ("v4-32", (2, 2, 4), 16),
        ("v4-128", (4, 4, 4), 64), ("v4-512", (4, 8, 8), 256), ("v4-1024", (8, 8, 8), 512),
        ("v5p-64", (2, 4, 4), 32), ("v5p-256", (4, 4, 8), 128), ("v5p-12288", (16, 16, 24), 6144),
        ("v5litepod-8", (2, 4), 8), ("v5e-256", (16, 16), 256), ("v6e-1", (1, 1), 1),
        ("v6e-32", (4, 8), 32), ("tpu7x-128", (4, 4, 4), 128), ("7x-8", (2, 2, 1), 8),
        ("v5p:4x4x8", (4, 4, 8), 128),
    ],
)  # fmt: skip
def test_names_are_the_cloud_s(name: str, shape: tuple[int, ...], devices: int) -> None:
    found = slice_of(name)
    assert found.shape == shape
    assert math.prod(shape) * found.chip.per_chip == devices


@pytest.mark.parametrize("name", ["v9-8", "v4", "v4-9", "v5p-14", "v5e-", "v4:2x2", "v4:axbxc", ""])
def test_other_names_are_refused_with_what_to_write(name: str) -> None:
    with pytest.raises(UserError, match=r"write v2, v3, v4|torus"):
        slice_of(name)


def test_a_kind_is_the_longest_that_fits() -> None:
    found = {kind: chip_of(kind) for kind in ("TPU v5 lite", "TPU v5", "NVIDIA H100 PCIe", "cpu")}
    names = {kind: chip and chip.name for kind, chip in found.items()}
    assert names == {
        "TPU v5 lite": "v5e", "TPU v5": "v5p", "NVIDIA H100 PCIe": "h100-pcie", "cpu": None
    }  # fmt: skip


def test_planning_has_every_figure_of_every_tpu() -> None:
    for chip in CHIPS:
        if chip.torus:
            assert min(chip.hbm_bytes, chip.hbm_bandwidth, chip.ici_bandwidth) > 0, chip.name
