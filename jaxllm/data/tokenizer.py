"""Tokenizers: text to token ids and back, from published files or by bytes.

Special tokens that occur in a text are encoded as plain text, as SentencePiece does and
`tokenizers` does not by default. Both libraries encode a batch in their own threads.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from etils import epath

from jaxllm.data.config import DataConfig, VocabularyConfig
from jaxllm.errors import UserError
from jaxllm.io import read_json
from jaxllm.run.data_identity import saved_tokenizer

SPECIAL_TOKENS = ("bos_token", "eos_token", "unk_token", "pad_token")
# Usual document separators, for a tokenizer.json without further files.
USUAL_NAMES = {
    "bos_token": ("<s>", "<bos>", "<|begin_of_text|>", "<|startoftext|>", "[BOS]"),
    "eos_token": ("</s>", "<eos>", "<|end_of_text|>", "<|endoftext|>", "[EOS]"),
}
MAX_SIZE = 1 << 24
BYTE_OFFSET, BYTE_EOS, BYTE_UNK, BYTE_BOS = 3, 1, 2, 259  # padding is 0: ByT5's ids, and a BOS


class Tokens(NamedTuple):
    """A batch of tokenized documents."""

    ids: np.ndarray  # uint16 or uint32 [tokens], the concatenated documents
    lengths: np.ndarray  # int64 [documents], tokens per document
    text_bytes: int  # UTF-8 bytes of all texts


class Separators(NamedTuple):
    """The token that begins every document; if there is none, the token that ends it."""

    begin: int | None
    end: int | None

    def begins(self, tokens: np.ndarray) -> np.ndarray:
        """Whether a document begins at each of tokens 1 .., as bool [n - 1]."""
        if self.begin is not None:
            return tokens[1:] == self.begin
        return tokens[:-1] == self.end

    def count(self, tokens: np.ndarray) -> int:
        """Number of separators."""
        return int(np.count_nonzero(tokens == (self.end if self.begin is None else self.begin)))


def id_dtype(size: int) -> np.dtype:
    """The smallest of uint16 and uint32 that holds the ids of a vocabulary of `size` tokens."""
    return np.dtype("<u2" if size <= 1 << 16 else "<u4")


class Tokenizer:
    """Text to token ids and back.

    `encode` gives the ids of each text, `decode` the text of ids, both without special tokens;
    `token_id` the id of a token and `token` its inverse, None if there is none. `bos`, `eos`, `unk`
    and `pad` are ids or None; `bos` is None, too, if documents begin without one.
    """

    def __init__(self, kind: str, model: bytes = b"", config: str = "") -> None:
        """`kind`: `sentencepiece` or `huggingface`, of which `model` is the file, or `bytes`.

        `config` is a tokenizer_config.json with every special token, if the model lacks some.
        """
        self.kind, self.model, self.config = kind, model, config
        codec = _CODECS[kind](model)
        self.encode: Callable[[Sequence[str]], Sequence[Any]] = codec.encode
        self.decode = codec.decode
        self.token_id, self.token = codec.token_id, codec.token
        self.size = codec.size  # all ids are below it
        special: Mapping[str, int | None] = codec.special
        self.dtype = id_dtype(self.size)
        if config:
            stated = json.loads(config)
            special = {name: self.token_id(stated.get(name) or "") for name in SPECIAL_TOKENS}
            if stated.get("add_bos_token") is False:  # documents begin without one (Yi, Baichuan)
                special["bos_token"] = None
        self.bos, self.eos, self.unk, self.pad = map(special.get, SPECIAL_TOKENS)

    def __reduce__(self) -> tuple[Any, ...]:
        return Tokenizer, (self.kind, self.model, self.config)

    @property
    def name(self) -> str:
        """File name of `model`."""
        return "tokenizer.json" if self.kind == "huggingface" else "tokenizer.model"

    @property
    def files(self) -> dict[str, bytes]:
        """The files to save, by name; none for bytes."""
        config = {"tokenizer_config.json": self.config.encode()} if self.config else {}
        return config | ({self.name: self.model} if self.model else {})

    @property
    def identity(self) -> str:
        """A hash of everything that determines the ids of a document."""
        if self.kind == "bytes":
            return "bytes"
        return hashlib.sha256(self.model + self.config.encode()).hexdigest()

    @property
    def separators(self) -> Separators:
        """The tokens around a document.

        A tokenizer without a BOS, or with one token for both (GPT-2, GPT-NeoX, OPT), ends documents
        with EOS only, as those models were trained: it then also precedes the next document.
        """
        return Separators(None if self.bos == self.eos else self.bos, self.eos)

    def encode_documents(self, texts: Sequence[str]) -> Tokens:
        """Encode each text as its tokens between `separators`."""
        begin, end = (np.array([] if i is None else [i], self.dtype) for i in self.separators)
        documents = [
            np.concatenate([begin, np.asarray(ids, self.dtype), end]) for ids in self.encode(texts)
        ]
        return Tokens(
            ids=np.concatenate(documents) if documents else np.zeros(0, self.dtype),
            lengths=np.array([len(ids) for ids in documents], np.int64),
            text_bytes=sum(len(text.encode()) for text in texts),
        )


def read(path: epath.PathLike, special_tokens: Mapping[Any, str] | None = None) -> Tokenizer:
    """Read the tokenizer in a Hugging Face directory, or one of its files by path.

    A directory's SentencePiece model is the original tokenizer, and goes before a tokenizer.json,
    which is a conversion of it. Without either, vocab.json and merges.txt are GPT-2's byte-level
    BPE (OPT). `special_tokens` are those of VocabularyConfig. UserError if there is no tokenizer,
    it is damaged, or it lacks a token.
    """
    path, stated = epath.Path(path), special_tokens or {}
    if not path.is_dir():
        if not path.exists():
            raise UserError(f"VocabularyConfig.path: no file {path}")
        kind = "huggingface" if path.suffix == ".json" else "sentencepiece"
        return _load(kind, path.read_bytes(), path, stated)
    for name, kind in (("tokenizer.model", "sentencepiece"), ("tokenizer.json", "huggingface")):
        if (path / name).exists():
            return _load(kind, (path / name).read_bytes(), path / name, stated)
    if (path / "vocab.json").exists() and (path / "merges.txt").exists():
        return _load("huggingface", _byte_level_bpe(path), path / "vocab.json", stated)
    raise UserError(f"{path} has no tokenizer: neither tokenizer.model nor tokenizer.json")


def with_saved_tokenizer(config: DataConfig, model_dir: str | None) -> DataConfig:
    """`config` with the tokenizer that a run has saved, if any; UserError if that is damaged."""
    path = saved_tokenizer(model_dir) if model_dir else None
    if path is None:
        return config
    return dataclasses.replace(config, vocabulary=VocabularyConfig(path=str(path)))


def _load(kind: str, model: bytes, path: epath.Path, stated: Mapping[str, str]) -> Tokenizer:
    """A tokenizer with its special tokens.

    They come from `stated`, then the files beside `path`: tokenizer_config.json,
    special_tokens_map.json, the SentencePiece model itself, generation_config.json, config.json.
    The last two belong to the network, not the tokenizer, and are wrong in early conversions of
    LLaMA. Failing all, a tokenizer.json may have a token of a usual name.
    """
    try:
        plain = Tokenizer(kind, model)
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # no exception type for it; Rust's panics are no Exception
        what = "a SentencePiece model" if kind == "sentencepiece" else "a tokenizer.json"
        raise UserError(f"{path}: not {what} ({error})") from error
    for name, token in stated.items():
        if plain.token_id(token) is None:
            where = f"VocabularyConfig.special_tokens: {name} = {token!r}"
            raise UserError(f"{where}: {path} has no such token")
    own = [_json(path.parent / f) for f in ("tokenizer_config.json", "special_tokens_map.json")]
    numbered = [_json(path.parent / f) for f in ("generation_config.json", "config.json")]
    if kind == "sentencepiece" and not any([stated, *own, *numbered]):
        return plain
    config = dict(own[0])
    for name in SPECIAL_TOKENS:
        config[name] = _special_token(name, [stated, *own], numbered, plain)
    if "bos_token" in stated:
        config["add_bos_token"] = True
    return Tokenizer(kind, model, json.dumps(config, ensure_ascii=False, indent=2))


def _special_token(
    name: str, stated: Sequence[Mapping], numbered: Sequence[Mapping], tokenizer: Tokenizer
) -> str | None:
    for source in stated:
        value = source.get(name)
        token = value.get("content") if isinstance(value, dict) else value
        if isinstance(token, str) and token and tokenizer.token_id(token) is not None:
            return token
        if name in source and value is None:  # explicitly none
            return None
    own = getattr(tokenizer, name.removesuffix("_token"))
    if own is not None:
        return tokenizer.token(own)
    for source in numbered:
        number = source.get(f"{name}_id")
        number = number[0] if isinstance(number, list) and number else number
        if type(number) is int and (token := tokenizer.token(number)) is not None:
            return token
    usual = USUAL_NAMES.get(name, ()) if tokenizer.kind == "huggingface" else ()
    return next((token for token in usual if tokenizer.token_id(token) is not None), None)


def _json(path: epath.Path) -> dict[str, Any]:
    return read_json(path) if path.exists() else {}


class _Bytes:
    """UTF-8 bytes."""

    size = BYTE_BOS + 1
    special: Mapping[str, int] = {
        "bos_token": BYTE_BOS, "eos_token": BYTE_EOS, "unk_token": BYTE_UNK, "pad_token": 0,
    }  # fmt: skip

    def __init__(self, model: bytes) -> None:
        del model

    def encode(self, texts: Sequence[str]) -> Sequence[np.ndarray]:
        return [np.frombuffer(t.encode(), np.uint8) + np.uint16(BYTE_OFFSET) for t in texts]

    def decode(self, ids: Sequence[int]) -> str:
        text = bytes(i - BYTE_OFFSET for i in ids if BYTE_OFFSET <= i < BYTE_BOS)
        return text.decode(errors="ignore")

    def token_id(self, token: str) -> int | None:
        return None

    def token(self, id: int) -> str | None:
        return None


class _SentencePiece:
    """A tokenizer.model."""

    def __init__(self, model: bytes) -> None:
        from sentencepiece import SentencePieceProcessor

        self._processor = SentencePieceProcessor(model_proto=model)
        self.size = self._processor.get_piece_size()
        ids = {name: getattr(self._processor, f"{name[:3]}_id")() for name in SPECIAL_TOKENS}
        self.special = {name: id for name, id in ids.items() if id >= 0}

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        return self._processor.encode(list(texts))

    def decode(self, ids: Sequence[int]) -> str:
        unknown = self._processor.unk_id()
        return self._processor.decode([int(i) if i < self.size else unknown for i in ids])

    def token_id(self, token: str) -> int | None:
        id = self._processor.piece_to_id(token)
        return id if self.token(id) == token else None

    def token(self, id: int) -> str | None:
        return self._processor.id_to_piece(id) if 0 <= id < self.size else None


class _HuggingFace:
    """A tokenizer.json."""

    special: Mapping[str, int] = {}

    def __init__(self, model: bytes) -> None:
        import tokenizers

        self._tokenizer = tokenizers.Tokenizer.from_buffer(model)
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self._tokenizer.encode_special_tokens = True
        self.size = max(self._tokenizer.get_vocab(with_added_tokens=True).values()) + 1
        if self.size > MAX_SIZE:  # tables of it are allocated
            raise ValueError(f"an id of {self.size - 1:,}, where {MAX_SIZE:,} tokens are many")

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        encoded = self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        return [one.ids for one in encoded]

    def decode(self, ids: Sequence[int]) -> str:
        return self._tokenizer.decode([int(i) for i in ids], skip_special_tokens=True)

    def token_id(self, token: str) -> int | None:
        return self._tokenizer.token_to_id(token)

    def token(self, id: int) -> str | None:
        return self._tokenizer.id_to_token(id)


_CODECS: Mapping[str, type[_Bytes | _SentencePiece | _HuggingFace]] = {
    "bytes": _Bytes,
    "sentencepiece": _SentencePiece,
    "huggingface": _HuggingFace,
}


def _byte_level_bpe(directory: epath.Path) -> bytes:
    """GPT-2's tokenizer (Radford et al. 2019, section 2.2) as a tokenizer.json."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    vocabulary = _json(directory / "vocab.json")
    merges = (directory / "merges.txt").read_text().splitlines()
    pairs = [tuple(line.split()) for line in merges if line and not line.startswith("#version")]
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=pairs))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    known = [t for t in ("<|endoftext|>", "<pad>", "<s>", "</s>", "<unk>") if t in vocabulary]
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in known])
    return tokenizer.to_str().encode()
