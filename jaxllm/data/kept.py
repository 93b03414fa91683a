"""What a run keeps of its data, so that it resumes and is scored as it began, wherever it is.

MODEL_DIR/tokenizer.model is its vocabulary; MODEL_DIR/data.json identifies its rows. Corpora can
change under a run (the embedded corpus does with the Python version): going on with other rows
would look like a resumed run and be none.
"""

from __future__ import annotations

import dataclasses
import json

from etils import epath

from jaxllm.data.config import DataConfig
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
    """Writes both files, where they are not there yet."""
    from jaxllm.data.vocabularies import model_bytes

    directory = epath.Path(model_dir)
    directory.mkdir(parents=True, exist_ok=True)
    tokenizer, identity = directory / "tokenizer.model", directory / "data.json"
    if not tokenizer.exists() and (model := model_bytes(config)):
        tokenizer.write_bytes(model)
    if not identity.exists():
        identity.write_text(json.dumps({"fingerprint": fingerprint}) + "\n")


def with_kept_vocabulary(model_dir: str, config: DataConfig) -> DataConfig:
    """`config` with the run's own copy of its vocabulary, where there is one."""
    path = epath.Path(model_dir) / "tokenizer.model"
    if not path.exists():
        return config
    vocabulary = dataclasses.replace(config.vocabulary, path=str(path))
    return dataclasses.replace(config, vocabulary=vocabulary)
