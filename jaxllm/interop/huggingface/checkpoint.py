"""Memory-mapped tensors of a Hugging Face directory, validated before any value is read."""

from __future__ import annotations

import dataclasses
import json
import re
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import ml_dtypes
import numpy as np

from jaxllm.errors import UserError, one_line
from jaxllm.interop.huggingface.families import Names, Tensors
from jaxllm.interop.huggingface.fields import family_of, to_model
from jaxllm.models.config import ModelConfig

CONFIG = "config.json"
SAFETENSORS_DTYPES = {
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
}
DTYPES = {str(dtype): dtype for dtype in SAFETENSORS_DTYPES.values()}
# Masks and tables in old checkpoints that are not parameters.
_BUFFERS = re.compile(
    r"(.*\.)?(rotary_emb\.inv_freq|(attn|attention)\.(masked_)?bias|attn\.attention\.(masked_)?bias)"
)
_COMPARED_ROWS = 1024
_TILE = 256  # float32 source and target tiles fit a core's cache

Shape = tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Tensor:
    """A tensor on disk.

    Attributes:
      file: file with its values.
      shape: shape of the tensor.
      dtype: dtype of the tensor; the name of an unsupported one.
      open: maps it into memory.
    """

    file: Path
    shape: Shape
    dtype: np.dtype | str
    open: Callable[[], np.ndarray]


@dataclasses.dataclass(frozen=True)
class HFCheckpoint:
    """A Hugging Face directory whose tensors match its config.json.

    Attributes:
      directory: path of the directory.
      config: its config.json.
      model: the model of config.json, with the stored parameter dtype.
      tensors: the tensors by their names in the architecture's table.
    """

    directory: Path
    config: Mapping[str, Any]
    model: ModelConfig
    tensors: Mapping[str, Tensor]

    @classmethod
    def open(cls, directory: str | Path) -> HFCheckpoint:
        """Check every tensor's name, shape and file without reading values.

        Raises:
          UserError: a missing, unexpected, misshapen, truncated or unsupported file, field or
            tensor; one line that names it.
        """
        directory = Path(directory)
        config = read_json(directory / CONFIG)
        try:
            model, family = to_model(config), family_of(config).tensors
        except UserError as error:
            line = str(error).splitlines()[0]  # gin appends the call site
            raise UserError(f"{directory / CONFIG}: {line}") from error
        stored = {n: t for n, t in _tensors(directory).items() if not _BUFFERS.fullmatch(n)}
        stored = _with_base(stored, family)
        stored = _without_tied_head(stored, model, family)
        _check(directory, stored, tensor_shapes(model, family.names, str(directory / CONFIG)))
        return cls(directory, config, _with_dtype(model, stored), stored)

    def parameter(self, name: str, shape: Shape, layer: int | None = None) -> np.ndarray:
        """One parameter, or one layer of it, of shape `shape`, as a view of the memory map."""
        hf_name, layout = family_of(dict(self.config)).tensors.names[name]
        return layout.view(self.tensors[of_layer(hf_name, layer)].open(), shape)


def tensor_shapes(model: ModelConfig, names: Names, where: str) -> dict[str, Shape]:
    """The tensor shapes of a model in an architecture.

    Raises:
      UserError: the architecture has no tensor for a parameter of the model.
    """
    shapes: dict[str, Shape] = {}
    for name, shape in parameter_shapes(model).items():
        if name not in names:
            raise UserError(f"{where}: the architecture has no tensor for the parameter {name}")
        hf_name, layout = names[name]
        stacked = name.startswith("layers/")
        for layer in range(model.num_layers) if stacked else (None,):
            shapes[of_layer(hf_name, layer)] = layout.shape(shape[stacked:])
    return shapes


