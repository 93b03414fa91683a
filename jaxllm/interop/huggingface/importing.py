"""Import Hugging Face directories into a run directory that all commands can read.

A published model is one directory, or a series: a CSV file with a header line, or a JSON object
`{"checkpoints": [{…}, …]}`, with the `directory` and `step`, and optionally the `tokens`, of each
checkpoint. Directories are relative to that file. With `revision`, a directory is a `models--…`
folder of the Hugging Face cache, and the revision a branch, tag or commit in it.
"""

from __future__ import annotations

import csv
import dataclasses
import os
from collections.abc import Callable, Sequence
from operator import attrgetter
from pathlib import Path
from typing import Any

import numpy as np
from etils import epath

from jaxllm.configs import non_defaults
from jaxllm.errors import UserError
from jaxllm.interop.huggingface.checkpoint import (
    CONFIG,
    DTYPES,
    HFCheckpoint,
    parameter_shapes,
)
from jaxllm.interop.huggingface.fields import differences, to_model
from jaxllm.io import fetched, is_remote, new_directory, read_json
from jaxllm.models.config import ModelConfig, ParamDtype
from jaxllm.run.checksums import checksum, with_checksums
from jaxllm.run.layout import MODEL
from jaxllm.run.manifest import IMPORTED, ManifestEntry, code_version
from jaxllm.run.run import Run

