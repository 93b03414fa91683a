"""Memory-mapped tensors of a Hugging Face directory, validated before any value is read.

Loaded onto a mesh, each host reads only the shards of its devices.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import zipfile
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import ml_dtypes
import numpy as np

from jaxllm.errors import UserError, one_line
from jaxllm.interop.huggingface.architectures import Names
from jaxllm.interop.huggingface.fields import family_of, to_model
from jaxllm.io import read_json
from jaxllm.models.config import ModelConfig

if TYPE_CHECKING:
    from jax.sharding import Mesh

CONFIG = "config.json"
_SAFETENSORS_DTYPES = {
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
}
DTYPES = {str(dtype): dtype for dtype in _SAFETENSORS_DTYPES.values()}
# Masks and tables in old checkpoints that are not parameters.
_BUFFERS = re.compile(
    r"(.*\.)?(rotary_emb\.inv_freq|(attn|attention)\.(masked_)?bias|attn\.attention\.(masked_)?bias)"
)
_TILE = 256  # float32 source and target tiles fit a core's cache

Shape = tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Tensor:
    """A tensor in a file, which `open` maps; `dtype` is the name of an unsupported one."""

    file: Path
    shape: Shape
    dtype: np.dtype | str
    open: Callable[[], np.ndarray]


@dataclasses.dataclass(frozen=True)
class HFCheckpoint:
    """A Hugging Face directory whose tensors match its config.json.

    `model` has the stored parameter dtype; `names` are the tensor names and layouts of its
    architecture, and the keys of `tensors`.
    """

    directory: Path
    model: ModelConfig
    names: Names
    tensors: Mapping[str, Tensor]

    @classmethod
    def open(cls, directory: str | Path) -> HFCheckpoint:
        """Check every tensor's name, shape and file without reading values.

        UserError names a missing, unexpected, misshapen, truncated or unsupported file, field or
        tensor.
        """
        directory = Path(directory)
        config = read_json(directory / CONFIG)
        try:
            model, names = to_model(config), family_of(config).tensors
        except UserError as error:
            line = str(error).splitlines()[0]  # gin appends the call site
            raise UserError(f"{directory / CONFIG}: {line}") from error
        tensors = _parameters(_tensors(directory), model, names)
        _check(directory, tensors, tensor_shapes(model, names, str(directory / CONFIG)))
        return cls(directory, _with_dtype(model, tensors), names, tensors)

    def load(self, model: ModelConfig, mesh: Mesh) -> Any:
        """The parameters sharded over `mesh`, in `model.param_dtype`: an unboxed tree."""
        import jax
        from flax.traverse_util import flatten_dict, unflatten_dict

        from jaxllm.models.decoder import abstract_params
        from jaxllm.sharding.rules import abstract_sharded

        leaves = flatten_dict(abstract_sharded(mesh, abstract_params(model)), sep="/")

        def array(name: str) -> jax.Array:
            leaf = leaves[name]
            read = lambda index: self.read(name, leaf.shape, leaf.dtype, index or ())
            return jax.make_array_from_callback(leaf.shape, leaf.sharding, read)

        with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as threads:
            arrays = dict(zip(leaves, threads.map(array, leaves), strict=True))
        return unflatten_dict(arrays, sep="/")

    def read(
        self, name: str, shape: Shape, dtype: np.dtype, index: tuple[slice, ...]
    ) -> np.ndarray:
        """Copy the part `index` of a parameter of shape `shape`, layers stacked, to a new array."""
        hf_name, layout = self.names[name]
        array = np.empty([len(range(n)[part]) for part, n in zip(index, shape, strict=True)], dtype)
        if not name.startswith("layers/"):
            copy(array, layout.view(self.tensors[hf_name].open(), shape)[index], name)
            return array
        for to, layer in zip(array, range(shape[0])[index[0]], strict=True):
            tensor = self.tensors[hf_name.format(layer)].open()
            copy(to, layout.view(tensor, shape[1:])[index[1:]], name)
        return array


def load(directory: str | Path, mesh: Mesh) -> tuple[ModelConfig, Any]:
    """The model of a directory, and its parameters on `mesh` as stored; UserError if invalid."""
    checkpoint = HFCheckpoint.open(directory)
    return checkpoint.model, checkpoint.load(checkpoint.model, mesh)


def tensor_shapes(model: ModelConfig, names: Names, where: str) -> dict[str, Shape]:
    """The tensor shapes of a model; UserError, begun by `where`, if a parameter has no tensor."""
    shapes: dict[str, Shape] = {}
    for name, shape in parameter_shapes(model).items():
        if name not in names:
            raise UserError(f"{where}: the architecture has no tensor for the parameter {name}")
        hf_name, layout = names[name]
        stacked = name.startswith("layers/")
        for layer in range(model.num_layers) if stacked else (None,):
            shapes[hf_name.format(layer)] = layout.shape(shape[stacked:])
    return shapes


def parameter_shapes(model: ModelConfig) -> dict[str, Shape]:
    """Parameter name, as 'layers/attention/query', -> shape, in the order of the tree."""
    import flax.linen as nn
    from flax.traverse_util import flatten_dict

    from jaxllm.models.decoder import abstract_params

    flat = flatten_dict(nn.unbox(abstract_params(model)), sep="/")
    return {name: tuple(leaf.shape) for name, leaf in flat.items()}


def copy(to: np.ndarray, source: np.ndarray, name: str) -> None:
    """Assign `to[...] = source`, three times as fast as NumPy if one of them is transposed.

    UserError if a value of the parameter `name` overflows the dtype of `to`.
    """
    strided = source if to.flags.c_contiguous else to
    fast = int(np.argmin(strided.strides)) if source.ndim > 1 else 0  # its contiguous axis
    tiled = source.flags.c_contiguous != to.flags.c_contiguous and fast < source.ndim - 1
    with np.errstate(over="ignore"):
        for i in range(0, to.shape[fast], _TILE) if tiled else ():
            rows = (slice(None),) * fast + (slice(i, i + _TILE),)
            for j in range(0, to.shape[-1], _TILE):
                tile = (*rows, ..., slice(j, j + _TILE))
                to[tile] = source[tile]
        if not tiled:
            to[...] = source
    if to.dtype != source.dtype and np.isinf(to).any() and not np.isinf(source).any():
        raise UserError(f"parameter {name} is too large for {to.dtype}: use another type")


def _tensors(directory: Path) -> dict[str, Tensor]:
    """The tensors of the weights file or index that Transformers would load; a file goes first."""
    for name, reader in (("model.safetensors", map_safetensors), ("pytorch_model.bin", _pickle)):
        if (directory / name).exists():
            return reader(directory / name)
        if (index := directory / f"{name}.index.json").exists():
            return _indexed(index, reader)
    raise UserError(
        f"{directory} has no weights: neither model.safetensors nor pytorch_model.bin, "
        "nor the index of several"
    )


def _indexed(index: Path, reader: Callable[[Path], dict[str, Tensor]]) -> dict[str, Tensor]:
    files = read_json(index).get("weight_map")
    if not isinstance(files, dict) or not all(isinstance(file, str) for file in files.values()):
        raise UserError(f"{index}: has no weight_map of tensors to files")
    tensors: dict[str, Tensor] = {}
    for file in sorted(set(files.values())):
        if Path(file).is_absolute() or ".." in Path(file).parts:
            raise UserError(f"{index}: names {one_line(file)}, which is not in its directory")
        tensors |= reader(index.parent / file)
    for name in sorted(files.keys() - tensors.keys()):
        file = index.parent / files[name]
        raise UserError(f"{file}: the tensor {name} of {index.name} is missing")
    return tensors


def map_safetensors(file: Path, mode: Literal["r", "r+"] = "r") -> dict[str, Tensor]:
    """The tensors of a safetensors file, mapped with `mode`: "r", or "r+" to write them.

    The library checks the file, but it copies the values it reads; a memory map avoids that copy
    and is 1.3 times as fast (benchmarks/load_vs_safetensors.py). UserError if the file cannot be
    read, or is not a safetensors file.
    """
    from safetensors import SafetensorError, safe_open

    _check_readable(file)
    try:
        with safe_open(file, framework="np"):  # checks the header against the file size
            pass
        with open(file, "rb") as opened:
            data = 8 + int.from_bytes(opened.read(8), "little")
            header = json.loads(opened.read(data - 8))
    except (OSError, SafetensorError, ValueError) as error:
        raise UserError(f"{file}: truncated, or no safetensors file ({error})") from error
    header.pop("__metadata__", None)

    def tensor(entry: Mapping[str, Any]) -> Tensor:
        shape, start = tuple(entry["shape"]), data + entry["data_offsets"][0]
        dtype: Any = _SAFETENSORS_DTYPES.get(entry["dtype"], entry["dtype"])
        # One map per tensor, so that written pages do not stay in this process.
        return Tensor(
            file, shape, dtype, lambda: np.asarray(np.memmap(file, dtype, mode, start, shape))
        )

    return {name: tensor(entry) for name, entry in header.items()}


def _pickle(file: Path) -> dict[str, Tensor]:
    """The tensors of a PyTorch pickle, read without executing its code; requires torch."""
    _check_readable(file)
    try:
        import torch
    except ImportError as error:
        raise UserError(
            f"{file} is a PyTorch file: install torch to read it, or convert it to safetensors"
        ) from error
    try:
        # torch cannot map files from before 1.6, which are not zip archives.
        mmap = zipfile.is_zipfile(file)
        state = torch.load(file, map_location="cpu", weights_only=True, mmap=mmap)
    except Exception as error:  # pickle, zip and torch errors have no common type
        lines = str(error).splitlines() or [type(error).__name__]
        raise UserError(f"{file}: torch.load(weights_only=True) refuses it ({lines[0]})") from error
    if not isinstance(state, Mapping):
        raise UserError(f"{file}: holds a {type(state).__name__}, and no tensors by name")

    def tensor(name: str, value: Any) -> Tensor:
        if not isinstance(value, torch.Tensor):
            kind = type(value).__name__
            raise UserError(f"{file}: {name} is a {kind}, not a tensor: save a plain state_dict")
        if value.untyped_storage().nbytes() < value.nbytes:
            raise UserError(f"{file}: {one_line(name)} has fewer values than its shape says")
        dtype = str(value.dtype).removeprefix("torch.")

        def opened() -> np.ndarray:
            if value.dtype is torch.bfloat16:
                return value.view(torch.int16).contiguous().numpy().view(ml_dtypes.bfloat16)
            return value.contiguous().numpy()

        return Tensor(file, tuple(value.shape), DTYPES.get(dtype, dtype), opened)

    return {name: tensor(name, value) for name, value in state.items()}


def _check_readable(file: Path) -> None:
    try:
        with open(file, "rb") as opened:
            pointer = opened.read(64).startswith(b"version https://git-lfs")
    except OSError as error:
        raise UserError(f"cannot read {file}: {error.strerror or error}") from error
    if pointer:
        raise UserError(f"{file}: a git-lfs pointer, not the weights: fetch them by `git lfs pull`")


def _parameters(
    tensors: Mapping[str, Tensor], model: ModelConfig, names: Names
) -> dict[str, Tensor]:
    """The tensors that are parameters, by their names in the architecture.

    Checkpoints of the headless model lack the architecture's prefix; those of a tied model may
    store the head as well. UserError if the head of a tied model differs from the embedding.
    """
    head, table = names["head"][0], names["embedding"][0]
    prefix = table.split(".")[0] + "."
    found = {name: tensor for name, tensor in tensors.items() if not _BUFFERS.fullmatch(name)}
    if not any(name.startswith(prefix) for name in found):
        found = {name if name == head else prefix + name: t for name, t in found.items()}
    if model.tie_embeddings and head in found and table in found:
        copied, embedding = found.pop(head), found[table]
        if copied.shape != embedding.shape or not np.array_equal(copied.open(), embedding.open()):
            raise UserError(
                f"{copied.file}: tensor {head} differs from {table}, "
                "and config.json says tie_word_embeddings"
            )
    return found


def _check(directory: Path, tensors: Mapping[str, Tensor], shapes: Mapping[str, Shape]) -> None:
    for name in sorted(shapes.keys() - tensors.keys()):
        raise UserError(f"{directory}: the tensor {name} is missing")
    for name in sorted(tensors.keys() - shapes.keys()):
        raise UserError(f"{tensors[name].file}: unexpected tensor {one_line(name)}")
    for name, tensor in tensors.items():
        if tensor.shape != shapes[name]:
            raise UserError(
                f"{tensor.file}: tensor {name} has shape {list(tensor.shape)}, "
                f"and config.json makes it {list(shapes[name])}"
            )
        if isinstance(tensor.dtype, str):
            raise UserError(f"{tensor.file}: tensor {name} is {tensor.dtype}: not implemented")


def _with_dtype(model: ModelConfig, tensors: Mapping[str, Tensor]) -> ModelConfig:
    """Set param_dtype to that of the tensors (float32 if mixed); compute in bfloat16 if it is."""
    kinds = {str(tensor.dtype) for tensor in tensors.values()}
    kind: Any = kinds.pop() if len(kinds) == 1 else "float32"
    compute: Any = "bfloat16" if kind == "bfloat16" else "float32"
    return dataclasses.replace(model, param_dtype=kind, dtype=compute)
