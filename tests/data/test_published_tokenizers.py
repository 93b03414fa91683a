"""Published tokenizers give the ids of Transformers' own classes, and give the text back."""

import dataclasses
import json
import pickle
import shutil
from pathlib import Path
from typing import Any, ClassVar

import pytest
import seqio
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxllm.data import vocabularies
from jaxllm.data.config import DataConfig, VocabularyConfig
from jaxllm.data.prepare import prepare
from jaxllm.data.tokenizer import Tokenizer, read, with_saved_tokenizer
from jaxllm.data.vocabularies import from_directory, load_tokenizer
from jaxllm.errors import UserError
from jaxllm.run import data_identity
from jaxllm.run.data_identity import DataIdentity

transformers = pytest.importorskip("transformers")

# Texts that tokenizers often get wrong: spaces, case, Unicode forms, bytes.
SAMPLES = (
    "The quick brown fox, 1234.56 times.", " leading space", "trailing space ", "two  spaces",
    "a" + 5 * " " + "b" + 17 * " " + "c", "line\nline\n\n\nend\n", "\n", "\ttab\t\ttabs", "\r\n",
    "def f(x):\n    if x:\n\t\treturn 0x1F  # why?\n", "0123456789 007 1e-5 3/4", "don't I'LL",
    "naïve café, Ärger", "e\u0301 \u00e9 ﬁ Å ½ ①", "ｆｕｌｌ　ｗｉｄｔｈ", "中文字符，没有空格。",
    "日本語 한국어 العربية", "🙂 👩\u200d👩\u200d👧 🏳️\u200d🌈", "\u200b\u00a0\ufeff.",
    "\x00\x07\x7f", "\U00012345 ꙮ", "https://a.b/c?d=e&f=g#h", "$x^2 + \\frac{1}{2}$",
    "!!!??? ... --- ___ ***", 21 * "a", "ALLCAPS camelCase snake_case", "<html><b>x</b>",
    "▁ is a piece",
)  # fmt: skip
HARD = (
    "\n", "a\n\n\nb\n", "  two   three    spaces", " leading", "trailing ", "12345 6.78",
    "\ttab\t\t", "emoji 🙂 👩‍👧", "中文和 English", "</s><s><unk> <|endoftext|> is text",
    "\x00\x7f", "naïve ꙮ",
)  # fmt: skip
texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\u2581"), max_size=40)
codelike = st.text(st.sampled_from(" \n\tab(1=_:#\r中é🙂"), max_size=40)


def corpus() -> list[str]:
    source = Path(vocabularies.__file__).parent
    return [line for path in sorted(source.glob("*.py")) for line in path.read_text().splitlines()]


def llama(directory: Path, **changes: Any) -> Path:
    """A SentencePiece model with the settings of LLaMA's, and its tokenizer_config.json."""
    import sentencepiece

    directory.mkdir(parents=True)
    settings = {
        "vocab_size": 700, "model_type": "bpe", "byte_fallback": True, "split_digits": True,
        "normalization_rule_name": "identity", "remove_extra_whitespaces": False,
        "allow_whitespace_only_pieces": True, "character_coverage": 0.99995, "minloglevel": 2,
        "hard_vocab_limit": False, **changes,
    }  # fmt: skip
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(corpus()), model_prefix=str(directory / "tokenizer"), **settings
    )
    (directory / "tokenizer.vocab").unlink()
    config = {
        "tokenizer_class": "LlamaTokenizer", "add_bos_token": True, "add_eos_token": False,
        "bos_token": {"__type": "AddedToken", "content": "<s>", "special": True},
        "eos_token": "</s>", "unk_token": "<unk>", "pad_token": None,
    }  # fmt: skip
    (directory / "tokenizer_config.json").write_text(json.dumps(config))
    return directory