def parameter_shapes(model: ModelConfig) -> dict[str, Shape]:
    """Parameter name, as 'layers/attention/query', -> shape, in the order of the tree."""
    import flax.linen as nn
    from flax.traverse_util import flatten_dict

    from jaxllm.models.decoder import abstract_params

    flat = flatten_dict(nn.unbox(abstract_params(model)), sep="/")
    return {name: tuple(leaf.shape) for name, leaf in flat.items()}


def of_layer(hf_name: str, layer: int | None) -> str:
    """The name of a tensor, with the layer index filled in if it has one."""
    return hf_name if layer is None else hf_name.format(layer)


def copy(to: np.ndarray, source: np.ndarray, name: str) -> None:
    """Assign `to[...] = source`, three times as fast as NumPy if one of them is transposed.

    Raises:
      UserError: a value of the parameter `name` overflows the dtype of `to`.
    """
    with np.errstate(over="ignore"):
        _copy(to, source)
    if to.dtype != source.dtype and np.isinf(to).any() and not np.isinf(source).any():
        raise UserError(f"parameter {name} is too large for {to.dtype}: use another type")


def _copy(to: np.ndarray, source: np.ndarray) -> None:
    if source.ndim < 2 or source.flags.c_contiguous == to.flags.c_contiguous:
        to[...] = source
        return
    strided = source if to.flags.c_contiguous else to
    fast = int(np.argmin(strided.strides))  # the axis that is contiguous in the strided one
    if fast == strided.ndim - 1:
        to[...] = source
        return
    for i in range(0, to.shape[fast], _TILE):
        rows = (slice(None),) * fast + (slice(i, i + _TILE),)
        for j in range(0, to.shape[-1], _TILE):
            tile = (*rows, ..., slice(j, j + _TILE))
            to[tile] = source[tile]


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object from a file.

    Raises:
      UserError: the file is missing, or is not a JSON object.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not JSON ({error})") from error
    if not isinstance(value, dict):
        raise UserError(f"{path}: holds no JSON object")
    return value


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
    where = read_json(index).get("weight_map")
    if not isinstance(where, dict) or not all(isinstance(file, str) for file in where.values()):
        raise UserError(f"{index}: has no weight_map of tensors to files")
    stored: dict[str, Tensor] = {}
    for file in sorted(set(where.values())):
        stored |= reader(index.parent / file)
    for name in sorted(where.keys() - stored.keys()):
        raise UserError(
            f"{index.parent / where[name]}: the tensor {name} of {index.name} is missing"
        )
    return stored


def map_safetensors(file: Path, mode: Literal["r", "r+"] = "r") -> dict[str, Tensor]:
    """The tensors of a safetensors file, mapped with `mode`: "r", or "r+" to write them.

    The library checks the file, but it copies the values it reads; a memory map avoids that copy
    and is 1.3 times as fast (benchmarks/load_vs_safetensors.py).

    Raises:
      UserError: the file cannot be read, or is not a safetensors file.
    """
    from safetensors import SafetensorError, safe_open

    _refuse_lfs_pointer(file)
    try:
        with safe_open(file, framework="np"):  # checks the header against the file size
            pass
        with open(file, "rb") as opened:
            data = 8 + int.from_bytes(opened.read(8), "little")
            header = json.loads(opened.read(data - 8))
    except OSError as error:
        raise UserError(f"cannot read {file}: {error.strerror or error}") from error
    except (SafetensorError, ValueError) as error:
        raise UserError(f"{file}: truncated, or no safetensors file ({error})") from error
    header.pop("__metadata__", None)

    def tensor(entry: Mapping[str, Any]) -> Tensor:
        shape = tuple(entry["shape"])
        dtype: Any = SAFETENSORS_DTYPES.get(entry["dtype"], entry["dtype"])
        start = data + entry["data_offsets"][0]

        # One map per tensor, so that written pages do not stay in this process.
        def opened() -> np.ndarray:
            return np.asarray(np.memmap(file, dtype, mode, start, shape))

        return Tensor(file, shape, dtype, opened)

    return {name: tensor(entry) for name, entry in header.items()}


