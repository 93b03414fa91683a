"""Sharding of activations by logical axes; rules and mesh come from the caller's context.

`jaxllm.sharding.rules.partitioning` sets both. Without it every constraint is a no-op, so the
model runs unchanged on one device.
"""

from __future__ import annotations

import math

import flax.linen as nn
import jax
from jax.sharding import PartitionSpec


def with_logical_constraint(x: jax.Array, *axes: str | None) -> jax.Array:
    """Constrain `x` to the sharding of its logical `axes` by the current rules.

    A mesh axis that does not divide its dimension is dropped: an evaluation's last batch or a
    small number of heads is replicated rather than refused.
    """
    return jax.lax.with_sharding_constraint(x, divisible_spec(x.shape, *axes)) if _meshed() else x


def divisible_spec(shape: tuple[int, ...], *axes: str | None) -> PartitionSpec:
    """PartitionSpec of logical `axes` for `shape`, without mesh axes that do not divide it."""
    if not _meshed():
        return PartitionSpec()
    spec = nn.logical_to_mesh_axes(axes) or ()
    fitting = [
        names if names and size % _mesh_size(names) == 0 else None
        for names, size in zip(spec, shape, strict=True)
    ]
    return PartitionSpec(*fitting)


def device_kind() -> tuple[str, str]:
    """Platform ('tpu', 'gpu', 'cpu') and kind ('TPU v5') of the devices compiled for."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    if device is None:
        here = jax.devices()[0]
        return here.platform, here.device_kind
    return device.platform, device.device_kind


def num_shards(axis: str) -> int:
    """The number of shards of the logical `axis` (1 without rules)."""
    if not _meshed():
        return 1
    spec = nn.logical_to_mesh_axes((axis,)) or (None,)
    return _mesh_size(spec[0] or ())


def _meshed() -> bool:
    return not jax.sharding.get_abstract_mesh().empty and bool(nn.get_logical_axis_rules())


def _mesh_size(names: str | tuple[str, ...]) -> int:
    shape = jax.sharding.get_abstract_mesh().shape
    return math.prod(shape[name] for name in ((names,) if isinstance(names, str) else names))
