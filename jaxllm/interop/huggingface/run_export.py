"""A checkpoint of a run as a directory that Transformers loads, written a tensor at a time."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxllm.errors import UserError
from jaxllm.interop.huggingface.checkpoint import (
    SAFETENSORS_DTYPES,
    Shape,
    expected,
    parameter_shapes,
    their_name,
)
from jaxllm.interop.huggingface.families import Names
from jaxllm.interop.huggingface.fields import FAMILIES
from jaxllm.interop.huggingface.layouts import copy
from jaxllm.interop.huggingface.stream import Checkpoint
from jaxllm.models.config import ModelConfig

DTYPES = {str(dtype): dtype for dtype in SAFETENSORS_DTYPES.values()}
_CODES = {str(dtype): code for code, dtype in SAFETENSORS_DTYPES.items()}
_ALIGNMENT = 8


@dataclasses.dataclass(frozen=True)
class _Place:
    """Where a tensor goes."""

    file: Path
    offset: int
    shape: Shape


def write(
    directory: Path,
    checkpoint: Path,
    model: ModelConfig,
    config: Mapping[str, Any],
    dtype: str,
    max_shard_bytes: int,
) -> None:
    """Writes config.json, the safetensors files and, if there are several, their index.

    Args:
      directory: exists, and is empty.
      checkpoint: `checkpoints/<step>` of the run.
      model: of the run.
      config: what config.json shall say, from `fields.to_config`.
      dtype: of the tensors, 'float32', 'bfloat16' or 'float16'.
      max_shard_bytes: of one file, unless one tensor is larger.

    Raises:
      UserError: a parameter is missing, damaged or of another shape than the model's.
    """
    kind = DTYPES[dtype]
    names = FAMILIES[config["architectures"][0]].tensors.names
    places = _lay_out(directory, expected(model, names, "config.json"), kind, max_shard_bytes)
    text = json.dumps({**config, "torch_dtype": dtype}, indent=2, sort_keys=True)
    (directory / "config.json").write_text(text + "\n")
    saved = Checkpoint(checkpoint)
    for name, shape in parameter_shapes(model).items():
        found = tuple(saved.open(name).shape)
        if found != shape:
            raise UserError(
                f"checkpoint {checkpoint}: parameter {name} has shape {list(found)} in it, "
                f"and {list(shape)} in this run's config"
            )
        _write_parameter(saved, name, shape, names, places, kind)


def _write_parameter(
    saved: Checkpoint,
    name: str,
    shape: Shape,
    names: Names,
    places: Mapping[str, _Place],
    kind: Any,
) -> None:
    theirs, layout = names[name]
    stacked = name.startswith("layers/")

    def into(layer: int | None, rows: slice, array: np.ndarray) -> None:
        place = places[their_name(theirs, layer)]
        # Mapped one at a time, so that what is written does not stay in this process.
        tensor = np.asarray(np.memmap(place.file, kind, "r+", place.offset, place.shape))
        try:
            with np.errstate(over="raise"):
                copy(layout.view(tensor, shape[stacked:])[rows], array)
        except FloatingPointError as error:
            raise UserError(f"parameter {name} is too large for {kind}: use another") from error

    for start, piece in saved.pieces(name):
        if stacked:
            for layer, array in enumerate(piece, start):
                into(layer, slice(None), array)
        else:
            into(None, slice(start, start + len(piece)), piece)


def _lay_out(
    directory: Path, shapes: Mapping[str, Shape], kind: Any, max_shard_bytes: int
) -> dict[str, _Place]:
    """Makes the files at their full size, with their headers; says where each tensor goes."""
    sizes = {name: int(np.prod(shape)) * kind.itemsize for name, shape in shapes.items()}
    shards: list[list[str]] = [[]]
    room = max_shard_bytes
    for name in sorted(shapes, key=_natural):
        if shards[-1] and sizes[name] > room:
            shards.append([])
            room = max_shard_bytes
        shards[-1].append(name)
        room -= sizes[name]
    places: dict[str, _Place] = {}
    for number, shard in enumerate(shards, 1):
        several = f"-{number:05}-of-{len(shards):05}" if len(shards) > 1 else ""
        places |= _new_file(directory / f"model{several}.safetensors", shard, shapes, sizes, kind)
    if len(shards) > 1:
        index = {
            "metadata": {"total_size": sum(sizes.values())},
            "weight_map": {name: places[name].file.name for name in sorted(places)},
        }
        text = json.dumps(index, indent=2)
        (directory / "model.safetensors.index.json").write_text(text + "\n")
    return places


def _new_file(
    path: Path, names: list[str], shapes: Mapping[str, Shape], sizes: Mapping[str, int], kind: Any
) -> dict[str, _Place]:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}  # what Transformers asks for
    end = 0
    for name in names:
        start, end = end, end + sizes[name]
        header[name] = {
            "dtype": _CODES[str(kind)], "shape": list(shapes[name]), "data_offsets": [start, end]
        }  # fmt: skip
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    data = 8 + len(text)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        if hasattr(os, "posix_fallocate"):  # a full disk is an error here, not a signal later on
            os.posix_fallocate(file.fileno(), 0, data + end)
        file.truncate(data + end)
    return {n: _Place(path, data + header[n]["data_offsets"][0], shapes[n]) for n in names}


def _natural(name: str) -> list[tuple[int, str]]:
    """Layer 2 before layer 10."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in name.split(".")]