def slow(directory: Path) -> Any:
    """Transformers' SentencePiece tokenizer."""
    from transformers.tokenization_utils_sentencepiece import SentencePieceBackend

    class Slow(SentencePieceBackend):
        vocab_files_names: ClassVar = {"vocab_file": "tokenizer.model"}

    return Slow(
        vocab_file=str(directory / "tokenizer.model"),
        bos_token="<s>", eos_token="</s>", unk_token="<unk>",
    )  # fmt: skip


def byte_level(directory: Path, end: str = "<|endoftext|>", spaces: bool = False) -> Path:
    """Byte-level BPE as GPT-2 has it, or with tokens for runs of spaces as GPT-NeoX has it."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

    directory.mkdir(parents=True)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=700, special_tokens=[end], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(corpus(), trainer)
    if spaces:
        tokenizer.add_tokens([AddedToken(" " * n, normalized=True) for n in range(12, 1, -1)])
    tokenizer.save(str(directory / "tokenizer.json"))
    return directory


def write(directory: Path, **files: dict) -> Path:
    for name, content in files.items():
        (directory / f"{name}.json").write_text(json.dumps(content))
    return directory


@pytest.fixture(scope="module")
def llama_dir(tmp_path_factory) -> Path:
    return llama(tmp_path_factory.mktemp("llama") / "model")


@pytest.fixture(scope="module")
def neox_dir(tmp_path_factory) -> Path:
    end = "<|endoftext|>"
    directory = byte_level(tmp_path_factory.mktemp("neox") / "model", end, spaces=True)
    return write(
        directory,
        tokenizer_config={
            "tokenizer_class": "GPTNeoXTokenizerFast", "bos_token": end, "eos_token": end,
            "unk_token": end, "add_prefix_space": False,
        },
    )  # fmt: skip


@pytest.fixture(scope="module")
def gpt2_dir(tmp_path_factory) -> Path:
    """vocab.json and merges.txt only, and ids only in config.json, as in OPT's and GPT-2's."""
    from tokenizers import Tokenizer

    source = byte_level(tmp_path_factory.mktemp("source") / "model")
    directory = tmp_path_factory.mktemp("gpt2")
    tokenizer = Tokenizer.from_file(str(source / "tokenizer.json"))
    tokenizer.model.save(str(directory))
    end = tokenizer.token_to_id("<|endoftext|>")
    return write(directory, config={"bos_token_id": end, "eos_token_id": [end]})


@pytest.mark.parametrize("family", ["llama", "neox", "gpt2"])
def test_text_comes_back_and_special_tokens_do_not_show(family: str, request) -> None:
    vocabulary = from_directory(request.getfixturevalue(f"{family}_dir"))
    assert isinstance(vocabulary, seqio.Vocabulary)
    bos, eos = vocabulary.bos_id, vocabulary.eos_id
    assert bos is not None and eos is not None and (bos != eos) == (family == "llama")

    @settings(deadline=None, max_examples=150)
    @given(texts | codelike | st.sampled_from(HARD))
    def check(text: str) -> None:
        ids = vocabulary.encode(text)
        assert vocabulary.decode(ids) == text
        assert not {bos, eos} & set(ids)
        assert all(0 <= i < vocabulary.vocab_size for i in ids)
        assert vocabulary.decode([bos, *ids, eos, *ids]) == text  # to the first EOS, as SeqIO's

    check()


def test_llama_is_transformers_slow_tokenizer(llama_dir: Path) -> None:
    vocabulary, theirs = from_directory(llama_dir), slow(llama_dir)
    assert (vocabulary.unk_id, vocabulary.bos_id, vocabulary.eos_id) == (0, 1, 2)
    assert vocabulary.vocab_size == len(theirs)
    for text in (*SAMPLES, *(t for t in HARD if "<" not in t)):
        assert list(vocabulary.encode(text)) == theirs.encode(text, add_special_tokens=False), text
    assert vocabulary.tokenizer.token(vocabulary.encode("word")[0])[0] == "▁"  # dummy prefix


@pytest.mark.parametrize("family", ["neox", "gpt2"])
def test_byte_level_bpe_is_transformers(family: str, request) -> None:
    directory = request.getfixturevalue(f"{family}_dir")
    if family == "neox":
        theirs = transformers.PreTrainedTokenizerFast.from_pretrained(str(directory))
    else:
        theirs = transformers.GPT2Tokenizer.from_pretrained(str(directory))
    vocabulary = from_directory(directory)
    for text in (*SAMPLES, *(t for t in HARD if "<" not in t)):
        assert list(vocabulary.encode(text)) == theirs.encode(text, add_special_tokens=False), text
    end = theirs.convert_tokens_to_ids("<|endoftext|>")
    assert vocabulary.bos_id == vocabulary.eos_id == end
    runs = [vocabulary.tokenizer.token(i) for i in vocabulary.encode("a" + 8 * " " + "b")]
    assert (" " * 8 in runs) == (family == "neox")


def test_the_original_goes_before_its_conversion(llama_dir: Path, tmp_path: Path) -> None:
    """As LLaMA's tokenizer.json is published it agrees; Transformers 5 loses a leading space."""
    from tokenizers import normalizers

    directory = tmp_path / "both"
    shutil.copytree(llama_dir, directory)
    fast = transformers.LlamaTokenizer.from_pretrained(str(directory)).backend_tokenizer
    converted = directory / "tokenizer.json"
    fast.save(str(converted))
    trained = from_directory(llama_dir)
    assert fast.encode(" a  b", add_special_tokens=False).ids != trained.encode(" a  b")
    assert from_directory(directory).encode(" a  b") == trained.encode(" a  b")
    fast.pre_tokenizer = None
    fast.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    fast.save(str(converted))
    (directory / "tokenizer.model").unlink()
    alone = from_directory(directory)
    assert alone.tokenizer.kind == "huggingface"
    for text in SAMPLES:
        assert list(alone.encode(text)) == trained.encode(text)
        assert alone.decode(alone.encode(text)) == trained.decode(trained.encode(text))


