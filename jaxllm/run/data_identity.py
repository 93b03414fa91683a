"""The data identity of a run: it resumes and is scored with the data that it began with.

    MODEL_DIR/tokenizer.model or tokenizer.json      the vocabulary
    MODEL_DIR/tokenizer_config.json                  its special tokens, for published tokenizers
    MODEL_DIR/data.json                              a fingerprint of the training sequences

Corpora can change under a run (the embedded ones do with the Python version), and training on other
sequences would pass for a resumed run. A run's vocabulary never changes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

from etils import epath

from jaxllm.errors import UserError
from jaxllm.io import atomic_write
from jaxllm.run.layout import TOKENIZERS, Layout


def verify(model_dir: str, fingerprint: str) -> None:
    """Raise UserError if the run began with other sequences, or this cannot be told."""
    path = Layout(model_dir).data
    if not path.exists():
        return
    try:
        saved = json.loads(path.read_text())["fingerprint"]
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(
            f"{path} is damaged, so that the run's data cannot be verified: restore it from a copy,"
            " or take a new MODEL_DIR"
        ) from error
    if saved != fingerprint:
        raise UserError(
            f"{model_dir} began with other data: its corpora, their weights, the layout, the"
            " sequence length, the seed or the Python version have changed since; restore them, or"
            " take a new MODEL_DIR"
        )


def save(model_dir: str, fingerprint: str, tokenizer_files: Mapping[str, bytes]) -> None:
    """Write what the run has not saved yet, each file atomically.

    Args:
      tokenizer_files: name -> content, the one of `TOKENIZERS` last; empty for bytes.
    """
    layout = Layout(model_dir)
    if saved_tokenizer(model_dir) is None:
        for name, content in tokenizer_files.items():
            atomic_write(layout.tokenizer_file(name), content)
    if not layout.data.exists():
        atomic_write(layout.data, json.dumps({"fingerprint": fingerprint}) + "\n")


def saved_tokenizer(model_dir: str) -> epath.Path | None:
    """The file of the run's tokenizer; None before it is saved, and for bytes."""
    paths = (Layout(model_dir).tokenizer_file(name) for name in TOKENIZERS)
    return next((path for path in paths if path.exists()), None)
