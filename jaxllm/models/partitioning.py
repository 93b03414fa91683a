"""Activations say their axes by name; the rules and the mesh come from the caller's context.

`jaxllm.sharding.rules.partitioning` sets both. Without it every constraint is a no-op, so the
model runs unchanged on one device.
"""

from __future__ import annotations

import math

import flax.linen as nn
import jax
from jax.sharding import PartitionSpec


def constrain(x: jax.Array, *axes: str | None) -> jax.Array:
    """Shards `x` as the rules in force say for its logical `axes`.

    A mesh axis that does not divide its dimension is left out: an evaluation's last batch or a
    narrow head count is replicated rather than refused.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or not nn.get_logical_axis_rules():
        return x
    spec = nn.logical_to_mesh_axes(axes) or ()
    fitting = [
        names if names and size % _mesh_size(names) == 0 else None
        for names, size in zip(spec, x.shape, strict=True)
    ]
    return jax.lax.with_sharding_constraint(x, PartitionSpec(*fitting))


def num_shards(axis: str) -> int:
    """Into how many parts the rules in force cut the logical `axis` (1 without rules)."""
    if jax.sharding.get_abstract_mesh().empty or not nn.get_logical_axis_rules():
        return 1
    spec = nn.logical_to_mesh_axes((axis,)) or (None,)
    return _mesh_size(spec[0] or ())


def _mesh_size(names: str | tuple[str, ...]) -> int:
    shape = jax.sharding.get_abstract_mesh().shape
    return math.prod(shape[name] for name in ((names,) if isinstance(names, str) else names))