CHUNK_BYTES = 64 * 2**20  # chunk size of unstacked parameters
GENERATION = "generation_config.json"
# Files of any tokenizer format.
TOKENIZER_FILES = (
    "tokenizer.model", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json",
    "added_tokens.json", "vocab.json", "merges.txt", GENERATION,
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Published:
    """One checkpoint of a published model, with its training step and tokens seen."""

    checkpoint: HFCheckpoint
    step: int
    tokens: int

    def entry(self, param_dtype: str | None = None) -> ManifestEntry:
        """Its manifest entry; the wall time is the newest file's modification time."""
        model, files = self.checkpoint.model, {t.file for t in self.checkpoint.tensors.values()}
        return ManifestEntry(
            step=self.step, tokens=self.tokens, flops=6.0 * model.num_params * self.tokens,
            learning_rate=None, loss=None, data_position=0, dtype=param_dtype or model.param_dtype,
            wall_time=max(file.stat().st_mtime for file in files), wall_seconds=0.0,
            code_version=code_version(), restarts=0, kind=IMPORTED,
        )  # fmt: skip


def open_published(path: str | Path, step: int = 0, tokens: int = 0) -> list[Published]:
    """Open the checkpoint of a directory, with `step` and `tokens`, or those of a series, by step.

    UserError if the series cannot be read, or lacks a column or directory; a checkpoint is invalid;
    or two have different models.
    """
    source, path = epath.Path(path), fetched(path)
    if path.is_dir():
        return [Published(HFCheckpoint.open(path), step, tokens)]
    if not path.exists():
        raise UserError(f"{source}: no such directory, nor a manifest of several")
    if path.suffix == ".json":
        rows: Any = read_json(path).get("checkpoints")
    else:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = list(csv.DictReader(file))
    if not rows:
        raise UserError(f"{source}: lists no checkpoints")
    listed = sorted(_listed(source, number, row) for number, row in enumerate(rows, 1))
    if len({step for step, _, _ in listed}) < len(listed):
        raise UserError(f"{source}: a step is listed twice")
    series = [Published(HFCheckpoint.open(fetched(place)), *clock) for *clock, place in listed]
    first = series[0].checkpoint
    for other in (published.checkpoint for published in series[1:]):
        for field in differences(first.model, other.model):
            raise UserError(
                f"{other.directory / CONFIG}: another model than {first.directory.name}'s: {field}"
                f" = {attrgetter(field)(other.model)!r}, not {attrgetter(field)(first.model)!r}"
            )
    return series


def _listed(path: epath.Path, number: int, row: dict[str, Any]) -> tuple[int, int, epath.Path]:
    """Step, tokens and directory of a row of the series file."""
    try:
        directory = path.parent / row["directory"]
        step, tokens = int(float(row["step"] or 0)), int(float(row.get("tokens") or 0))
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise UserError(
            f"{path}, checkpoint {number}: needs directory and step, and numbers ({error})"
        ) from error
    if row.get("revision"):
        reference = directory / "refs" / row["revision"]
        commit = reference.read_text().strip() if reference.is_file() else row["revision"]
        directory = directory / "snapshots" / commit
    if not directory.is_dir():
        raise UserError(f"{path}, checkpoint {number}: no directory {directory}")
    return step, tokens, directory


def import_run(
    source: str, target: str, step: int = 0, tokens: int = 0, param_dtype: ParamDtype | None = None
) -> None:
    """Convert a published model into the new run directory `target`, a chunk at a time.

    UserError as `open_published`; or if `target` exists or cannot be written, or a value overflows
    `param_dtype`.
    """
    run = Run(target)
    run.layout.check_name()
    series = open_published(source, step, tokens)
    newest = series[-1].checkpoint
    model = dataclasses.replace(newest.model, param_dtype=param_dtype or newest.model.param_dtype)
    with new_directory(target) as partial:
        written = Run(partial)
        for published in series:
            written.manifest_lines.append(dataclasses.asdict(published.entry(model.param_dtype)))
            directory = Path(written.layout.checkpoint(published.step))
            _save(directory, _streamed(published.checkpoint, model), model)
            of = published.checkpoint.directory
            print(f"step {published.step}  {published.tokens:,} tokens  from {of}")
        _write_files(written, run.path, newest.directory, source, model)
    print(f"{target}: {model.num_params:,} parameters in {model.param_dtype}")


def open_results(source: str, series: Sequence[Published], output: str | None) -> Run:
    """The run directory for the records of a published model, created if missing.

    It is `output`, or runs/<name of the directory or series>. UserError if it belongs to another
    model, by its config or (without `output`) by its source; or it cannot be written.
    """
    path = Path(source)
    name = path.name if path.is_dir() or is_remote(source) else path.stem
    run = Run.create(output or os.path.join("runs", name))
    checkpoint, elsewhere = series[-1].checkpoint, "name another directory with --output"
    another = f"{run.path} is of another model than {source}"
    if not run.layout.config.exists():
        _write_files(run, run.path, checkpoint.directory, source, checkpoint.model)
    elif not (run.path / CONFIG).exists():
        raise UserError(f"{run.path} is a run of its own: {elsewhere}")
    elif output is None and not run.config().startswith(_origin(source)):
        raise UserError(f"{another}, by where it came from: {elsewhere}")
    for field in differences(checkpoint.model, to_model(read_json(run.path / CONFIG))):
        raise UserError(f"{another}, by its {field}: {elsewhere}")
    return run


def _origin(source: str) -> str:
    return f"# From {source if is_remote(source) else Path(source).absolute()}, by jaxllm.\n"


def _write_files(
    run: Run, model_dir: epath.Path, directory: Path, source: str, model: ModelConfig
) -> None:
    """Write config.json, the tokenizer files of the Hugging Face `directory`, and last config.gin.

    `run` may be a temporary place, `model_dir` is the final one; `source` is the user's path.
    """
    for name in (CONFIG, *TOKENIZER_FILES):
        if (directory / name).exists():
            (run.path / name).write_bytes((directory / name).read_bytes())
    if not is_remote(model_dir):
        model_dir = epath.Path(os.path.abspath(model_dir))
    sentencepiece = (directory / "tokenizer.model").exists()
    tokenizer = model_dir / "tokenizer.model" if sentencepiece else model_dir
    lines = [
        *(f"ModelConfig.{name} = {value!r}" for name, value in non_defaults(model).items()),
        f"VocabularyConfig.path = {str(tokenizer)!r}",
        "DataConfig.vocabulary = @VocabularyConfig()",
        f"DataConfig.sequence_length = {model.max_length}",
        f"TrainConfig.model_dir = {str(model_dir)!r}",
    ]
    run.write_config(_origin(source) + "\n".join(lines) + "\n")


@dataclasses.dataclass(frozen=True)
class _Streamed:
    """An array that is created in chunks while Orbax saves it."""

    shape: tuple[int, ...]  # shape of the array
    dtype: np.dtype  # dtype of the array
    rows: int  # chunk size along the first axis
    # first row -> chunk; called after the previous chunk has been written
    chunk: Callable[[int], np.ndarray]

    @property
    def size(self) -> int:  # Orbax reads both
        return int(np.prod(self.shape))

    @property
    def nbytes(self) -> int:
        return self.size * self.dtype.itemsize

    @property
    def checksum(self) -> int:
        return sum(int(checksum(self.chunk(at), at)) for at in self.starts) % 2**32

    @property
    def starts(self) -> range:
        return range(0, self.shape[0], self.rows)


def _streamed(checkpoint: HFCheckpoint, model: ModelConfig) -> dict[str, _Streamed]:
    """The parameters by name, in the dtype of `model`; a chunk is a layer, or some rows."""
    dtype = DTYPES[model.param_dtype]

    def leaf(name: str, shape: tuple[int, ...]) -> _Streamed:
        row_bytes = int(np.prod(shape[1:])) * dtype.itemsize
        stacked = name.startswith("layers/")
        rows = 1 if stacked else min(shape[0], max(1, CHUNK_BYTES // row_bytes))
        others = [slice(None)] * (len(shape) - 1)
        part = lambda start: (slice(start, start + rows), *others)
        return _Streamed(
            shape, dtype, rows, lambda start: checkpoint.read(name, shape, dtype, part(start))
        )

    return {name: leaf(name, shape) for name, shape in parameter_shapes(model).items()}


def _save(directory: Path, arrays: dict[str, _Streamed], model: ModelConfig) -> None:
    """Save arrays as the model of a new checkpoint directory, with checksums of what was read.

    Orbax itself needs every array in memory. Here it does the rest: names, metadata, the commit.
    """
    import orbax.checkpoint as ocp
    import tensorstore as ts
    from flax.traverse_util import unflatten_dict

    class Handler(ocp.type_handlers.NumpyHandler):
        def __init__(self) -> None:
            super().__init__(deepcopy_host_arrays=False)

        async def _open_and_write(self, value: Any, tspec: dict[str, Any], ts_context: Any) -> None:
            chunk = [value.rows, *value.shape[1:]]
            tspec = tspec | {"metadata": tspec["metadata"] | {"chunks": chunk}}
            store = ts.open(ts.Spec(tspec), create=True, open=True, context=ts_context).result()
            for start in value.starts:
                rows = store[start : min(start + value.rows, value.shape[0])]
                # Waiting here, not in the event loop, holds only one chunk of one array in memory.
                rows.write(value.chunk(start), can_reference_source_data_indefinitely=True).result()

    handlers = ocp.type_handlers.create_type_handler_registry((_Streamed, Handler()))
    handler = ocp.PyTreeCheckpointHandler(type_handler_registry=handlers)
    sums = {f"{MODEL}/{name}": array.checksum for name, array in arrays.items()}
    known, tree = with_checksums({"model": model.saved()}, sums), unflatten_dict(arrays, sep="/")
    with ocp.Checkpointer(ocp.CompositeCheckpointHandler(**{MODEL: handler})) as checkpointer:
        arguments = ocp.args.Composite(**{MODEL: ocp.args.PyTreeSave(tree)})
        checkpointer.save(directory.absolute(), args=arguments, custom_metadata=known)