def _pickle(file: Path) -> dict[str, Tensor]:
    """The tensors of a PyTorch pickle, read without executing its code; requires torch."""
    _refuse_lfs_pointer(file)
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
    for name, value in state.items():
        if not isinstance(value, torch.Tensor):
            kind = type(value).__name__
            raise UserError(f"{file}: {name} is a {kind}, not a tensor: save a plain state_dict")

    def tensor(value: Any) -> Tensor:
        kind = str(value.dtype).removeprefix("torch.")

        def opened() -> np.ndarray:
            if value.dtype is torch.bfloat16:
                return value.view(torch.int16).contiguous().numpy().view(ml_dtypes.bfloat16)
            return value.contiguous().numpy()

        return Tensor(file, tuple(value.shape), DTYPES.get(kind, kind), opened)

    return {name: tensor(value) for name, value in state.items()}


def _refuse_lfs_pointer(file: Path) -> None:
    try:
        with open(file, "rb") as opened:
            pointer = opened.read(64).startswith(b"version https://git-lfs")
    except OSError as error:
        raise UserError(f"cannot read {file}: {error.strerror or error}") from error
    if pointer:
        raise UserError(f"{file}: a git-lfs pointer, not the weights: fetch them by `git lfs pull`")


def _with_base(stored: dict[str, Tensor], family: Tensors) -> dict[str, Tensor]:
    """Add the prefix `family.base` to the names of checkpoints saved from the headless model."""
    if any(name.startswith(family.base) for name in stored):
        return stored
    return {name if name == family.head else family.base + name: t for name, t in stored.items()}


def _without_tied_head(
    stored: dict[str, Tensor], model: ModelConfig, family: Tensors
) -> dict[str, Tensor]:
    """Drop a redundant copy of a tied head; raise UserError if it differs from the embedding."""
    table = family.names["embedding"][0]
    if not model.tie_embeddings or family.head not in stored or table not in stored:
        return stored
    head, embedding = stored[family.head], stored[table]
    if head.shape != embedding.shape or not _equal(head.open(), embedding.open()):
        raise UserError(
            f"{head.file}: tensor {family.head} differs from {table}, "
            "and config.json says tie_word_embeddings"
        )
    return {name: tensor for name, tensor in stored.items() if name != family.head}


def _equal(a: np.ndarray, b: np.ndarray) -> bool:
    rows = range(0, len(a), _COMPARED_ROWS)
    return all(np.array_equal(a[i : i + _COMPARED_ROWS], b[i : i + _COMPARED_ROWS]) for i in rows)


def _check(directory: Path, stored: Mapping[str, Tensor], expected: Mapping[str, Shape]) -> None:
    for name in sorted(expected.keys() - stored.keys()):
        raise UserError(f"{directory}: the tensor {name} is missing")
    for name in sorted(stored.keys() - expected.keys()):
        raise UserError(f"{stored[name].file}: unexpected tensor {one_line(name)}")
    for name, tensor in stored.items():
        if tensor.shape != expected[name]:
            raise UserError(
                f"{tensor.file}: tensor {name} has shape {list(tensor.shape)}, "
                f"and config.json makes it {list(expected[name])}"
            )
        if isinstance(tensor.dtype, str):
            raise UserError(f"{tensor.file}: tensor {name} is {tensor.dtype}: not implemented")


def _with_dtype(model: ModelConfig, stored: Mapping[str, Tensor]) -> ModelConfig:
    """Set param_dtype to that of the tensors (float32 if mixed); compute in bfloat16 if it is."""
    kinds = {str(tensor.dtype) for tensor in stored.values()}
    kind = kinds.pop() if len(kinds) == 1 else "float32"
    compute = "bfloat16" if kind == "bfloat16" else "float32"
    return dataclasses.replace(model, param_dtype=kind, dtype=compute)
