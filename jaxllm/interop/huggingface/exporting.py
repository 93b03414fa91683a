"""Export checkpoints of a run to directories that Transformers loads, a parameter at a time."""

from __future__ import annotations

import errno
import json
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxllm.errors import UserError
from jaxllm.interop.huggingface.architectures import FAMILIES
from jaxllm.interop.huggingface.checkpoint import (
    CONFIG,
    DTYPES,
    Tensor,
    copy,
    map_safetensors,
    parameter_shapes,
    tensor_shapes,
)
from jaxllm.interop.huggingface.fields import differences, to_config, to_model
from jaxllm.interop.huggingface.importing import GENERATION, TOKENIZER_FILES
from jaxllm.io import new_directory, read_json
from jaxllm.models.config import ModelConfig
from jaxllm.run.layout import MODEL
from jaxllm.run.restore import SavedArrays
from jaxllm.run.run import Run

Json = dict[str, Any]


def export_run(
    run: Run,
    target: str,
    model_at: Callable[[int], ModelConfig],
    *,
    step: int | None = None,
    steps: str | None = None,
    architecture: str | None = None,
    dtype: str | None = None,
    max_shard_size: str = "5GB",
) -> None:
    """Write checkpoint `step`, of the model `model_at(step)`, into the new directory `target`.

    Or those of `steps`, 'all' or '100,200', into `target`/step<N>. The architecture is by default
    that of an imported run, or the first that can express the model; the dtype that of the
    parameters. `max_shard_size` is that of a file, as '5GB', unless one tensor is larger. UserError
    if there is no such checkpoint; no architecture can express the model; a parameter is missing,
    damaged, misshapen or overflows the dtype; or a write fails.
    """
    one = step is not None
    entries = run.select(str(step) if one else None if steps == "all" else steps)
    configs = {e.step: _config(run, model_at(e.step), architecture) for e in entries}
    model = model_at(entries[0].step)  # all have its parameters
    dtype = dtype or model.param_dtype
    names = FAMILIES[configs[entries[0].step]["architectures"][0]].tensors
    shapes = tensor_shapes(model, names, CONFIG)
    with new_directory(target) as partial:
        for entry in entries:
            directory = partial if one else partial / f"step{entry.step}"
            directory.mkdir(exist_ok=True)
            tensors = _new_files(directory, shapes, DTYPES[dtype], max_shard_size)
            for name, array in _read_params(run, entry.step, parameter_shapes(model)):
                hf_name, layout = names[name]
                layers = enumerate(array) if name.startswith("layers/") else ((None, array),)
                for layer, values in layers:
                    tensor = tensors[hf_name.format(layer)].open()
                    copy(layout.view(tensor, values.shape), values, name)
            config = configs[entry.step]
            _write_json(directory / CONFIG, {**config, "torch_dtype": dtype})
            _add_small_files(run, directory, config)
            print(f"step {entry.step}  {config['architectures'][0]}  {dtype}")
    print(f"hf:{target}: {model.num_params:,} parameters each")


def _config(run: Run, model: ModelConfig, architecture: str | None) -> Json:
    """The config.json of a run: the imported one if it still matches the model, or a new one."""
    if (run.path / CONFIG).exists():
        config = read_json(run.path / CONFIG)
        same = not differences(model, to_model(config))
        if same and architecture in (None, config["architectures"][0]):
            dropped = ("dtype", "torch_dtype", "auto_map")  # auto_map: its code is not exported
            return {name: value for name, value in config.items() if name not in dropped}
    return to_config(model, architecture) | _special_ids(run)


def _special_ids(run: Run) -> dict[str, int | None]:
    """The BOS, EOS and padding ids of the run's vocabulary."""
    from jaxllm.data.config import BYTES, DataConfig
    from jaxllm.data.tokenizer import Tokenizer, read
    from jaxllm.run.data_identity import saved_tokenizer

    tokenizer = None
    if path := saved_tokenizer(str(run.path)):
        tokenizer = read(path)
    elif DataConfig().vocabulary.path == BYTES:
        tokenizer = Tokenizer("bytes")
    return {f"{name}_token_id": getattr(tokenizer, name, None) for name in ("bos", "eos", "pad")}


