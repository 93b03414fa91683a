"""Accelerators and their specifications per JAX device, from the vendors' data sheets.

A v2, v3 or TPU7x chip is two JAX devices, a v4 or v5p chip one. Bandwidths count one direction.
Sources: docs.cloud.google.com/tpu/docs/{v2,v3,v4,v5e,v5p,v6e,tpu7x}, and for the links of v2 and v3
Jouppi et al., CACM 63:7 (2020); NVIDIA's data sheets (dense bf16).
"""

from __future__ import annotations

import itertools
import math
from typing import NamedTuple

import jax

from jaxllm.errors import UserError

GIB = 2**30


class Chip(NamedTuple):
    """One JAX device. Bandwidths are in bytes/s."""

    name: str  # cloud name of the generation, such as 'v5p'
    kind: str  # prefix of its `device_kind`
    flops: float  # peak dense bf16 FLOP/s
    hbm_bytes: float = 0
    hbm_bandwidth: float = 0
    ici_bandwidth: float = 0  # over all links to other devices of the slice
    dcn_bandwidth: float | None = None  # its share of the host's network; None: not published
    torus: int = 0  # dimensions of the slice's torus; 0 for other networks
    per_name: int = 1  # units per JAX device in a cloud name: 'v5p-128' is 64 devices
    per_chip: int = 1  # JAX devices per physical chip


CHIPS: tuple[Chip, ...] = (
    Chip("v2", "TPU v2", 23e12, 8 * GIB, 350e9, 124e9, None, torus=2, per_chip=2),
    Chip("v3", "TPU v3", 61.5e12, 16 * GIB, 450e9, 164e9, None, torus=2, per_chip=2),
    Chip("v4", "TPU v4", 275e12, 32 * GIB, 1.2e12, 300e9, None, torus=3, per_name=2),
    Chip("v5e", "TPU v5 lite", 197e12, 16 * GIB, 819e9, 200e9, 25e9 / 8, torus=2),
    Chip("v5p", "TPU v5", 459e12, 95 * GIB, 2.765e12, 600e9, 50e9 / 8, torus=3, per_name=2),
    Chip("v6e", "TPU v6 lite", 918e12, 32 * GIB, 1.638e12, 400e9, 100e9 / 8, torus=2),
    Chip("7x", "TPU7x", 1153.5e12, 96 * GIB, 3.69e12, 300e9, 50e9 / 8, torus=3, per_chip=2),
    Chip("t4", "Tesla T4", 65e12, 16e9, 320e9),
    Chip("v100", "Tesla V100", 125e12, 32e9, 900e9),
    Chip("l4", "NVIDIA L4", 121e12, 24e9, 300e9),
    Chip("a100", "NVIDIA A100", 312e12, 80e9, 2.039e12, 300e9),
    Chip("h100-pcie", "NVIDIA H100 PCIe", 756e12, 80e9, 2e12, 450e9),
    Chip("h100", "NVIDIA H100", 989e12, 80e9, 3.35e12, 450e9),
    Chip("h200", "NVIDIA H200", 989e12, 141e9, 4.8e12, 450e9),
    Chip("b200", "NVIDIA B200", 2250e12, 180e9, 8e12, 900e9),
)


def chip_of(device_kind: str) -> Chip | None:
    """Look up the chip of a `device_kind`; None where it is not in the table, as for CPUs."""
    fitting = [chip for chip in CHIPS if device_kind.startswith(chip.kind)]
    return max(fitting, key=lambda chip: len(chip.kind)) if fitting else None


def peak_flops(device: jax.Device) -> float | None:
    """Peak FLOP/s of a device; None where unknown, as for CPUs."""
    chip = chip_of(device.device_kind)
    return chip.flops if chip else None


def utilisation(flops_per_second: float, devices: int, peak: float | None) -> float | None:
    """MFU: achieved over peak FLOP/s of all devices; None where the peak is unknown."""
    return flops_per_second / (devices * peak) if peak else None


class Slice(NamedTuple):
    """A TPU slice: its kind of device, and the physical chips along each side of its torus."""

    chip: Chip
    shape: tuple[int, ...]


def slice_of(name: str) -> Slice:
    """Parse a cloud name: 'v4-512', 'v5litepod-16', 'v6e-256', 'tpu7x-128', 'v5p:4x4x8'.

    After a hyphen, v5e and v6e count chips, and the others TensorCores, two per chip, in the most
    cubic torus. After a colon stand the sides of the torus in chips. UserError for other names.
    """
    tpus = {chip.name: chip for chip in CHIPS if chip.torus}
    generation, separator, size = name.partition(":" if ":" in name else "-")
    generation = {"v5litepod": "v5e", "tpu7x": "7x", "v7x": "7x"}.get(generation, generation)
    known = f"write {', '.join(tpus)} with a size, as v5p-128, or a torus, as v5p:4x4x4"
    if generation not in tpus or not separator:
        raise UserError(f"unknown topology {name!r}: {known}")
    chip = tpus[generation]
    if separator == ":":
        try:
            shape = tuple(int(side) for side in size.split("x"))
        except ValueError:
            shape = ()
        if len(shape) != chip.torus or min(shape) < 1:
            raise UserError(f"topology {name!r}: {generation} is a torus of {chip.torus} sides")
        return Slice(chip, shape)
    count = int(size) if size.isdigit() else 0
    chips, rest = divmod(count, chip.per_name * chip.per_chip)
    torus = _most_cubic(chips, chip.torus) if chips and not rest else None
    if torus is None:
        raise UserError(f"no {generation} slice is called {name!r}: {known}")
    return Slice(chip, torus)


def _most_cubic(chips: int, sides: int) -> tuple[int, ...] | None:
    """The torus of `chips` chips with the smallest sum of sides; None if there is none."""
    allowed = [1, 2, *range(4, 65, 4)]
    shapes = itertools.combinations_with_replacement(allowed, sides)
    best = min((s for s in shapes if math.prod(s) == chips), key=sum, default=None)
    return best[::-1] if best and best[0] == 1 else best  # a host's four chips are 2x2x1
