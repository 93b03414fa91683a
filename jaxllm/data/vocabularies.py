"""The vocabulary of a run: a SentencePiece model that is given or trained, or bytes.

A trained model is lossless: no normalisation, no dummy prefix, every run of spaces kept, newline
and tab as tokens, digits one by one (as LLaMA), and bytes for characters it does not know. Ids are
SeqIO's (0 padding, 1 EOS, 2 unknown) and 3 for BOS. One character cannot be kept: SentencePiece
writes spaces as U+2581, so that character itself comes back as a space.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import seqio
from etils import epath

from jaxllm.data import corpora
from jaxllm.data.cache import publishing
from jaxllm.data.config import DataConfig, VocabularyConfig
from jaxllm.data.permutation import derive_key
from jaxllm.data.tokenise import BYTE_BOS, BYTE_VOCAB_SIZE
from jaxllm.errors import UserError

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


def build_vocabulary(config: DataConfig) -> seqio.Vocabulary:
    """The vocabulary of a run; trains it on the run's corpora if it has to, once.

    Raises:
      UserError: the model file is missing or damaged, or a corpus cannot be read.
    """
    model = model_file(config)
    if model is None:
        return ByteVocabulary()
    vocabulary = seqio.SentencePieceVocabulary(str(model))
    try:
        vocabulary.load_model()
    except Exception as error:  # SentencePiece and its C++ status have no common type
        raise UserError(f"{model}: not a SentencePiece model ({error})") from error
    return vocabulary


def model_file(config: DataConfig) -> epath.Path | None:
    """The SentencePiece model file of a run, trained if it is not there; None for bytes."""
    vocabulary = config.vocabulary
    if vocabulary.kind == "bytes":
        return None
    if vocabulary.path is not None:
        path = epath.Path(vocabulary.path)
        if not path.exists():
            raise UserError(f"VocabularyConfig.path: no file {path}")
        return path
    domains = [domain.name for domain in corpora.resolve(config)]
    sources = [corpora.fingerprint(name, "train") for name in domains]
    key = hashlib.sha256(repr((TRAINER_VERSION, vocabulary, sources)).encode()).hexdigest()[:16]
    directory = Path(config.cache, "vocabularies", f"{vocabulary.size}-{key}")
    if not directory.exists():
        with publishing(directory) as partial:
            if partial is not None:
                model = train_sentencepiece(vocabulary, domains)
                (partial / "tokenizer.model").write_bytes(model)
    return epath.Path(directory / "tokenizer.model")


def model_bytes(config: DataConfig) -> bytes | None:
    """The SentencePiece model of a run; None for bytes."""
    path = model_file(config)
    return None if path is None else path.read_bytes()


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


def byte_length(text: str) -> int:
    """UTF-8 bytes of a text: the denominator of bits per byte."""
    return len(text.encode())
