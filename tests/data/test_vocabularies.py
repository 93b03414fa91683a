"""Vocabularies keep the text, know their BOS and EOS, and are trained the same way twice."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import seqio
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxllm.data import corpora, vocabularies
from jaxllm.data.config import DataConfig, VocabularyConfig
from jaxllm.data.tokenizer import Tokenizer
from jaxllm.errors import UserError

HARD = "def f(x):\n    if x:\n\t\treturn  12345 #  two  spaces \r\n\n\n€ 漢字 🙂 \x00\x7f end   "


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> DataConfig:
    root = tmp_path_factory.mktemp("corpus")
    (root / "code").mkdir()
    source = Path(vocabularies.__file__).parent
    text = "\n".join(path.read_text() for path in sorted(source.glob("*.py")))
    (root / "code" / "train.txt").write_text(text)
    return DataConfig(
        mixture_or_task_name="corpora",
        corpus_dir=str(root),
        cache_dir=str(root / "cache"),
        vocabulary=VocabularyConfig(size=1024),
    )


@pytest.fixture(scope="module")
def vocabulary(trained: DataConfig):
    return vocabularies.build_vocabulary(trained)


# U+2581 is how SentencePiece writes a space; surrogates are not text.
anything = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\u2581"))
codelike = st.text(st.sampled_from(" \n\tab(1=_:#\r"), max_size=60)


@settings(deadline=None, max_examples=300)
@given(anything | codelike)
def test_trained_vocabulary_is_lossless(vocabulary, text: str) -> None:
    ids = vocabulary.encode(text)
    assert vocabulary.decode(ids) == text
    assert all(3 < i < vocabulary.vocab_size for i in ids)  # none special, none unknown


def test_trained_vocabulary_on_hard_text(vocabulary) -> None:
    assert vocabulary.decode(vocabulary.encode(HARD)) == HARD
    assert (vocabulary.pad_id, vocabulary.eos_id, vocabulary.unk_id) == (0, 1, 2)
    assert vocabulary.bos_id == 3
    assert vocabulary.vocab_size == 1024
    pieces = [vocabulary.tokenizer.token(i) for i in vocabulary.encode("x = 12345")]
    assert pieces[-5:] == list("12345")  # digits one by one
    indent = [vocabulary.tokenizer.token(i) for i in vocabulary.encode("\n    return")]
    assert indent[0] == "\n" and len(indent) <= 4  # a run of spaces is not a token per space
    # Text that looks like a special token is text.
    assert vocabulary.eos_id not in vocabulary.encode("</s><s><pad>")


def test_training_is_deterministic_and_cached(trained: DataConfig, vocabulary) -> None:
    domains = corpora.resolve(trained)
    path = vocabularies.trained_model(trained, domains)
    before = path.stat().mtime
    assert vocabularies.train_sentencepiece(1024, ["code"]) == path.read_bytes()
    assert vocabularies.trained_model(trained, domains) == path and path.stat().mtime == before
    other = dataclasses.replace(trained, vocabulary=VocabularyConfig(size=600))
    second = vocabularies.trained_model(other, domains)
    assert second != path
    good = second.read_bytes()
    second.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    assert vocabularies.trained_model(other, domains).read_bytes() == good, "damaged"


@given(anything)
def test_byte_vocabulary_is_lossless(text: str) -> None:
    vocabulary = vocabularies.TokenizerVocabulary(Tokenizer("bytes"))
    ids = vocabulary.encode(text)
    assert vocabulary.decode(ids) == text
    assert len(ids) == len(text.encode())
    assert vocabulary.decode([vocabulary.bos_id, *ids, vocabulary.eos_id]) == text
    assert vocabulary.bos_id < vocabulary.vocab_size


@settings(deadline=None)
@given(st.lists(anything, max_size=5))
def test_documents_are_encoded_as_seqio_does(trained, vocabulary, texts: list[str]) -> None:
    path = vocabularies.trained_model(trained, corpora.resolve(trained))
    tokenizer, byte_tokenizer = vocabulary.tokenizer, Tokenizer("bytes")
    for encoder, other in (
        (tokenizer, vocabulary),
        (tokenizer, seqio.SentencePieceVocabulary(str(path))),
        (byte_tokenizer, vocabularies.TokenizerVocabulary(byte_tokenizer)),
    ):
        tokens = encoder.encode_documents(texts)
        documents = np.split(tokens.ids.astype(int), np.cumsum(tokens.lengths)[:-1])
        for text, ids in zip(texts, documents, strict=False):
            assert ids.tolist() == [other.bos_id, *other.encode(text), other.eos_id]
        assert len(tokens.lengths) == len(texts)
        assert tokens.text_bytes == sum(len(text.encode()) for text in texts)
        assert encoder.size == other.vocab_size


def test_the_sample_is_spread_over_the_corpus(config: DataConfig) -> None:
    corpora.register(config)
    texts = [d["text"] for d in corpora.documents("prose", "train")]
    sample = vocabularies.sample_text("prose", budget=10_000)
    assert sample == vocabularies.sample_text("prose", budget=10_000)
    places = [texts.index(piece) for piece in sample]
    assert len(sample) == 5 and max(places) > len(texts) // 3
    assert sorted(vocabularies.sample_text("prose", 10**9)) == sorted(texts)


def test_a_missing_or_damaged_model_is_named(config: DataConfig, tmp_path: Path) -> None:
    model = tmp_path / "tokenizer.model"
    given_model = dataclasses.replace(config, vocabulary=VocabularyConfig(path=str(model)))
    with pytest.raises(UserError, match=r"no file .*tokenizer\.model"):
        vocabularies.build_vocabulary(given_model)
    model.write_bytes(b"not a model")
    with pytest.raises(UserError, match=r"tokenizer\.model: not a SentencePiece model"):
        vocabularies.build_vocabulary(given_model)
