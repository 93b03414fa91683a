"""Checkpoints between run directories and the Hugging Face format, one tensor at a time.

    python -m jaxllm.convert --from=hf:DIR --to=MODEL_DIR
    python -m jaxllm.convert --from=hf:series.csv --to=MODEL_DIR
    python -m jaxllm.convert --from=MODEL_DIR --step=1000 --to=hf:DIR
    python -m jaxllm.convert --from=MODEL_DIR --steps=all --to=hf:DIR

DIR holds config.json, safetensors (or PyTorch) files and a tokenizer. series.csv names a whole
series: the columns `directory` and `step`, and if known `tokens` and `revision`; or the same as
JSON, {"checkpoints": [{"directory": …, "step": …}, …]}. MODEL_DIR is then a run that
jaxllm.evaluate, generate and analyze read. With --steps the export makes one directory per step,
DIR/step<N>. Nothing is left behind where a conversion fails.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jaxllm import cli
from jaxllm.errors import UserError
from jaxllm.io import location

if TYPE_CHECKING:
    from jaxllm.interop.huggingface.checkpoint import Source
    from jaxllm.models.config import ModelConfig

PREFIX = "hf:"
CONFIG = "config.json"
GENERATION = "generation_config.json"
# What belongs to a tokenizer, whoever reads it.
TOKENIZER_FILES = (
    "tokenizer.model", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json",
    "added_tokens.json", "vocab.json", "merges.txt", GENERATION,
)  # fmt: skip
_UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9}


def main(argv: Sequence[str] | None = None) -> int:
    """Converts in the direction that the two ends say."""
    flags = cli.parser(__doc__ or "")
    flags.add_argument("--from", dest="source", type=location, required=True, metavar="WHERE",
                       help="hf:DIR, hf:FILE (a series), or a run directory")  # fmt: skip
    flags.add_argument("--to", dest="target", type=location, required=True, metavar="WHERE",
                       help="a run directory, or hf:DIR; it must not exist")  # fmt: skip
    flags.add_argument("--step", type=int, metavar="N", help="the checkpoint; of hf:DIR: default 0")
    flags.add_argument("--steps", metavar="all|N,N", help="several checkpoints of a run")
    flags.add_argument("--tokens", type=float, default=0, metavar="N",
                       help="tokens that the checkpoint of hf:DIR has seen")  # fmt: skip
    flags.add_argument("--dtype", choices=("float32", "bfloat16", "float16"),
                       help="of the parameters (default: as they are)")  # fmt: skip
    flags.add_argument("--architecture", metavar="NAME",
                       help="of hf:DIR (default: the one it came from, or fits)")  # fmt: skip
    flags.add_argument("--max_shard_size", default="5GB", metavar="SIZE", help="default: 5GB")
    args = cli.parse(flags, argv)
    incoming, outgoing = (x.startswith(PREFIX) for x in (args.source, args.target))
    # Orbax logs what it does not find in an item, and its errors, which come as exceptions too.
    logging.getLogger("absl").setLevel(logging.CRITICAL)
    if incoming == outgoing:
        raise UserError("one of --from and --to is hf:DIR, and the other a run directory")
    if incoming:
        import_series(args)
    else:
        export(args)
    return 0


def import_series(args: Any) -> None:
    """hf:DIR, or a series of them, into a new run directory."""
    from jaxllm.interop.huggingface import run_import
    from jaxllm.io import new_directory
    from jaxllm.run.layout import Layout

    Layout(args.target).check_name()
    revisions = run_import.series(
        args.source.removeprefix(PREFIX), args.step or 0, int(args.tokens)
    )
    sources = run_import.open_series(revisions)
    model = sources[-1].model
    if args.dtype:
        model = dataclasses.replace(model, param_dtype=args.dtype)
    with new_directory(args.target) as partial:
        begin_run(partial, Path(args.target).absolute(), sources[-1].directory, model)
        for source, revision in zip(sources, revisions, strict=True):
            run_import.write(partial, source, revision, model.param_dtype)
            print(f"step {revision.step}  {revision.tokens:,} tokens  from {source.directory}")
    print(f"{args.target}: {model.num_params:,} parameters in {model.param_dtype}")


def open_run(model_dir: Path, source: Source) -> None:
    """Makes a run directory for a published model, or sees that it is this model's.

    Raises:
      UserError: it is another's.
    """
    from jaxllm.interop.huggingface.checkpoint import read_json
    from jaxllm.interop.huggingface.fields import differences, to_model
    from jaxllm.io import new_directory
    from jaxllm.run.layout import Layout

    if not Layout(model_dir).config.exists():
        with new_directory(model_dir) as partial:
            begin_run(partial, model_dir, source.directory, source.model)
    elif not (model_dir / CONFIG).exists():
        raise UserError(f"{model_dir} is a run of its own: name another directory with --output")
    for field in differences(source.model, to_model(read_json(model_dir / CONFIG))):
        raise UserError(
            f"{model_dir} is of another model than {source.directory}, by its {field}: "
            "name another directory with --output"
        )


def begin_run(directory: Path, model_dir: Path, source: Path, model: ModelConfig) -> None:
    """Writes what a run directory has beside checkpoints: config.gin, and the source's small files.

    Args:
      directory: where to write.
      model_dir: where the run will be.
      source: the Hugging Face directory.
      model: what it holds.
    """
    from jaxllm.interop.huggingface.fields import DEFAULTS
    from jaxllm.run.run import Run

    shutil.copyfile(source / CONFIG, directory / CONFIG)
    for name in TOKENIZER_FILES:
        if (source / name).exists():
            shutil.copyfile(source / name, directory / name)
    changed = {k: v for k, v in dataclasses.asdict(model).items() if v != DEFAULTS[k]}
    sentencepiece = (source / "tokenizer.model").exists()
    tokenizer = model_dir / "tokenizer.model" if sentencepiece else model_dir
    lines = [
        f"# From {source}, by jaxllm.convert.",
        *(f"ModelConfig.{name} = {value!r}" for name, value in changed.items()),
        f"VocabularyConfig.kind = {'sentencepiece' if sentencepiece else 'huggingface'!r}",
        f"VocabularyConfig.path = {str(tokenizer)!r}",
        "DataConfig.vocabulary = @VocabularyConfig()",
        "DataConfig.mixture_or_task_name = 'embedded'  # its own corpora are not known",
        f"DataConfig.sequence_length = {model.max_length}",
        f"TrainConfig.model_dir = {str(model_dir)!r}",
    ]
    Run(directory).write_config("\n".join(lines) + "\n")


def export(args: Any) -> None:
    """One checkpoint of a run, or several, into Hugging Face directories."""
    from jaxllm.interop.huggingface import run_export
    from jaxllm.io import new_directory
    from jaxllm.models.config import ModelConfig
    from jaxllm.run.run import Run

    if (args.step is None) == (args.steps is None):
        raise UserError("name the checkpoint with --step=N, or several with --steps=all or N,N")
    shard_bytes = _bytes(args.max_shard_size)
    cli.load_gin(args, args.source)
    model = ModelConfig()
    steps = str(args.step) if args.steps is None else args.steps
    entries = Run(args.source).select(None if steps == "all" else steps)
    config = describe(Path(args.source), model, args.architecture)
    dtype = args.dtype or model.param_dtype
    target = args.target.removeprefix(PREFIX)
    with new_directory(target) as partial:
        for entry in entries:
            directory = partial if args.steps is None else partial / f"step{entry.step}"
            directory.mkdir(exist_ok=True)
            checkpoint = Path(Run(args.source).layout.checkpoint(entry.step))
            run_export.write(directory, checkpoint, model, config, dtype, shard_bytes)
            _add_small_files(Path(args.source), directory, config)
            print(f"step {entry.step}  {config['architectures'][0]}  {dtype}")
    print(f"{args.target}: {model.num_params:,} parameters each")


def describe(model_dir: Path, model: ModelConfig, architecture: str | None) -> dict[str, Any]:
    """The config.json of a run: the one it came with, if it did and still fits, or a new one."""
    from jaxllm.interop.huggingface.checkpoint import read_json
    from jaxllm.interop.huggingface.fields import differences, to_config, to_model

    if (model_dir / CONFIG).exists():
        config = read_json(model_dir / CONFIG)
        same = not differences(model, to_model(config))
        if same and architecture in (None, config["architectures"][0]):
            dropped = ("dtype", "torch_dtype", "auto_map")  # the code it points to stays behind
            return {name: value for name, value in config.items() if name not in dropped}
    return to_config(model, architecture) | _special_ids(model_dir)


def _special_ids(model_dir: Path) -> dict[str, int | None]:
    """What begins, ends and pads a text of the run, by its vocabulary."""
    from jaxllm.data.config import DataConfig
    from jaxllm.data.tokenize import BYTE_BOS
    from jaxllm.data.tokenizer_files import read
    from jaxllm.run.data_identity import saved_tokenizer

    path = saved_tokenizer(str(model_dir))
    if path is not None:
        codec = read(path).codec
        ids = {"bos": codec.bos, "eos": codec.eos, "pad": codec.pad}
    elif DataConfig().vocabulary.kind == "bytes":
        ids = {"bos": BYTE_BOS, "eos": 1, "pad": 0}
    else:
        ids = {"bos": -1, "eos": -1, "pad": -1}
    return {f"{name}_token_id": None if i < 0 else i for name, i in ids.items()}


def _add_small_files(model_dir: Path, directory: Path, config: dict[str, Any]) -> None:
    for name in TOKENIZER_FILES:
        if (model_dir / name).exists():
            shutil.copyfile(model_dir / name, directory / name)
    if not (directory / GENERATION).exists():
        ids = {name: config[name] for name in config if name.endswith("_token_id")}
        _write_json(directory / GENERATION, ids)
    model, stated = directory / "tokenizer.model", directory / "tokenizer_config.json"
    if model.exists() and not stated.exists():
        _write_json(stated, _sentencepiece_config(model))
    elif stated.exists():
        about = json.loads(stated.read_text())
        _write_json(stated, {"tokenizer_class": "PreTrainedTokenizerFast"} | about)


def _sentencepiece_config(model: Path) -> dict[str, Any]:
    """A tokenizer_config.json with which Transformers gives the ids of a SentencePiece model."""
    from sentencepiece import SentencePieceProcessor

    processor = SentencePieceProcessor(model_file=str(model))
    ids = {name: getattr(processor, f"{name}_id")() for name in ("bos", "eos", "unk", "pad")}
    tokens = {f"{name}_token": processor.id_to_piece(i) for name, i in ids.items() if i >= 0}
    return {
        "tokenizer_class": "LlamaTokenizer", "legacy": False, "add_eos_token": False,
        "add_bos_token": "bos_token" in tokens, "clean_up_tokenization_spaces": False,
        "add_prefix_space": processor.encode("a", out_type=str)[0].startswith("\u2581"), **tokens,
    }  # fmt: skip


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def _bytes(text: str) -> int:
    match = re.fullmatch(r"(\d+(?:\.\d+)?) ?(|KB|MB|GB)", text.strip(), re.IGNORECASE)
    if not match or not float(match[1]):
        raise UserError(f"--max_shard_size={text}: write a size, as 5GB or 500MB")
    return int(float(match[1]) * _UNITS[match[2].upper()])


if __name__ == "__main__":
    cli.run(main)