def test_openllama_v1_collapses_spaces_as_published(tmp_path: Path) -> None:
    directory = llama(tmp_path / "v1", remove_extra_whitespaces=True)
    vocabulary, theirs = from_directory(directory), slow(directory)
    for text in SAMPLES:
        assert list(vocabulary.encode(text)) == theirs.encode(text, add_special_tokens=False)
    assert vocabulary.decode(vocabulary.encode("a    b")) == "a b"


@pytest.mark.parametrize(
    ("files", "bos", "eos"),
    [
        ({}, "<s>", "</s>"),  # the model speaks for itself
        ({"config": {"bos_token_id": 0, "eos_token_id": 1}}, "<s>", "</s>"),  # and config errs
        ({"tokenizer_config": {"bos_token": "", "eos_token": ""}}, "<s>", "</s>"),
        ({"tokenizer_config": {"bos_token": None, "eos_token": "</s>"}}, None, "</s>"),
        ({"tokenizer_config": {"add_bos_token": False}}, None, "</s>"),
        ({"special_tokens_map": {"eos_token": {"content": "<s>"}}}, "<s>", "<s>"),
    ],
)
def test_special_ids_come_from_the_tokenizers_own_files(
    llama_dir: Path, tmp_path: Path, files: dict, bos: str | None, eos: str
) -> None:
    shutil.copy(llama_dir / "tokenizer.model", tmp_path)
    vocabulary = from_directory(write(tmp_path, **files))
    known = {"<s>": 1, "</s>": 2, None: None}
    assert (vocabulary.bos_id, vocabulary.eos_id) == (known[bos], known[eos])


def test_generation_config_comes_before_config(neox_dir: Path, tmp_path: Path) -> None:
    shutil.copy(neox_dir / "tokenizer.json", tmp_path)
    write(tmp_path, generation_config={"eos_token_id": [5, 6]}, config={"eos_token_id": 7})
    vocabulary = from_directory(tmp_path)
    assert (vocabulary.bos_id, vocabulary.eos_id) == (None, 5)