def _read_params(
    run: Run, step: int, shapes: Mapping[str, tuple[int, ...]]
) -> Iterator[tuple[str, np.ndarray]]:
    """Yield a checkpoint's parameters by name, layers stacked; UserError if one is damaged."""
    path = run.layout.checkpoint(step)
    saved = SavedArrays(path / MODEL)
    for name, shape in shapes.items():
        if name not in saved.shapes:
            raise UserError(f"checkpoint {path}: no parameter {name} in it")
        if saved.shapes[name] != shape:
            raise UserError(
                f"checkpoint {path}: parameter {name} has shape {list(saved.shapes[name])} in it, "
                f"and {list(shape)} in this run's config"
            )
        yield name, saved.read(name)


def _new_files(
    directory: Path, shapes: Mapping[str, tuple[int, ...]], dtype: np.dtype, max_shard_size: str
) -> dict[str, Tensor]:
    """Create zero-filled files and map their tensors for writing.

    safetensors would need whole shards in memory; the zeros take none. A full disk is an error
    here, not a signal later.
    """
    from huggingface_hub import split_state_dict_into_shards_factory
    from safetensors import SafetensorError
    from safetensors.numpy import save_file

    try:
        split = split_state_dict_into_shards_factory(
            dict(shapes),
            get_storage_size=lambda shape: math.prod(shape) * dtype.itemsize,
            filename_pattern="model{suffix}.safetensors",
            max_shard_size=max_shard_size,
        )
    except (ValueError, OverflowError) as error:
        text = f"--max_shard_size={max_shard_size}: write a size, as 5GB or 500MB"
        raise UserError(text) from error
    tensors: dict[str, Tensor] = {}
    for file, names in split.filename_to_tensors.items():
        zeros = {name: np.zeros(shapes[name], dtype) for name in names}
        try:
            save_file(zeros, directory / file, {"format": "pt"})  # required by Transformers
        except SafetensorError as error:
            raise OSError(errno.EIO, str(error)) from error
        tensors |= map_safetensors(directory / file, "r+")
    if split.is_sharded:
        index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
        _write_json(directory / "model.safetensors.index.json", index)
    return tensors


def _add_small_files(run: Run, directory: Path, config: Json) -> None:
    for name in TOKENIZER_FILES:
        if (run.path / name).exists():
            (directory / name).write_bytes((run.path / name).read_bytes())
    if not (directory / GENERATION).exists():
        ids = {name: config[name] for name in config if name.endswith("_token_id")}
        _write_json(directory / GENERATION, ids)
    model, stated = directory / "tokenizer.model", directory / "tokenizer_config.json"
    if model.exists() and not stated.exists():
        _write_json(stated, _sentencepiece_config(model))
    elif stated.exists():
        _write_json(stated, {"tokenizer_class": "PreTrainedTokenizerFast"} | read_json(stated))


def _sentencepiece_config(model: Path) -> Json:
    """A tokenizer_config.json with which Transformers reproduces a SentencePiece model's ids."""
    from sentencepiece import SentencePieceProcessor

    processor = SentencePieceProcessor(model_file=str(model))
    ids = {name: getattr(processor, f"{name}_id")() for name in ("bos", "eos", "unk", "pad")}
    tokens = {f"{name}_token": processor.id_to_piece(i) for name, i in ids.items() if i >= 0}
    return {
        "tokenizer_class": "LlamaTokenizer", "legacy": False, "add_eos_token": False,
        "add_bos_token": "bos_token" in tokens, "clean_up_tokenization_spaces": False,
        "add_prefix_space": processor.encode("a", out_type=str)[0].startswith("\u2581"), **tokens,
    }  # fmt: skip


def _write_json(path: Path, value: Json) -> None:
    text = json.dumps(value, indent=2, ensure_ascii=False, sort_keys=True)
    path.write_text(text + "\n", encoding="utf-8")
