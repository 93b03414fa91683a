"""The device mesh and the sizes of its axes."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from jaxllm.configs import configurable
from jaxllm.errors import UserError

if TYPE_CHECKING:
    import jax

# Slowest links first: neighbours along the last axis are neighbours in the pod.
MESH_AXES = ("data", "fsdp", "sequence", "tensor")
STACK = "stack"  # the models of a stack, in a mesh that has no other axis above 1


@configurable
@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Devices along each mesh axis; one of them may be -1, for all remaining devices.

    Attributes:
      data: replicas of the model, each with its own sequences.
      fsdp: shards of the batch, and of every parameter and optimizer state.
      sequence: shards along each sequence's length.
      tensor: shards of the attention heads, the MLP and the vocabulary.
    """

    data: int = 1
    fsdp: int = -1
    sequence: int = 1
    tensor: int = 1

    def shape(self, num_devices: int) -> tuple[int, ...]:
        """Sizes of `MESH_AXES`; UserError if they do not multiply to `num_devices`."""
        sizes = dataclasses.asdict(self)
        text = ", ".join(f"{axis}={size}" for axis, size in sizes.items())
        free = [axis for axis, size in sizes.items() if size == -1]
        if len(free) > 1 or any(size < 1 and size != -1 for size in sizes.values()):
            raise UserError(f"MeshConfig({text}): sizes are positive, and one of them may be -1")
        fixed = math.prod(size for size in sizes.values() if size != -1)
        if num_devices % fixed or (not free and fixed != num_devices):
            raise UserError(
                f"MeshConfig({text}) does not divide {num_devices} devices: "
                f"set one axis to -1, or make the product {num_devices}"
            )
        for axis in free:
            sizes[axis] = num_devices // fixed
        return tuple(sizes.values())


def make_mesh(config: MeshConfig, devices: Sequence[jax.Device] | None = None) -> jax.sharding.Mesh:
    """Create a mesh with the axes `MESH_AXES` over `devices` (default: all); UserError if uneven.

    Several TPU slices span the first axes that they divide, so that the most frequent collectives
    stay within a slice.
    """
    import jax
    from jax.experimental import mesh_utils

    devices = jax.devices() if devices is None else devices
    shape = config.shape(len(devices))
    slices = len({getattr(device, "slice_index", 0) for device in devices})
    split = {"allow_split_physical_axes": True}  # 64 of the 16 x 16 chips of a slice, say
    if slices > 1:
        between = _between_slices(shape, slices)
        within = tuple(size // span for size, span in zip(shape, between, strict=True))
        grid = mesh_utils.create_hybrid_device_mesh(within, between, devices, **split)
    else:
        grid = mesh_utils.create_device_mesh(shape, devices, **split)
    automatic = (jax.sharding.AxisType.Auto,) * len(MESH_AXES)
    return jax.sharding.Mesh(grid, MESH_AXES, axis_types=automatic)


def stack_mesh(count: int, devices: Sequence[jax.Device] | None = None) -> jax.sharding.Mesh:
    """A mesh over which `count` stacked models divide; of as many devices as possible."""
    import jax
    import numpy as np

    devices = jax.devices() if devices is None else devices
    grid = np.array(devices[: math.gcd(count, len(devices))]).reshape(-1, 1, 1, 1, 1)
    automatic = (jax.sharding.AxisType.Auto,) * grid.ndim
    return jax.sharding.Mesh(grid, (STACK, *MESH_AXES), axis_types=automatic)


def _between_slices(shape: Sequence[int], slices: int) -> tuple[int, ...]:
    """Number of slices that each axis spans; the first axes take as many as they can."""
    spans, left = list[int](), slices
    for size in shape:
        spans.append(math.gcd(size, left))
        left //= spans[-1]
    if left > 1:
        sizes = ", ".join(f"{a}={n}" for a, n in zip(MESH_AXES, shape, strict=True) if n > 1)
        raise UserError(
            f"the mesh ({sizes}) cannot be laid over {slices} slices: "
            f"make MeshConfig.data a multiple of {slices}"
        )
    return tuple(spans)
