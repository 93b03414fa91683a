"""Target devices of a plan: TPU slices that need not exist, or local devices."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from jaxllm.errors import UserError
from jaxllm.sharding.chips import Chip, Slice, chip_of, slice_of

if TYPE_CHECKING:
    import jax

_TPU_ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",  # nothing here runs on a TPU, even where there is one
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v4-8",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # several processes may compile
}


class Target(NamedTuple):
    """The devices of a plan."""

    name: str  # as requested
    devices: Sequence[jax.Device]  # of all slices
    slices: int  # joined by the data-center network
    chip: Chip | None  # one device; None where unknown, as for CPUs


def tpu_target(name: str, slices: int = 1) -> Target:
    """TPU slices by their cloud name; UserError if it is unknown, or libtpu is not installed.

    Call it before JAX starts, as it sets environment variables that libtpu reads.
    """
    wanted = slice_of(name)
    if slices < 1:
        raise UserError(f"--slices={slices}: must be at least 1")
    if not (importlib.util.find_spec("libtpu") or os.environ.get("TPU_LIBRARY_PATH")):
        raise UserError("--topology needs the TPU compiler: pip install 'jaxllm[tpu]'")
    os.environ.update(_TPU_ENVIRONMENT)
    import jax
    from jax.experimental import topologies

    torus = "x".join(map(str, wanted.shape))
    libtpu_name = {"7x": "tpu7x"}.get(wanted.chip.name, wanted.chip.name)
    several = {"num_slices": slices} if slices > 1 else {}
    try:
        description = topologies.get_topology_desc(
            platform="tpu", topology_name=f"{libtpu_name}:{torus}", **_host(wanted), **several
        )
    except (jax.errors.JaxRuntimeError, RuntimeError) as error:
        text = " ".join(str(error).split())
        raise UserError(f"libtpu knows no topology {libtpu_name}:{torus}: {text[:200]}") from error
    return Target(name, description.devices, slices, wanted.chip)


def local_target(name: str) -> Target:
    """Devices here: 'cpu:8' virtual ones, all of 'gpu' or 'tpu', 'gpu:4'; UserError if too few."""
    platform, _, count = name.partition(":")
    if platform not in ("cpu", "gpu", "tpu") or (count and not count.isdigit()):
        raise UserError(f"--devices={name}: write cpu:8, gpu or tpu")
    if platform == "cpu":
        os.environ["JAX_PLATFORMS"] = "cpu"
        virtual = f"--xla_force_host_platform_device_count={count or 1}"
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {virtual}".strip()
    import jax

    try:
        devices = jax.devices(platform)
    except RuntimeError as error:
        raise UserError(f"--devices={name}: no {platform} is at hand") from error
    if count and len(devices) < int(count):
        raise UserError(f"--devices={name}: {len(devices)} are at hand")
    devices = devices[: int(count)] if count else devices
    return Target(name, devices, 1, chip_of(devices[0].device_kind))


def _host(wanted: Slice) -> dict[str, object]:
    """libtpu's options for the hosts of a slice; its defaults fit slices of whole hosts."""
    if wanted.chip.torus == 3:
        host = tuple(min(side, most) for side, most in zip(wanted.shape, (2, 2, 1), strict=True))
        one_device = {"chip_config_name": "megacore"} if wanted.chip.per_chip == 1 else {}
        return {"chips_per_host_bounds": host, **one_device}
    return {"chips_per_host_bounds": (1, 1, 1)} if max(wanted.shape) == 1 else {}
