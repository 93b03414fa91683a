"""Tokenizers as they are published: `tokenizer.model`, `tokenizer.json`, and what names their ids.

Nothing here imports SeqIO, so that tokenising processes start at once. Text is text: what looks
like a special token in it is spelt out, as SentencePiece does and `tokenizers` does not by itself.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

from etils import epath

from jaxllm.data.config import DataConfig
from jaxllm.errors import UserError

SPECIAL = ("bos_token", "eos_token", "unk_token", "pad_token")
# What conversions of tokenizers are known to get wrong: spaces, case and form of characters, bytes.
PROBES = (
    "The quick brown fox, 1234.56 times.", " leading space", "trailing space ", "two  spaces",
    "a" + 5 * " " + "b" + 17 * " " + "c", "line\nline\n\n\nend\n", "\n", "\ttab\t\ttabs", "\r\n",
    "def f(x):\n    if x:\n\t\treturn 0x1F  # why?\n", "0123456789 007 1e-5 3/4", "don't I'LL",
    "naïve café, Ärger", "e\u0301 \u00e9 ﬁ Å ½ ①", "ｆｕｌｌ　ｗｉｄｔｈ", "中文字符，没有空格。",
    "日本語 한국어 العربية", "🙂 👩\u200d👩\u200d👧 🏳️\u200d🌈", "\u200b\u00a0\ufeff.",
    "\x00\x07\x7f", "\U00012345 ꙮ", "https://a.b/c?d=e&f=g#h", "$x^2 + \\frac{1}{2}$",
    "!!!??? ... --- ___ ***", 21 * "a", "ALLCAPS camelCase snake_case", "<html><b>x</b>",
    "▁ is a piece",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class TokenizerFiles:
    """A tokenizer as a run keeps it and as worker processes load it.

    Attributes:
      kind: `sentencepiece` (tokenizer.model), `huggingface` (tokenizer.json) or `bytes`.
      model: the content of that file.
      config: tokenizer_config.json with every special token filled in; "" where a SentencePiece
        model speaks for itself.
    """

    kind: str
    model: bytes = b""
    config: str = ""

    @property
    def name(self) -> str:
        """The file that holds `model`."""
        return "tokenizer.json" if self.kind == "huggingface" else "tokenizer.model"

    @property
    def files(self) -> dict[str, bytes]:
        """The files to save, by name; none for bytes."""
        config = {"tokenizer_config.json": self.config.encode()} if self.config else {}
        return config | ({self.name: self.model} if self.model else {})

    @property
    def identity(self) -> str:
        """A hash of what decides the ids of a document."""
        if self.kind == "bytes":
            return "bytes"
        return hashlib.sha256(self.model + self.config.encode()).hexdigest()

    @cached_property
    def codec(self) -> Codec:
        """The tokenizer itself, loaded."""
        codec = _load(self.kind, self.model)
        return codec.with_special(json.loads(self.config)) if self.config else codec

    def __getstate__(self) -> dict[str, Any]:
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}


@dataclasses.dataclass(frozen=True)
class Codec:
    """Text to ids and back, without special tokens.

    Attributes:
      encode: texts to ids.
      decode: ids to text; special tokens leave nothing.
      piece_id: the id of a token, None if there is no such token.
      piece: the token of an id.
      size: ids are below this.
      bos, eos, unk, pad: ids, -1 if there is none. `bos` is what a document begins with.
    """

    encode: Callable[[Sequence[str]], list[list[int]]]
    decode: Callable[[Sequence[int]], str]
    piece_id: Callable[[str], int | None]
    piece: Callable[[int], str | None]
    size: int
    bos: int = -1
    eos: int = -1
    unk: int = -1
    pad: int = -1

    def with_special(self, config: dict[str, Any]) -> Codec:
        """The codec with the special tokens that a tokenizer_config.json names.

        `add_bos_token: false` says that documents begin without BOS (Yi, Baichuan).
        """
        ids: dict[str, Any] = {}
        for name in SPECIAL:
            found = self.piece_id(config.get(name) or "")
            ids[name.removesuffix("_token")] = -1 if found is None else found
        if config.get("add_bos_token") is False:
            ids["bos"] = -1
        return dataclasses.replace(self, **ids)


def read(path: epath.PathLike) -> TokenizerFiles:
    """The tokenizer in a Hugging Face directory, or of one of its files by path.

    A directory's SentencePiece model is what its network was trained with; a tokenizer.json beside
    it has been converted from it, and must give the same ids. Without either, vocab.json and
    merges.txt are GPT-2's byte-level BPE (OPT).

    Raises:
      UserError: there is none, it is damaged, or the two files differ.
    """
    path = epath.Path(path)
    directory = path if path.is_dir() else path.parent
    model, converted = directory / "tokenizer.model", directory / "tokenizer.json"
    if not path.is_dir():
        if not path.exists():
            raise UserError(f"VocabularyConfig.path: no file {path}")
        return _with_config(kind_of(path), path.read_bytes(), path)
    if model.exists():
        files = _with_config("sentencepiece", model.read_bytes(), model)
        if converted.exists():
            _check_agreement(files.codec, _load_checked(converted), directory)
        return files
    if converted.exists():
        return _with_config("huggingface", converted.read_bytes(), converted)
    if (directory / "vocab.json").exists() and (directory / "merges.txt").exists():
        return _with_config("huggingface", _byte_level_bpe(directory), directory / "vocab.json")
    raise UserError(f"{path} has no tokenizer: neither tokenizer.model nor tokenizer.json")


def kind_of(path: epath.PathLike) -> str:
    """The kind of a tokenizer's file: a .json is `tokenizers`', others are SentencePiece's."""
    return "huggingface" if epath.Path(path).suffix == ".json" else "sentencepiece"


