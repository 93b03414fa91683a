"""The vocabulary of a run: one that is given or trained here, or bytes.

A trained model is lossless: no normalisation, no dummy prefix, every run of spaces kept, newline
and tab as tokens, digits one by one (as LLaMA), and bytes for characters it does not know. Ids are
SeqIO's (0 padding, 1 EOS, 2 unknown) and 3 for BOS. One character cannot be kept: SentencePiece
writes spaces as U+2581, so that character itself comes back as a space.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import seqio
from etils import epath

from jaxllm.data import corpora
from jaxllm.data.config import DataConfig, VocabularyConfig
from jaxllm.data.permutation import derive_key
from jaxllm.data.tokenize import BYTE_BOS, BYTE_VOCAB_SIZE
from jaxllm.data.tokenizer_files import TokenizerFiles, read
from jaxllm.errors import UserError
from jaxllm.io import made_once

PIECE_CHARS = 2_000
SCAN_FACTOR = 8
TRAINER_VERSION = 1


class ByteVocabulary(seqio.ByteVocabulary):
    """SeqIO's byte vocabulary (ByT5's ids) with a BOS, id 259."""

    @property
    def bos_id(self) -> int:
        """Id of the beginning of a document."""
        return BYTE_BOS

    @property
    def _base_vocab_size(self) -> int:
        return BYTE_VOCAB_SIZE


class TokenizerVocabulary(seqio.Vocabulary):
    """A tokenizer out of its files, with the special ids that these name.

    `bos_id` is what a document begins with: None where the files say that none is added. Special
    tokens in a text are spelt out, and leave nothing when they are decoded.
    """

    def __init__(self, files: TokenizerFiles) -> None:
        super().__init__()
        self.files = files

    @property
    def bos_id(self) -> int | None:
        """Id of the beginning of a document."""
        return _id_or_none(self.files.codec.bos)

    @property
    def eos_id(self) -> int | None:
        """Id of its end."""
        return _id_or_none(self.files.codec.eos)

    @property
    def unk_id(self) -> int | None:
        """Id of what the tokenizer cannot spell."""
        return _id_or_none(self.files.codec.unk)

    @property
    def pad_id(self) -> int:
        """The tokenizer's own padding, or SeqIO's 0."""
        return max(self.files.codec.pad, seqio.PAD_ID)

    @property
    def _base_vocab_size(self) -> int:
        return self.files.codec.size

    def _encode(self, s: str) -> Sequence[int]:
        return self.files.codec.encode([s])[0]

    def decode(self, ids: Iterable[int]) -> str:
        """The text of `ids` up to the first EOS; a BOS before it may be the same token."""
        kept = list(ids)
        return super().decode(kept[1:] if kept and kept[0] == self.bos_id else kept)

    def _decode(self, ids: Sequence[int]) -> str:
        return self.files.codec.decode([i for i in ids if i < self.vocab_size])

    def _encode_tf(self, s: Any) -> Any:
        import tensorflow as tf

        def encode(text: Any) -> np.ndarray:
            return np.asarray(self._encode(text.numpy().decode()), np.int32)

        ids = tf.py_function(encode, [s], tf.int32)
        ids.set_shape([None])
        return ids

    def _decode_tf(self, ids: Any) -> Any:
        import tensorflow as tf

        return tf.py_function(lambda ids: self._decode(ids.numpy().tolist()), [ids], tf.string)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, TokenizerVocabulary) and self.files == other.files


def _id_or_none(number: int) -> int | None:
    return None if number < 0 else number


def from_directory(path: epath.PathLike) -> seqio.Vocabulary:
    """The vocabulary of a published model, from the tokenizer files in its directory.

    Raises:
      UserError: see `tokenizer_files.read`.
    """
    return TokenizerVocabulary(read(path))


def build_vocabulary(config: DataConfig) -> seqio.Vocabulary:
    """The vocabulary of a run; trains it on the run's corpora if it has to, once.

    Raises:
      UserError: the model file is missing or damaged, or a corpus cannot be read.
    """
    files = tokenizer_files(config)
    return ByteVocabulary() if files.kind == "bytes" else TokenizerVocabulary(files)


def tokenizer_files(config: DataConfig) -> TokenizerFiles:
    """The tokenizer of a run, trained if it has to be."""
    path = model_file(config)
    return TokenizerFiles("bytes") if path is None else read(path)


def model_file(config: DataConfig) -> epath.Path | None:
    """The tokenizer of a run, a file or a directory, trained if it is not there; None for bytes."""
    vocabulary = config.vocabulary
    if vocabulary.kind == "bytes":
        return None
    if vocabulary.path is not None:
        return epath.Path(vocabulary.path)
    domains = [domain.name for domain in corpora.resolve(config)]
    sources = [corpora.fingerprint(name, "train") for name in domains]
    key = hashlib.sha256(repr((TRAINER_VERSION, vocabulary, sources)).encode()).hexdigest()[:16]
    directory = Path(config.cache, "vocabularies", f"{vocabulary.size}-{key}")
    if not directory.exists():
        with made_once(directory) as partial:
            if partial is not None:
                model = train_sentencepiece(vocabulary, domains)
                (partial / "tokenizer.model").write_bytes(model)
    return epath.Path(directory / "tokenizer.model")


def train_sentencepiece(config: VocabularyConfig, domains: list[str]) -> bytes:
    """Trains a BPE model on an even sample of registered corpora. Same text, same model."""
    import sentencepiece

    budget = int(config.sample_mb * 1e6 / len(domains))
    sample = [piece for name in domains for piece in sample_text(name, budget)]
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(sample),
            model_writer=model,
            model_type="bpe",
            vocab_size=config.size,
            hard_vocab_limit=False,
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            add_dummy_prefix=False,
            allow_whitespace_only_pieces=True,
            split_digits=True,
            byte_fallback=True,
            user_defined_symbols=["\n", "\t"],
            pad_id=seqio.PAD_ID,
            eos_id=1,
            unk_id=2,
            bos_id=3,
            max_sentence_length=8 * PIECE_CHARS,
            minloglevel=2,
        )
    except RuntimeError as error:
        raise UserError(f"cannot train a vocabulary of {config.size}: {error}") from error
    return model.getvalue()


def sample_text(domain: str, budget: int) -> list[str]:
    """About `budget` characters of a corpus, in pieces drawn evenly from its first 8 x `budget`.

    Reservoir sampling (Vitter, "Random Sampling with a Reservoir", 1985, algorithm R), seeded.
    """
    room = max(1, budget // PIECE_CHARS)
    random = np.random.Generator(np.random.PCG64(derive_key("vocabulary", domain)))
    kept: list[str] = []
    chars = 0
    for seen, piece in enumerate(_pieces(domain), 1):
        chars += len(piece)
        if len(kept) < room:
            kept.append(piece)
        else:
            slot = int(random.integers(seen))
            if slot < room:
                kept[slot] = piece
        if chars > SCAN_FACTOR * budget:
            break
    if not kept:
        raise UserError(f"corpus {domain} has no text to train a vocabulary on")
    return kept


def _pieces(domain: str) -> Iterator[str]:
    for document in corpora.documents(domain, "train", on_bad=lambda message: None):
        text = document["text"]
        yield from (text[i : i + PIECE_CHARS] for i in range(0, len(text), PIECE_CHARS))
