"""Hugging Face directories into a run directory, which every command reads as any run."""

from __future__ import annotations

import csv
import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxllm.errors import UserError
from jaxllm.interop.huggingface.checkpoint import Source, open_source, parameter_shapes, read_json
from jaxllm.interop.huggingface.fields import differences
from jaxllm.interop.huggingface.layouts import copy
from jaxllm.run.manifest import ManifestEntry, code_version
from jaxllm.run.run import Run

PIECE_BYTES = 64 * 2**20  # of what is not stacked over layers, held at a time


@dataclasses.dataclass(frozen=True)
class Revision:
    """One checkpoint of a published series.

    Attributes:
      directory: its files.
      step: updates done.
      tokens: tokens seen.
    """

    directory: Path
    step: int = 0
    tokens: int = 0


def series(path: str | Path, step: int = 0, tokens: int = 0) -> list[Revision]:
    """The checkpoints of a directory (one), or of a manifest of several.

    A manifest is CSV with a header line, or a JSON object `{"checkpoints": [{…}, …]}`: `directory`,
    `step`, and if known `tokens` of each. Directories are relative to the manifest. With `revision`
    the directory is a `models--…` folder of the Hugging Face cache, and the revision a branch, tag
    or commit in it.

    Raises:
      UserError: the manifest cannot be read, or misses a column or directory.
    """
    path = Path(path)
    if path.is_dir():
        return [Revision(path, step, tokens)]
    if not path.exists():
        raise UserError(f"{path}: no such directory, nor a manifest of several")
    if path.suffix == ".json":
        rows: Any = read_json(path).get("checkpoints")
    else:
        with path.open(newline="") as file:
            rows = list(csv.DictReader(file))
    if not rows:
        raise UserError(f"{path}: lists no checkpoints")
    revisions = [_revision(path, number, row) for number, row in enumerate(rows, 1)]
    steps = [revision.step for revision in revisions]
    if len(set(steps)) < len(steps):
        raise UserError(f"{path}: a step is listed twice")
    return sorted(revisions, key=lambda revision: revision.step)


def _revision(path: Path, number: int, row: dict[str, Any]) -> Revision:
    try:
        directory = path.parent / row["directory"]
        step, tokens = (int(float(row.get(name) or 0)) for name in ("step", "tokens"))
        row["step"]
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{path}, checkpoint {number}: needs directory and step, and numbers ({error})"
        ) from error
    if row.get("revision"):
        reference = directory / "refs" / row["revision"]
        commit = reference.read_text().strip() if reference.is_file() else row["revision"]
        directory = directory / "snapshots" / commit
    if not directory.is_dir():
        raise UserError(f"{path}, checkpoint {number}: no directory {directory}")
    return Revision(directory, step, tokens)


def open_series(revisions: Sequence[Revision]) -> list[Source]:
    """The sources of a series, all checked, and all of one model.

    Raises:
      UserError: something is wrong with one of them, or two differ in a field.
    """
    sources = [open_source(revision.directory) for revision in revisions]
    first = sources[0]
    for source in sources[1:]:
        for field in differences(first.model, source.model):
            raise UserError(
                f"{source.directory / 'config.json'}: another model than "
                f"{first.directory.name}'s: {field} = {getattr(source.model, field)!r}, not "
                f"{getattr(first.model, field)!r}"
            )
    return sources


def entry(source: Source, revision: Revision, param_dtype: str | None = None) -> ManifestEntry:
    """What a manifest can say of a published checkpoint."""
    model = source.model
    return ManifestEntry(
        step=revision.step, tokens=revision.tokens, flops=6.0 * model.num_params * revision.tokens,
        learning_rate=None, loss=None, data_position=0, dtype=param_dtype or model.param_dtype,
        wall_time=time.time(), wall_seconds=0.0, code_version=code_version(), restarts=0,
        kind="scheduled",
    )  # fmt: skip


def write(model_dir: Path, source: Source, revision: Revision, param_dtype: str) -> None:
    """Adds one checkpoint to a run directory, a layer at a time."""
    from flax.traverse_util import unflatten_dict

    from jaxllm.interop.huggingface.stream import Streamed, save

    dtype = np.dtype(param_dtype if param_dtype != "bfloat16" else _bfloat16())

    def streamed(name: str, shape: tuple[int, ...]) -> Streamed:
        stacked = name.startswith("layers/")
        row_bytes = int(np.prod(shape[1:])) * dtype.itemsize
        rows = 1 if stacked else min(shape[0], max(1, PIECE_BYTES // row_bytes))

        def piece(start: int) -> np.ndarray:
            if stacked:
                view = source.parameter(name, shape[1:], start)[None]
            else:
                view = source.parameter(name, shape)[start : start + rows]
            array = np.empty(view.shape, dtype)
            copy(array, view)
            return array

        return Streamed(shape, dtype, rows, piece)

    shapes = parameter_shapes(source.model)
    tree = unflatten_dict({name: streamed(name, shape) for name, shape in shapes.items()}, sep="/")
    run = Run(model_dir)
    run.manifest_lines.append(dataclasses.asdict(entry(source, revision, param_dtype)))
    save(Path(run.layout.checkpoint(revision.step)), tree)


def _bfloat16() -> Any:
    import ml_dtypes

    return ml_dtypes.bfloat16
