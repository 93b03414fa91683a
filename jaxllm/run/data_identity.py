"""What a run saves of its data, so that it resumes and is scored as it began, wherever it is.

    MODEL_DIR/tokenizer.model or tokenizer.json      its vocabulary
    MODEL_DIR/tokenizer_config.json                  the special tokens, where others trained it
    MODEL_DIR/data.json                              a fingerprint of its training sequences

Corpora can change under a run (the embedded ones do with the Python version): going on with other
sequences would look like a resumed run and be none. A run's vocabulary never changes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

from etils import epath

from jaxllm.errors import UserError
from jaxllm.io import atomic_write
from jaxllm.run.layout import TOKENIZERS, Layout


def verify(model_dir: str, fingerprint: str) -> None:
    """Compares the sequences of a data source with those that the run began with.

    Raises:
      UserError: they differ, or the saved fingerprint cannot be read.
    """
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
    """Writes what the run has not saved yet; each file appears complete or not at all.

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
    """The file of the run's tokenizer; None before a run is saved, and for bytes."""
    paths = (Layout(model_dir).tokenizer_file(name) for name in TOKENIZERS)
    return next((path for path in paths if path.exists()), None)