def with_saved_tokenizer(config: DataConfig, path: epath.Path | None) -> DataConfig:
    """`config` with the tokenizer that its run has saved at `path`, if it has saved one."""
    if path is None:
        return config
    vocabulary = dataclasses.replace(config.vocabulary, kind=kind_of(path), path=str(path))
    return dataclasses.replace(config, vocabulary=vocabulary)


def _with_config(kind: str, model: bytes, path: epath.Path) -> TokenizerFiles:
    """The files with every special token that those beside `path` name.

    In this order: tokenizer_config.json, special_tokens_map.json, the SentencePiece model itself,
    generation_config.json, config.json. The last ones belong to the network, not the tokenizer,
    and early conversions of LLaMA have them wrong.
    """
    codec = _load_checked(path, kind, model)
    stated = [_json(path.parent / f) for f in ("tokenizer_config.json", "special_tokens_map.json")]
    numbered = [_json(path.parent / f) for f in ("generation_config.json", "config.json")]
    if kind == "sentencepiece" and not any([*stated, *numbered]):
        return TokenizerFiles(kind, model)
    config = dict(stated[0])
    for name in SPECIAL:
        config[name] = _special_token(name, stated, numbered, codec)
    return TokenizerFiles(kind, model, json.dumps(config, ensure_ascii=False, indent=2))


def _special_token(
    name: str, stated: Sequence[dict], numbered: Sequence[dict], codec: Codec
) -> str | None:
    for source in stated:
        value = source.get(name)
        token = value.get("content") if isinstance(value, dict) else value
        if token and codec.piece_id(token) is not None:
            return token
        if name in source and value is None:  # stated to be none
            return None
    own = getattr(codec, name.removesuffix("_token"))
    if own >= 0:
        return codec.piece(own)
    for source in numbered:
        number = source.get(f"{name}_id")
        number = number[0] if isinstance(number, list) else number
        if number is not None and (token := codec.piece(number)) is not None:
            return token
    return None


def _json(path: epath.Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text()) if path.exists() else {}
    except ValueError as error:
        raise UserError(f"{path}: not JSON ({error})") from error


def _load_checked(path: epath.Path, kind: str = "huggingface", model: bytes | None = None) -> Codec:
    what = "a SentencePiece model" if kind == "sentencepiece" else "a tokenizer.json"
    try:
        return _load(kind, path.read_bytes() if model is None else model)
    except Exception as error:  # neither library has a type for it
        raise UserError(f"{path}: not {what} ({error})") from error


def _load(kind: str, model: bytes) -> Codec:
    if kind == "sentencepiece":
        from sentencepiece import SentencePieceProcessor

        processor = SentencePieceProcessor(model_proto=model)
        size, unk = processor.get_piece_size(), processor.unk_id()

        def piece_id(token: str) -> int | None:
            found = processor.piece_to_id(token)
            return found if processor.id_to_piece(found) == token else None

        return Codec(
            encode=lambda texts: processor.encode(list(texts), num_threads=1),
            decode=lambda ids: processor.decode([int(i) if i < size else unk for i in ids]),
            piece_id=piece_id,
            piece=lambda i: processor.id_to_piece(i) if 0 <= i < size else None,
            size=size,
            bos=processor.bos_id(),
            eos=processor.eos_id(),
            unk=unk,
            pad=processor.pad_id(),
        )
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_buffer(model)
    tokenizer.no_padding()
    tokenizer.no_truncation()
    tokenizer.encode_special_tokens = True

    def encode(texts: Sequence[str]) -> list[list[int]]:
        return [e.ids for e in tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)]

    return Codec(
        encode=encode,
        decode=lambda ids: tokenizer.decode([int(i) for i in ids], skip_special_tokens=True),
        piece_id=tokenizer.token_to_id,
        piece=tokenizer.id_to_token,
        size=max(tokenizer.get_vocab(with_added_tokens=True).values()) + 1,
    )


def _check_agreement(trained: Codec, converted: Codec, directory: epath.Path) -> None:
    for text, ours, theirs in zip(
        PROBES, trained.encode(PROBES), converted.encode(PROBES), strict=True
    ):
        if ours != theirs:
            raise UserError(
                f"{directory}: tokenizer.json does not give the ids of tokenizer.model: for "
                f"{text!r} {theirs[:12]} instead of {ours[:12]}; the network was trained with "
                "tokenizer.model, so take tokenizer.json away"
            )


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
