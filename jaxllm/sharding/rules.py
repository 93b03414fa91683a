"""Logical axis rules, and the shardings of parameters and batches."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from typing import Any

import flax.linen as nn
import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxllm.errors import UserError

LOGICAL_AXIS_RULES: tuple[tuple[str, str | tuple[str, ...] | None], ...] = (
    # activations
    ("batch", ("data", "fsdp")),
    ("length", "sequence"),
    ("embed_activation", None),
    # parameters
    ("layers", None),
    ("embed", "fsdp"),
    ("norm", None),
    # both
    ("heads", "tensor"),
    ("kv_heads", "tensor"),
    ("mlp", "tensor"),
    ("vocab", "tensor"),
    ("head_dim", None),
)


@contextlib.contextmanager
def partitioning(mesh: Mesh) -> Iterator[None]:
    """Context that shards the model's activations over `mesh` by the rules.

    Enter it where the function is traced: inside the jitted function, or around its calls.
    """
    with (
        jax.sharding.use_abstract_mesh(mesh.abstract_mesh),
        nn.logical_axis_rules(LOGICAL_AXIS_RULES),
    ):
        yield


def param_shardings(mesh: Mesh, tree: Any) -> Any:
    """A `NamedSharding` for each array of a tree of boxed (abstract) parameters, without the boxes.

    Works on any tree with the boxes, such as an optimizer state initialized from boxed parameters.
    Arrays without a box, and those of another rank than their box (as factored moments), are
    replicated. A mesh axis that does not divide its dimension is dropped, so an odd vocabulary is
    replicated over `tensor` rather than refused.
    """

    def sharding(leaf: Any) -> Any:
        if not boxed(leaf):
            return replicated(mesh)
        if not hasattr(leaf.value, "shape"):  # no optimizer state for this parameter
            return leaf.value
        if len(leaf.names) != len(leaf.value.shape):
            return replicated(mesh)
        spec = nn.logical_to_mesh_axes(leaf.names, LOGICAL_AXIS_RULES) or ()
        shards = lambda axes: math.prod(
            mesh.shape[a] for a in ([axes] if isinstance(axes, str) else axes)
        )
        sizes = zip(spec, leaf.value.shape, strict=True)
        fitting = [axes if axes and size % shards(axes) == 0 else None for axes, size in sizes]
        return NamedSharding(mesh, PartitionSpec(*fitting))

    boxed = lambda leaf: isinstance(leaf, nn.LogicallyPartitioned)
    return jax.tree.map(sharding, tree, is_leaf=boxed)


def abstract_sharded(mesh: Mesh, tree: Any) -> Any:
    """Unbox a tree into `jax.ShapeDtypeStruct`s with the shardings of `param_shardings`."""
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        nn.unbox(tree),
        param_shardings(mesh, tree),
    )


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Sharding of every array of a Batch: sequences over data and fsdp."""
    return NamedSharding(mesh, PartitionSpec(("data", "fsdp")))


def replicated(mesh: Mesh) -> NamedSharding:
    """Sharding with the whole array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def check_sequence_divides(mesh: Mesh, length: int) -> None:
    """Raise UserError if the mesh shards sequences unevenly, on TPUs if not into kernel tiles."""
    shards = mesh.shape["sequence"]
    tile = 128 if mesh.devices.flat[0].platform == "tpu" else 1
    if shards > 1 and length % (shards * tile):
        raise UserError(
            f"sequence length {length} does not divide over MeshConfig.sequence = {shards}: "
            f"make it a multiple of {shards * tile}"
        )


def check_batch_divides(mesh: Mesh, batch_size: int) -> None:
    """Raise UserError if the mesh shards the global batch unevenly."""
    shards = mesh.shape["data"] * mesh.shape["fsdp"]
    if batch_size % shards:
        raise UserError(
            f"batch size {batch_size} does not divide over data={mesh.shape['data']} x "
            f"fsdp={mesh.shape['fsdp']} devices: make it a multiple of {shards}"
        )
