"""Sharding of parameters and activations by logical axes.

`jaxllm.sharding.rules.partitioning` sets rules and mesh. Without it every constraint is a no-op, so
the model runs unchanged on one device.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import PartitionSpec

MeshAxes = str | Sequence[str] | None


def param(
    module: Any,
    name: str,
    shape: tuple[int, ...],
    axes: tuple[str | None, ...],
    initializer: nn.initializers.Initializer | None = None,
    dtype: Any = None,
) -> jax.Array:
    """A parameter of a module with a ModelConfig as `config`, boxed with its logical `axes`.

    Without an `initializer` it is N(0, init_stddev), without a `dtype` in the compute dtype.
    """
    config = module.config
    initializer = initializer or nn.initializers.normal(config.init_stddev)
    boxed = nn.with_logical_partitioning(initializer, axes)
    value = module.param(name, boxed, shape, jnp.dtype(config.param_dtype))
    return jnp.asarray(value, dtype or config.dtype)


def saveable(x: jax.Array, name: str, *axes: str | None) -> jax.Array:
    """Constrain an activation, and name it for the remat policies."""
    return checkpoint_name(with_logical_constraint(x, *axes), name)


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
        names if size % mesh_size(names) == 0 else None
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
    return mesh_size((nn.logical_to_mesh_axes((axis,)) or (None,))[0]) if _meshed() else 1


def mesh_size(names: MeshAxes) -> int:
    """Number of devices along mesh axes, all together."""
    shape = jax.sharding.get_abstract_mesh().shape
    return math.prod(shape[name] for name in ((names,) if isinstance(names, str) else names or ()))


def _meshed() -> bool:
    return not jax.sharding.get_abstract_mesh().empty and bool(nn.get_logical_axis_rules())
