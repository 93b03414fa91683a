"""A Hugging Face directory onto a mesh, each host reading only what its devices hold."""

from __future__ import annotations

import dataclasses
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxllm.interop.huggingface.checkpoint import Source, open_source
from jaxllm.interop.huggingface.layouts import copy
from jaxllm.models.config import ModelConfig

if TYPE_CHECKING:
    from jax.sharding import Mesh

Index = tuple[slice, ...] | None


def load(
    directory: str | Path, mesh: Mesh, param_dtype: str | None = None
) -> tuple[ModelConfig, Any]:
    """The model of a Hugging Face directory, and its parameters sharded over `mesh`.

    Args:
      directory: with config.json and weights.
      mesh: from `jaxllm.sharding.mesh.make_mesh`.
      param_dtype: of the parameters; None keeps the directory's.

    Raises:
      UserError: one line that names what is wrong with the directory.
    """
    source = open_source(directory)
    model = source.model
    if param_dtype:
        model = dataclasses.replace(model, param_dtype=param_dtype)
    return model, place(source, model, mesh)


def place(source: Source, model: ModelConfig, mesh: Mesh) -> Any:
    """The parameters of `source` on `mesh`, in the types of `model`: a tree without boxes."""
    import flax.linen as nn
    import jax
    from flax.traverse_util import flatten_dict, unflatten_dict

    from jaxllm.models.decoder import abstract_params
    from jaxllm.sharding.rules import param_shardings

    boxed = abstract_params(model)
    shardings = flatten_dict(param_shardings(mesh, boxed), sep="/")
    leaves = flatten_dict(nn.unbox(boxed), sep="/")

    def array(name: str) -> jax.Array:
        shape, dtype = leaves[name].shape, leaves[name].dtype
        return jax.make_array_from_callback(
            shape, shardings[name], lambda index: read(source, name, shape, dtype, index)
        )

    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as threads:
        arrays = dict(zip(leaves, threads.map(array, leaves), strict=True))
    return unflatten_dict(arrays, sep="/")


def read(source: Source, name: str, shape: tuple[int, ...], dtype: Any, index: Index) -> np.ndarray:
    """One device's part of a parameter (of all its layers), as a new array."""
    index = index or ()
    sizes = [len(range(*part.indices(size))) for part, size in zip(index, shape, strict=True)]
    part = np.empty(sizes, dtype)
    if not name.startswith("layers/"):
        copy(part, source.parameter(name, shape)[index])
        return part
    for i, layer in enumerate(range(*index[0].indices(shape[0]))):
        copy(part[i], source.parameter(name, shape[1:], layer)[index[1:]])
    return part
