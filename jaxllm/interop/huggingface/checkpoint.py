"""The tensors of a Hugging Face directory as memory maps, checked before anything is read."""

from __future__ import annotations

import dataclasses
import functools
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from jaxllm.errors import UserError
from jaxllm.interop.huggingface.families import Names, Tensors
from jaxllm.interop.huggingface.fields import family_of, to_model
from jaxllm.models.config import ModelConfig

SAFETENSORS_DTYPES = {
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
}
# Masks and tables that old checkpoints hold and nothing is learned in.
_BUFFERS = re.compile(
    r"(.*\.)?(rotary_emb\.inv_freq|(attn|attention)\.(masked_)?bias|attn\.attention\.(masked_)?bias)"
)
_COMPARED_ROWS = 1024

Shape = tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Tensor:
    """A tensor on disk: its shape and type, and how to get at it."""

    file: Path
    shape: Shape
    dtype: Any
    open: Any  # () -> np.ndarray, a view of a memory map


@dataclasses.dataclass(frozen=True)
class Source:
    """A directory whose tensors are those that its config.json asks for.

    Attributes:
      directory: where it is.
      config: its config.json.
      model: what that describes, with parameters in the directory's own type.
      tensors: the tensors by the names of the architecture's table.
    """

    directory: Path
    config: Mapping[str, Any]
    model: ModelConfig
    tensors: Mapping[str, Tensor]

    @property
    def names(self) -> Names:
        """The table of the architecture."""
        return family_of(dict(self.config)).tensors.names

    def parameter(self, name: str, shape: Shape, layer: int | None = None) -> np.ndarray:
        """One parameter (one layer of it, of shape `shape`), as a view of the memory map."""
        theirs, layout = self.names[name]
        return layout.view(self.tensors[their_name(theirs, layer)].open(), shape)


def open_source(directory: str | Path) -> Source:
    """Opens a directory and checks every tensor's name, shape and file, reading no values.

    Raises:
      UserError: one line that names the file, field or tensor that is missing, unexpected,
        misshapen, truncated or of a kind that we do not know.
    """
    directory = Path(directory)
    config = read_json(directory / "config.json")
    try:
        model = to_model(config)
        tensors = family_of(config).tensors
    except UserError as error:
        line = str(error).splitlines()[0]  # gin adds where it was called from
        raise UserError(f"{directory / 'config.json'}: {line}") from error
    found = _without_buffers(_tensors(directory))
    found = _with_base(found, tensors)
    wanted = expected(model, tensors.names, str(directory / "config.json"))
    found = _without_tied_head(found, wanted, model, tensors)
    _check(directory, found, wanted)
    return Source(directory, config, _with_dtype(model, found), found)


def expected(model: ModelConfig, names: Names, where: str) -> dict[str, Shape]:
    """The shapes of an architecture's tensors for a model.

    Raises:
      UserError: the architecture has no tensor for a parameter of the model.
    """
    shapes: dict[str, Shape] = {}
    for name, shape in parameter_shapes(model).items():
        if name not in names:
            raise UserError(f"{where}: the architecture has no tensor for the parameter {name}")
        theirs, layout = names[name]
        stacked = name.startswith("layers/")
        for layer in range(model.num_layers) if stacked else (None,):
            shapes[their_name(theirs, layer)] = layout.shape(shape[stacked:])
    return shapes


def parameter_shapes(model: ModelConfig) -> dict[str, Shape]:
    """Our parameters by name, as 'layers/attention/query', in the order of the tree."""
    import flax.linen as nn
    from flax.traverse_util import flatten_dict

    from jaxllm.models.decoder import abstract_params

    flat = flatten_dict(nn.unbox(abstract_params(model)), sep="/")
    return {name: tuple(leaf.shape) for name, leaf in flat.items()}


