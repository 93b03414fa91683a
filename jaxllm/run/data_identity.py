"""What a run keeps of its data, so that it resumes and is scored as it began, wherever it is.

MODEL_DIR/tokenizer.model, or tokenizer.json, is its vocabulary, and tokenizer_config.json names its
special tokens where others have trained it; MODEL_DIR/data.json identifies its rows. Corpora can
change under a run (the embedded corpus does with the Python version): going on with other rows
would look like a resumed run and be none.
"""

from __future__ import annotations

import dataclasses
import json

from etils import epath

from jaxllm.data.config import DataConfig
from jaxllm.data.tokenizer_files import TokenizerFiles, kind_of
from jaxllm.errors import UserError


def check(model_dir: str, fingerprint: str) -> None:
    """Compares the rows of a source with those that the run began with.

    Raises:
      UserError: they differ.
    """
    path = epath.Path(model_dir) / "data.json"
    if path.exists() and json.loads(path.read_text())["fingerprint"] != fingerprint:
        raise UserError(
            f"{model_dir} began with other data: its corpora, Python version, vocabulary or data "
            f"settings have changed; take a new MODEL_DIR, or delete {path} to go on with these"
        )


def keep(model_dir: str, fingerprint: str, config: DataConfig) -> None:
    """Writes these files, where they are not there yet."""
    from jaxllm.data.vocabularies import tokenizer_files

    directory = epath.Path(model_dir)
    directory.mkdir(parents=True, exist_ok=True)
    identity = directory / "data.json"
    if kept_tokenizer(model_dir) is None:
        keep_tokenizer(model_dir, tokenizer_files(config))
    if not identity.exists():
        identity.write_text(json.dumps({"fingerprint": fingerprint}) + "\n")


def keep_tokenizer(directory: epath.PathLike, files: TokenizerFiles) -> None:
    """Writes a tokenizer's files; none for bytes."""
    if files.config:  # first: the other file says that there is a tokenizer
        (epath.Path(directory) / "tokenizer_config.json").write_text(files.config)
    if files.model:
        (epath.Path(directory) / files.name).write_bytes(files.model)


def kept_tokenizer(model_dir: str) -> epath.Path | None:
    """The file that `keep` has written a run's tokenizer to."""
    paths = (epath.Path(model_dir) / name for name in ("tokenizer.model", "tokenizer.json"))
    return next((path for path in paths if path.exists()), None)


def with_kept_vocabulary(model_dir: str, config: DataConfig) -> DataConfig:
    """`config` with the run's own copy of its vocabulary, where there is one."""
    path = kept_tokenizer(model_dir)
    if path is None:
        return config
    vocabulary = dataclasses.replace(config.vocabulary, kind=kind_of(path), path=str(path))
    return dataclasses.replace(config, vocabulary=vocabulary)
