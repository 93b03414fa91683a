"""The SeqIO vocabulary of a run: from files, trained on its corpora, or bytes.

A trained model is lossless: no normalization, no dummy prefix, runs of spaces preserved, newline
and tab as tokens, digits split (as LLaMA), and byte fallback for unknown characters. Ids are
SeqIO's (0 padding, 1 EOS, 2 unknown), and 3 for BOS. One exception: SentencePiece writes spaces as
U+2581, so that character decodes to a space.
"""

from __future__ import annotations

import hashlib
import io
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import seqio
from etils import epath

from jaxllm.data import corpora, tokenizer
from jaxllm.data.config import BYTES, DataConfig
from jaxllm.data.permutation import derive_key
from jaxllm.data.tokenizer import Tokenizer
from jaxllm.errors import UserError
from jaxllm.io import atomic_write
from jaxllm.kvstore import read_file

CHUNK_CHARS = 2_000
SCAN_FACTOR = 8
TRAINER_VERSION = 2


class TokenizerVocabulary(seqio.Vocabulary):
    """A `Tokenizer` as a SeqIO vocabulary, with the special ids that its files name.

    Special tokens in a text are encoded as plain text; special ids are omitted in decoding.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        super().__init__()
        self.tokenizer = tokenizer

    @property
    def bos_id(self) -> int | None:
        """Id of the BOS token; None if documents begin without one."""
        return self.tokenizer.bos

    @property
    def eos_id(self) -> int | None:
        """Id of the EOS token; None if there is none."""
        return self.tokenizer.eos

    @property
    def unk_id(self) -> int | None:
        """Id of the unknown token; None if there is none."""
        return self.tokenizer.unk

    @property
    def pad_id(self) -> int:
        """The tokenizer's padding id, or SeqIO's 0."""
        return self.tokenizer.pad or seqio.PAD_ID

    @property
    def _base_vocab_size(self) -> int:
        return self.tokenizer.size

    def _encode(self, s: str) -> Sequence[int]:
        return list(self.tokenizer.encode([s])[0])

    def decode(self, ids: Iterable[int]) -> str:
        """The text of `ids` up to the first EOS after a BOS, which may be the same token."""
        ids = list(ids)
        return super().decode(ids[1:] if ids and ids[0] == self.bos_id else ids)

    def _decode(self, ids: Sequence[int]) -> str:
        return self.tokenizer.decode([i for i in ids if i < self.vocab_size])

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
        if not isinstance(other, TokenizerVocabulary):
            return False
        return self.tokenizer.identity == other.tokenizer.identity


def from_directory(path: epath.PathLike) -> TokenizerVocabulary:
    """The vocabulary of a published model: `tokenizer.read` as SeqIO's vocabulary."""
    return TokenizerVocabulary(tokenizer.read(path))


def build_vocabulary(config: DataConfig, model_dir: str | None = None) -> TokenizerVocabulary:
    """The vocabulary of a run, which it may have saved: `load_tokenizer` as SeqIO's vocabulary."""
    return TokenizerVocabulary(load_tokenizer(tokenizer.with_saved_tokenizer(config, model_dir)))


def load_tokenizer(config: DataConfig, weights: Mapping[str, float] | None = None) -> Tokenizer:
    """The tokenizer of a run, trained once on its corpora if no path is set.

    `weights` are from `corpora.resolve`, which is called for None, if needed. UserError if the
    model file is missing or damaged, or a corpus cannot be read.
    """
    vocabulary = config.vocabulary
    if vocabulary.path == BYTES:
        return Tokenizer("bytes")
    path = vocabulary.path or trained_model(config, weights or corpora.resolve(config))
    return tokenizer.read(path, vocabulary.special_tokens)


def trained_model(config: DataConfig, domains: Iterable[str]) -> epath.Path:
    """The SentencePiece model of a run's corpora, trained unless the cache has it, intact."""
    size, domains = config.vocabulary.size, list(domains)
    sources = [corpora.fingerprint(domain, "train") for domain in domains]
    key = hashlib.sha256(repr((TRAINER_VERSION, size, sources)).encode()).hexdigest()[:16]
    path = epath.Path(config.cache) / "vocabularies" / f"{size}-{key}" / "tokenizer.model"
    checksum = path.with_suffix(".crc32")
    model = read_file(path) or b""
    if not model or read_file(checksum) != b"%d" % zlib.crc32(model):
        # Training is deterministic: whoever else writes them writes the same.
        model = train_sentencepiece(size, domains)
        atomic_write(path, model)
        atomic_write(checksum, str(zlib.crc32(model)))
    return path


def train_sentencepiece(size: int, domains: Sequence[str]) -> bytes:
    """Train a BPE model of `size` tokens on registered corpora, deterministically.

    The training text is 2 MB per 1,024 tokens, 8 MB at most, with an equal share of each domain.
    UserError if a corpus has no text, or SentencePiece cannot train on it.
    """
    import sentencepiece

    budget = int(min(8e6, 2e6 * size / 1024) / len(domains))
    sample = [chunk for domain in domains for chunk in sample_text(domain, budget)]
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(sample), model_writer=model, model_type="bpe", vocab_size=size,
            hard_vocab_limit=False, normalization_rule_name="identity", add_dummy_prefix=False,
            remove_extra_whitespaces=False, allow_whitespace_only_pieces=True, split_digits=True,
            byte_fallback=True, user_defined_symbols=["\n", "\t"], pad_id=seqio.PAD_ID, eos_id=1,
            unk_id=2, bos_id=3, max_sentence_length=8 * CHUNK_CHARS, minloglevel=2,
        )  # fmt: skip
    except RuntimeError as error:
        raise UserError(f"cannot train a vocabulary of {size}: {error}") from error
    return model.getvalue()


def sample_text(domain: str, budget: int) -> list[str]:
    """About `budget` characters of a corpus, in chunks drawn evenly from its first 8 x `budget`.

    Reservoir sampling (Vitter, "Random Sampling with a Reservoir", 1985, algorithm R), seeded.
    UserError if the corpus has no text.
    """
    room = max(1, budget // CHUNK_CHARS)
    random = np.random.Generator(np.random.PCG64(derive_key("vocabulary", domain)))
    sample: list[str] = []
    chars = 0
    for seen, chunk in enumerate(_chunks(domain), 1):
        chars += len(chunk)
        if len(sample) < room:
            sample.append(chunk)
        elif (slot := int(random.integers(seen))) < room:
            sample[slot] = chunk
        if chars > SCAN_FACTOR * budget:
            break
    if not sample:
        raise UserError(f"corpus {domain} has no text to train a vocabulary on")
    return sample


def _chunks(domain: str) -> Iterator[str]:
    for document in corpora.documents(domain, "train", on_error=lambda bad: None):
        text = document["text"]
        yield from (text[i : i + CHUNK_CHARS] for i in range(0, len(text), CHUNK_CHARS))