def their_name(pattern: str, layer: int | None) -> str:
    """The name of a tensor, of one layer where it is one of the layers'."""
    return pattern if layer is None else pattern.format(layer)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file that holds an object.

    Raises:
      UserError: it does not exist, or is something else.
    """
    try:
        value = json.loads(path.read_text())
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise UserError(f"{path}: not JSON ({error})") from error
    if not isinstance(value, dict):
        raise UserError(f"{path}: holds no JSON object")
    return value


def _tensors(directory: Path) -> dict[str, Tensor]:
    for name, reader in (("model.safetensors", _safetensors), ("pytorch_model.bin", _pickle)):
        index = directory / f"{name}.index.json"
        if index.exists():
            return _indexed(index, reader)
        if (directory / name).exists():
            return reader(directory / name)
    raise UserError(
        f"{directory} has no weights: neither model.safetensors nor pytorch_model.bin, "
        "nor the index of several"
    )


def _indexed(index: Path, reader: Any) -> dict[str, Tensor]:
    where = read_json(index).get("weight_map")
    if not isinstance(where, dict):
        raise UserError(f"{index}: has no weight_map")
    found: dict[str, Tensor] = {}
    for file in sorted(set(where.values())):
        found |= reader(index.parent / file)
    for name in sorted(where.keys() - found.keys()):
        raise UserError(
            f"{index.parent / where[name]}: the tensor {name} of {index.name} is missing"
        )
    return found


def _safetensors(file: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="np"):  # it checks that the header and the file agree
            pass
        with open(file, "rb") as opened:
            length = int.from_bytes(opened.read(8), "little")
            header = json.loads(opened.read(length))
    except OSError as error:
        raise UserError(f"cannot read {file}: {error.strerror or error}") from error
    except (SafetensorError, ValueError) as error:
        raise UserError(f"{file}: truncated, or no safetensors file ({error})") from error
    header.pop("__metadata__", None)

    @functools.cache
    def mapped() -> np.ndarray:
        return np.memmap(file, np.uint8, "r", offset=0)

    def tensor(name: str, entry: Mapping[str, Any]) -> Tensor:
        start, end = (8 + length + offset for offset in entry["data_offsets"])
        shape, dtype = tuple(entry["shape"]), SAFETENSORS_DTYPES.get(entry["dtype"], entry["dtype"])
        return Tensor(
            file, shape, dtype, lambda: np.asarray(mapped()[start:end]).view(dtype).reshape(shape)
        )

    return {name: tensor(name, entry) for name, entry in header.items()}


def _pickle(file: Path) -> dict[str, Tensor]:
    """PyTorch's own format: read without running code of the file's, and only if torch is there."""
    try:
        import torch
    except ImportError as error:
        raise UserError(
            f"{file} is a PyTorch file: install torch to read it, or convert it to safetensors"
        ) from error
    try:
        state = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # pickle, zip and torch errors have no common type
        lines = str(error).splitlines() or [type(error).__name__]
        raise UserError(f"{file}: torch.load(weights_only=True) refuses it ({lines[0]})") from error
    bits = {torch.bfloat16: (torch.int16, ml_dtypes.bfloat16)}

    def tensor(value: Any) -> Tensor:
        plain, dtype = bits.get(value.dtype, (value.dtype, None))
        kind = str(value.dtype).removeprefix("torch.")
        known = {str(d): d for d in SAFETENSORS_DTYPES.values()}

        def opened() -> np.ndarray:
            array = value.view(plain).contiguous().numpy()
            return array.view(dtype) if dtype else array

        return Tensor(file, tuple(value.shape), known.get(kind, kind), opened)

    return {name: tensor(value) for name, value in state.items()}


def _without_buffers(found: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in found.items() if not _BUFFERS.fullmatch(name)}


def _with_base(found: dict[str, Tensor], tensors: Tensors) -> dict[str, Tensor]:
    """Names as the table has them, for checkpoints that were saved without the head's module."""
    if any(name.startswith(tensors.base) for name in found):
        return found
    return {name if name == tensors.head else tensors.base + name: t for name, t in found.items()}


def _without_tied_head(
    found: dict[str, Tensor], wanted: Mapping[str, Shape], model: ModelConfig, tensors: Tensors
) -> dict[str, Tensor]:
    """A tied head may be written down twice; twice the same, or it is not tied."""
    table = tensors.names["embedding"][0]
    if not model.tied_head or tensors.head not in found or table not in found:
        return found
    head, embedding = found[tensors.head], found[table]
    if head.shape != embedding.shape or not _equal(head.open(), embedding.open()):
        raise UserError(
            f"{head.file}: tensor {tensors.head} differs from {table}, "
            "and config.json says tie_word_embeddings"
        )
    return {name: tensor for name, tensor in found.items() if name != tensors.head}


def _equal(a: np.ndarray, b: np.ndarray) -> bool:
    rows = range(0, len(a), _COMPARED_ROWS)
    return all(np.array_equal(a[i : i + _COMPARED_ROWS], b[i : i + _COMPARED_ROWS]) for i in rows)


def _check(directory: Path, found: Mapping[str, Tensor], wanted: Mapping[str, Shape]) -> None:
    for name in sorted(wanted.keys() - found.keys()):
        raise UserError(f"{directory}: the tensor {name} is missing")
    for name in sorted(found.keys() - wanted.keys()):
        raise UserError(f"{found[name].file}: unexpected tensor {name}")
    for name, tensor in found.items():
        if tensor.shape != wanted[name]:
            raise UserError(
                f"{tensor.file}: tensor {name} has shape {list(tensor.shape)}, "
                f"and config.json makes it {list(wanted[name])}"
            )
        if tensor.dtype not in SAFETENSORS_DTYPES.values():
            raise UserError(f"{tensor.file}: tensor {name} is {tensor.dtype}: not implemented")


def _with_dtype(model: ModelConfig, found: Mapping[str, Tensor]) -> ModelConfig:
    """Parameters in the type of the tensors, in float32 where they differ; bfloat16 computes so."""
    kinds = {str(tensor.dtype) for tensor in found.values()}
    kind = kinds.pop() if len(kinds) == 1 else "float32"
    compute = "bfloat16" if kind == "bfloat16" else "float32"
    return dataclasses.replace(model, param_dtype=kind, dtype=compute)
