"""The data identity of a run, data.json: it resumes and is scored with the data that it began with.

Corpora can change under a run (the embedded ones do with the Python version), and training on other
sequences would pass for a resumed run. Its vocabulary, saved beside, never changes.
"""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Mapping

from etils import epath

from jaxllm.errors import UserError
from jaxllm.io import atomic_write, sealed, unsealed
from jaxllm.kvstore import read_file
from jaxllm.run.layout import TOKENIZERS, Layout


@dataclasses.dataclass(frozen=True)
class DataIdentity:
    """What a run's sequences are, and where it and their order begin."""

    fingerprint: str  # of the training sequences
    vocabulary: str  # identity of the tokenizer
    position: int = 0  # global index of the first sequence in their order
    domain_tokens: Mapping[str, int] = dataclasses.field(default_factory=dict)  # read before it
    parent: str | None = None  # RUN@STEP of a branch
    tokenizer_crc32: Mapping[str, int] = dataclasses.field(default_factory=dict)  # by file


def load(model_dir: str) -> DataIdentity | None:
    """The saved identity; None before it is saved. UserError if it is damaged or out of reach."""
    path = Layout(model_dir).data
    saved = read_file(path)
    if saved is None:
        return None
    try:
        return DataIdentity(**unsealed(saved))
    except (ValueError, TypeError) as error:
        raise UserError(
            f"{path} is damaged, so that the run's data cannot be verified: restore it from a copy,"
            " or take a new MODEL_DIR"
        ) from error


def verify(model_dir: str, identity: DataIdentity) -> None:
    """Raise UserError if the run began with other sequences or elsewhere, or cannot tell."""
    saved = load(model_dir)
    if saved is None:
        return
    if (at := identity.parent) and saved.parent != at:
        began = f"at {saved.parent}" if saved.parent else "with initial parameters of its own"
        raise UserError(f"{model_dir} began {began}, not at {at}: take a new MODEL_DIR")
    if saved.fingerprint != identity.fingerprint:
        raise UserError(
            f"{model_dir} began with other data: its corpora, their weights, the layout, the"
            " sequence length, the seed or the Python version have changed since; restore them,"
            f" take a new MODEL_DIR, or go on from a checkpoint: --branch_from={model_dir}@STEP"
        )


def save(model_dir: str, identity: DataIdentity, tokenizer_files: Mapping[str, bytes]) -> None:
    """Write what the run has not saved yet, each file atomically, the one of `TOKENIZERS` last."""
    layout = Layout(model_dir)
    if saved_tokenizer(model_dir) is None:
        for name, content in tokenizer_files.items():
            atomic_write(layout.tokenizer_file(name), content)
    if not layout.data.exists():
        known = {name: zlib.crc32(content) for name, content in tokenizer_files.items()}
        saved = dataclasses.asdict(identity) | {"tokenizer_crc32": known}
        atomic_write(layout.data, sealed(saved) + "\n")


def saved_tokenizer(model_dir: str) -> epath.Path | None:
    """The file of the run's tokenizer; None before it is saved, and for bytes.

    UserError if it is damaged.
    """
    layout = Layout(model_dir)
    paths = (layout.tokenizer_file(name) for name in TOKENIZERS)
    path = next((path for path in paths if path.exists()), None)
    known = load(model_dir) if path else None
    for name, crc in known.tokenizer_crc32.items() if known else ():
        if zlib.crc32(read_file(layout.tokenizer_file(name)) or b"") != crc:
            raise UserError(f"{layout.tokenizer_file(name)} is damaged: restore it from a copy")
    return path
