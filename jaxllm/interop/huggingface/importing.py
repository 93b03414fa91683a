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
    copy,
    parameter_shapes,
    read_json,
)
from jaxllm.interop.huggingface.fields import differences, to_model
from jaxllm.io import is_remote, new_directory
from jaxllm.models.config import ModelConfig
from jaxllm.run.manifest import ManifestEntry, code_version
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
    """One checkpoint of a published model.

    Attributes:
      checkpoint: its tensors and config.json.
      step: training step.
      tokens: training tokens seen.
    """

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
            code_version=code_version(), restarts=0, kind="scheduled",
        )  # fmt: skip


def open_published(path: str | Path, step: int = 0, tokens: int = 0) -> list[Published]:
    """Open the checkpoint of a directory, with `step` and `tokens`, or those of a series, by step.

    Raises:
      UserError: the series cannot be read, or lacks a column or directory; a checkpoint is
        invalid; or two have different models.
    """
    path = Path(path)
    if path.is_dir():
        return [Published(HFCheckpoint.open(path), step, tokens)]
    if not path.exists():
        raise UserError(f"{path}: no such directory, nor a manifest of several")
    if path.suffix == ".json":
        rows: Any = read_json(path).get("checkpoints")
    else:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = list(csv.DictReader(file))
    if not rows:
        raise UserError(f"{path}: lists no checkpoints")
    places = sorted((_place(path, number, row) for number, row in enumerate(rows, 1)))
    if len({step for step, _, _ in places}) < len(places):
        raise UserError(f"{path}: a step is listed twice")
    series = [Published(HFCheckpoint.open(where), *clock) for *clock, where in places]
    first = series[0].checkpoint
    for other in (published.checkpoint for published in series[1:]):
        for field in differences(first.model, other.model):
            raise UserError(
                f"{other.directory / CONFIG}: another model than {first.directory.name}'s: {field}"
                f" = {getattr(other.model, field)!r}, not {getattr(first.model, field)!r}"
            )
    return series


def _place(path: Path, number: int, row: dict[str, Any]) -> tuple[int, int, Path]:
    """Step, tokens and directory of a row of the series file."""
    try:
        directory = path.parent / row["directory"]
        step, tokens = (int(float(row.get(name) or 0)) for name in ("step", "tokens"))
        row["step"]
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
    source: str,
    target: str,
    step: int = 0,
    tokens: int = 0,
    param_dtype: str | None = None,
    report: Callable[[str], None] = print,
) -> None:
    """Convert a published model into the new run directory `target`, a layer at a time.

    Raises:
      UserError: as `open_published`; `target` exists or cannot be written; or a value overflows
        `param_dtype`.
    """
    run = Run(target)
    run.layout.check_name()
    series = open_published(source, step, tokens)
    model = series[-1].checkpoint.model
    if param_dtype:
        model = dataclasses.replace(model, param_dtype=param_dtype)
    with new_directory(target) as partial:
        for published in series:
            _write_checkpoint(Run(partial), published, model.param_dtype)
            report(
                f"step {published.step}  {published.tokens:,} tokens  "
                f"from {published.checkpoint.directory}"
            )
        _begin(Run(partial), run.path, series[-1].checkpoint.directory, source, model)
    report(f"{target}: {model.num_params:,} parameters in {model.param_dtype}")


def default_output(source: str) -> str:
    """The default records directory of a published model: runs/<directory or series name>."""
    path = Path(source).absolute()
    return os.path.join("runs", path.name if path.is_dir() else path.stem)


def open_results(source: str, series: Sequence[Published], output: str | None) -> Run:
    """The run directory for the records of a published model, created if missing.

    Raises:
      UserError: it belongs to another model, by its config or (without `output`) by its source; or
        it cannot be written.
    """
    model_dir = output or default_output(source)
    run = Run.create(model_dir)
    checkpoint = series[-1].checkpoint
    another = f"{model_dir} is of another model than {source}"
    name_another = "name another directory with --output"
    if not run.layout.config.exists():
        _begin(run, run.path, checkpoint.directory, source, checkpoint.model)
    elif not (run.path / CONFIG).exists():
        raise UserError(f"{model_dir} is a run of its own: {name_another}")
    elif output is None and not run.config().startswith(_origin(source)):
        raise UserError(f"{another}, by where it came from: {name_another}")
    for field in differences(checkpoint.model, to_model(read_json(run.path / CONFIG))):
        raise UserError(f"{another}, by its {field}: {name_another}")
    return run


def _origin(source: str) -> str:
    return f"# From {Path(source).absolute()}, by jaxllm.\n"


def _begin(run: Run, model_dir: epath.Path, files: Path, source: str, model: ModelConfig) -> None:
    """Write the run's files except checkpoints: config.json, tokenizer, and last config.gin.

    Args:
      run: run directory to write to.
      model_dir: final location of the run.
      files: a Hugging Face directory of the model.
      source: the path given by the user.
      model: the model of `files`.
    """
    for name in (CONFIG, *TOKENIZER_FILES):
        if (files / name).exists():
            (run.path / name).write_bytes((files / name).read_bytes())
    if not is_remote(model_dir):
        model_dir = epath.Path(os.path.abspath(model_dir))
    sentencepiece = (files / "tokenizer.model").exists()
    tokenizer = model_dir / "tokenizer.model" if sentencepiece else model_dir
    lines = [
        *(f"ModelConfig.{name} = {value!r}" for name, value in non_defaults(model).items()),
        f"VocabularyConfig.kind = {'sentencepiece' if sentencepiece else 'huggingface'!r}",
        f"VocabularyConfig.path = {str(tokenizer)!r}",
        "DataConfig.vocabulary = @VocabularyConfig()",
        f"DataConfig.sequence_length = {model.max_length}",
        f"TrainConfig.model_dir = {str(model_dir)!r}",
    ]
    run.write_config(_origin(source) + "\n".join(lines) + "\n")


def _write_checkpoint(run: Run, published: Published, param_dtype: str) -> None:
    """Write a checkpoint into a run directory, a chunk at a time."""
    from flax.traverse_util import unflatten_dict

    from jaxllm.interop.huggingface.stream import Streamed, save

    checkpoint, dtype = published.checkpoint, DTYPES[param_dtype]

    def streamed(name: str, shape: tuple[int, ...]) -> Streamed:
        stacked = name.startswith("layers/")
        row_bytes = int(np.prod(shape[1:])) * dtype.itemsize
        rows = 1 if stacked else min(shape[0], max(1, CHUNK_BYTES // row_bytes))

        def chunk(start: int) -> np.ndarray:
            if stacked:
                view = checkpoint.parameter(name, shape[1:], start)[None]
            else:
                view = checkpoint.parameter(name, shape)[start : start + rows]
            array = np.empty(view.shape, dtype)
            copy(array, view, name)
            return array

        return Streamed(shape, dtype, rows, chunk)

    shapes = parameter_shapes(checkpoint.model)
    tree = unflatten_dict({name: streamed(name, shape) for name, shape in shapes.items()}, sep="/")
    run.manifest_lines.append(dataclasses.asdict(published.entry(param_dtype)))
    save(Path(run.layout.checkpoint(published.step)), tree)