@pytest.mark.parametrize("family", ["llama", "neox"])
def test_documents_are_separated(family: str, request) -> None:
    """BOS and EOS around documents, and EOS alone where one token is both."""
    directory = request.getfixturevalue(f"{family}_dir")
    tokenizer, vocabulary = read(directory), from_directory(directory)
    texts = ["one two", "three", "四 🙂"]
    begin = [vocabulary.bos_id] if family == "llama" else []
    expected = [
        id for text in texts for id in [*begin, *vocabulary.encode(text), vocabulary.eos_id]
    ]
    assert tokenizer.encode_documents(texts).ids.tolist() == expected
    assert tokenizer.size == vocabulary.vocab_size
    assert pickle.loads(pickle.dumps(vocabulary)).encode("one two") == vocabulary.encode("one two")


@pytest.mark.parametrize("family", ["llama", "neox", "gpt2"])
def test_a_run_saves_its_tokenizer(family: str, request, tmp_path: Path) -> None:
    directory = request.getfixturevalue(f"{family}_dir")
    vocabulary = VocabularyConfig(str(directory))
    config = DataConfig(mixture_or_task_name="x", vocabulary=vocabulary)
    data_identity.save(str(tmp_path), DataIdentity("rows", ""), read(directory).files)
    again = with_saved_tokenizer(config, str(tmp_path))
    assert Path(str(again.vocabulary.path)).parent == tmp_path
    one, two = vocabularies.build_vocabulary(config), vocabularies.build_vocabulary(again)
    assert (one.bos_id, one.eos_id, one.unk_id) == (two.bos_id, two.eos_id, two.unk_id)
    assert one.tokenizer.identity == two.tokenizer.identity  # the sequences stay the run's
    assert [one.encode(text) for text in SAMPLES] == [two.encode(text) for text in SAMPLES]


def test_a_tokenizer_json_alone_separates_documents(tmp_path: Path) -> None:
    """By a token of a usual name, or by the one that a user names; never not at all."""
    usual = byte_level(tmp_path / "usual")
    assert from_directory(usual).eos_id == 0
    other = byte_level(tmp_path / "other", "<|weiter|>")
    assert read(other).separators == (None, None)
    config = DataConfig(mixture_or_task_name="x", vocabulary=VocabularyConfig(str(other)))
    with pytest.raises(
        UserError, match=r"no file names a token .* set VocabularyConfig\.special_tokens"
    ):
        prepare(config, {}, load_tokenizer(config))
    named = dataclasses.replace(config.vocabulary, special_tokens={"eos_token": "<|weiter|>"})
    tokenizer = load_tokenizer(dataclasses.replace(config, vocabulary=named))
    assert (tokenizer.bos, tokenizer.eos) == (None, 0)
    data_identity.save(
        str(tmp_path), DataIdentity("a", ""), tokenizer.files
    )  # and the run remembers
    saved = with_saved_tokenizer(config, str(tmp_path))
    assert load_tokenizer(saved).identity == tokenizer.identity
    wrong = dataclasses.replace(config.vocabulary, special_tokens={"bos_token": "<nope>"})
    with pytest.raises(UserError, match=r"bos_token = '<nope>': .* has no such token"):
        load_tokenizer(dataclasses.replace(config, vocabulary=wrong))


def test_tensorflow_sees_the_same(neox_dir: Path) -> None:
    import tensorflow as tf

    vocabulary = from_directory(neox_dir)
    data = tf.data.Dataset.from_tensors("a b 🙂").map(vocabulary.encode_tf)
    (ids,) = data.as_numpy_iterator()
    assert ids.tolist() == list(vocabulary.encode("a b 🙂"))
    assert vocabulary.decode_tf(tf.constant(ids)).numpy().decode() == "a b 🙂"


def test_mistakes_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"neither tokenizer\.model nor tokenizer\.json"):
        from_directory(tmp_path)
    with pytest.raises(UserError, match="no file"):
        from_directory(tmp_path / "tokenizer.json")
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(UserError, match=r"tokenizer\.json: not a tokenizer.json"):
        from_directory(tmp_path)
    assert Tokenizer("bytes").identity == "bytes"
