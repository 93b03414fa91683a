"""Load a Hugging Face directory onto a mesh; each host reads only the shards of its devices."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxllm.interop.huggingface.checkpoint import HFCheckpoint
from jaxllm.models.config import ModelConfig

if TYPE_CHECKING:
    from jax.sharding import Mesh


def load(directory: str | Path, mesh: Mesh) -> tuple[ModelConfig, Any]:
    """The model of a directory, and its parameters sharded over `mesh`, in their stored dtype.

    Raises:
      UserError: the directory is invalid; one line that names the file, field or tensor.
    """
    checkpoint = HFCheckpoint.open(directory)
    return checkpoint.model, load_params(checkpoint, checkpoint.model, mesh)


def load_params(checkpoint: HFCheckpoint, model: ModelConfig, mesh: Mesh) -> Any:
    """The parameters on `mesh`, in `model.param_dtype`: an unboxed tree."""
    import jax
    from flax.traverse_util import flatten_dict, unflatten_dict

    from jaxllm.models.decoder import abstract_params
    from jaxllm.sharding.rules import abstract_sharded

    leaves = flatten_dict(abstract_sharded(mesh, abstract_params(model)), sep="/")

    def array(name: str) -> jax.Array:
        leaf = leaves[name]
        read = lambda index: checkpoint.read(name, leaf.shape, leaf.dtype, index or ())
        return jax.make_array_from_callback(leaf.shape, leaf.sharding, read)

    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as threads:
        arrays = dict(zip(leaves, threads.map(array, leaves), strict=True))
    return unflatten_dict(arrays, sep="/")
