"""`python -m jaxllm.generate` gives the texts of Transformers' `generate`, whole and in pieces."""

import json
from pathlib import Path
from typing import Any

import gin
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxllm import convert, generate
from jaxllm.data.tokenizer import Tokenizer
from jaxllm.data.vocabularies import TokenizerVocabulary, from_directory
from jaxllm.errors import UserError
from jaxllm.evaluation.inference import Decoding, Generator, StreamedText
from jaxllm.models.sampling import Sampling
from tests.data.test_published_tokenizers import byte_level, llama
from tests.evaluation.helpers import TINY, mesh, sharded_params

PROMPTS = ["def f(x):\n    return", "class", "import numpy as np ", "", "四 🙂", "a = 1"]
MESH = ("--gin.MeshConfig.fsdp=4", "--gin.MeshConfig.tensor=2")


def save_model(directory: Path, layers: int, **of_tokenizer: Any) -> Path:
    """A random LLaMA and a tokenizer, as Transformers saves them."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    llama(directory, **of_tokenizer)
    size = from_directory(directory).vocab_size
    config = transformers.LlamaConfig(
        vocab_size=size, hidden_size=32, intermediate_size=64, num_hidden_layers=layers,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=128,
        bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.2 * torch.randn_like(parameter)
    model.save_pretrained(directory)
    return directory


@pytest.fixture(scope="module")
def published(tmp_path_factory) -> Path:
    return save_model(tmp_path_factory.mktemp("published") / "model", layers=2)


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> Path:
    return save_model(tmp_path_factory.mktemp("published") / "small", layers=1)


def their_texts(directory: Path, prompts: list[str], new_tokens: int) -> list[str]:
    import torch
    import transformers

    model = transformers.LlamaForCausalLM.from_pretrained(directory).eval()
    vocabulary = from_directory(directory)
    texts = []
    for prompt in prompts:
        ids = [1, *vocabulary.encode(prompt.rstrip(" "))]
        out = model.generate(
            torch.tensor([ids]), attention_mask=torch.ones(1, len(ids), dtype=torch.long),
            max_new_tokens=new_tokens, do_sample=False, pad_token_id=0,
        )[0].tolist()  # fmt: skip
        new = [token for token in out[len(ids) :] if token != 2]
        before = vocabulary.decode(ids[1:])
        texts.append(vocabulary.decode([*ids[1:], *new])[len(before) :])
    return texts


def test_texts_are_those_of_transformers(published: Path, tmp_path: Path, capsys) -> None:
    expected = their_texts(published, PROMPTS, 20)
    assert len(set(expected)) > 3
    file, output = tmp_path / "prompts.jsonl", tmp_path / "answers.jsonl"
    file.write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in PROMPTS))
    common = (f"--model_dir=hf:{published}", "--max_new_tokens=20", *MESH)
    generate.main([*common, f"--prompts_file={file}", "--batch_size=4", f"--output={output}"])
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    assert [row["prompt"] for row in rows] == PROMPTS
    assert [row["text"] for row in rows] == expected

    gin.clear_config()
    capsys.readouterr()
    generate.main([*common, f"--prompt={PROMPTS[0]}"])
    assert capsys.readouterr().out == expected[0] + "\n"


def test_a_run_answers_as_the_directory_that_it_came_from(
    published: Path, tmp_path: Path, capsys
) -> None:
    convert.main([f"--from=hf:{published}", f"--to={tmp_path / 'run'}"])
    gin.clear_config()
    capsys.readouterr()
    generate.main(
        [f"--model_dir={tmp_path / 'run'}", "--max_new_tokens=12", f"--prompt={PROMPTS[0]}", *MESH]
    )
    assert capsys.readouterr().out == their_texts(published, PROMPTS[:1], 12)[0] + "\n"
    generate.main([f"--model_dir={tmp_path / 'run'}", f"--prompt={PROMPTS[0]}", *MESH])
    assert capsys.readouterr().out == their_texts(published, PROMPTS[:1], 64)[0] + "\n"
    output = tmp_path / "texts.jsonl"
    flags = (f"--model_dir={tmp_path / 'run'}", f"--prompt={PROMPTS[0]}", "--max_new_tokens=2")
    generate.main([*flags, f"--output={output}", *MESH])
    assert json.loads(output.read_text())["settings"]["checkpoints"] == [f"{tmp_path / 'run'}@0"]


def test_a_difference_of_models_is_a_loop_over_transformers(
    published: Path, small: Path, tmp_path: Path
) -> None:
    """p_small - p_large by equation 3, greedily; and the settings beside each text."""
    import torch
    import transformers

    load = transformers.LlamaForCausalLM.from_pretrained
    models, vocabulary = [load(one).eval() for one in (small, published)], from_directory(small)
    file, output = tmp_path / "prompts.txt", tmp_path / "answers.jsonl"
    file.write_text("\n".join(prompts := ["def f(x):", "class A:", "import numpy"]))
    expected = []
    for prompt in prompts:
        ids = [1, *vocabulary.encode(prompt)]
        before = vocabulary.decode(ids[1:])
        for _ in range(12):
            with torch.no_grad():
                p_s, p_l = (m(torch.tensor([ids])).logits[0, -1].softmax(-1) for m in models)
            kept = torch.where(p_s - p_l > 0, p_s - p_l, 0.0)
            ids.append(int((kept / kept.sum()).argmax()))
            if ids[-1] == 2:
                break
        expected.append(vocabulary.decode(ids[1:])[len(before) :])
    both = f"--models=hf:{small},hf:{published}"
    generate.main(
        [both, "--combine=probabilities:1,-1", "--max_new_tokens=12", f"--prompts_file={file}",
         f"--output={output}", *MESH]
    )  # fmt: skip
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    assert [row["text"] for row in rows] == expected
    assert expected != their_texts(small, prompts, 12)
    assert rows[0]["settings"] == {
        "checkpoints": [f"hf:{small}", f"hf:{published}"],
        "models": both.removeprefix("--models="), "combine": "probabilities:1,-1",
        "max_new_tokens": 12, "top_p": 1.0,
    }  # fmt: skip


def test_models_that_cannot_be_combined_are_named(
    published: Path, small: Path, tmp_path: Path
) -> None:
    other = save_model(tmp_path / "other", layers=1, vocab_size=600)
    for models, combine, named in (
        (f"{small},hf:{other}", "logits:1,1", "have different vocabularies"),
        (f"{small},hf:{published}", "emulated:1", "combines 3 models, and there are 2"),
        (str(small), None, "--models and --combine go together"),
    ):
        words = [f"--combine={combine}"] if combine else []
        with pytest.raises(UserError, match=named) as caught:
            generate.main([f"--models=hf:{models}", *words, "--prompt=a", "--max_new_tokens=2"])
        assert "vocab" not in named or all(str(one) in str(caught.value) for one in (small, other))


def generator(*stop: str, **axes: int) -> Generator:
    on, sampling = mesh(**axes), Sampling(temperature=1.0, top_p=0.95)
    decoding = Decoding(ByteVocabulary258(), 24, stop, sampling, lambda number: (3, number))
    return Generator(TINY, sharded_params(TINY, on), on, decoding)


@pytest.fixture(scope="module")
def tiny() -> Generator:
    return generator()


class ByteVocabulary258(TokenizerVocabulary):
    """Bytes within the 259 ids of the tiny model."""

    def __init__(self) -> None:
        super().__init__(Tokenizer("bytes"))

    @property
    def bos_id(self) -> int:
        return 2


def test_batches_and_meshes_do_not_change_what_is_drawn(tiny: Generator) -> None:
    prompts = ["one", "a longer prompt", "", "x"]
    alone = tiny.generate(prompts, batch_size=1)
    assert tiny.generate(prompts, batch_size=3) == alone
    assert generator(fsdp=2, tensor=2).generate(prompts, batch_size=4) == alone
    assert "".join(tiny.stream(prompts[0])) == alone[0]
    assert len(set(alone)) == 4


def test_a_text_ends_before_its_stop_string(tiny: Generator) -> None:
    whole = tiny.generate(["one"], 1)[0]
    stop = whole[5:8]
    expected = whole[: whole.index(stop)]
    assert generator(stop, "never this").generate(["one"], 1) == [expected]
    assert "".join(generator(stop).stream("one")) == expected


@pytest.fixture(scope="module")
def vocabularies(tmp_path_factory) -> list[Any]:
    root = tmp_path_factory.mktemp("tokenizers")
    directories = [llama(root / "llama"), byte_level(root / "gpt2")]
    return [*map(from_directory, directories), TokenizerVocabulary(Tokenizer("bytes"))]


@given(st.data())
def test_streamed_pieces_are_whole_characters_and_add_up(vocabularies, data) -> None:
    vocabulary = data.draw(st.sampled_from(vocabularies))
    text = st.text(st.sampled_from(" \nab1é中🙂👩\u200d"), max_size=12)
    prompt, continuation = data.draw(text), data.draw(text)
    before, tokens = vocabulary.encode(prompt), vocabulary.encode(prompt + continuation)
    tokens = tokens[len(before) :] if tokens[: len(before)] == before else tokens
    whole = vocabulary.decode([*before, *tokens])[len(vocabulary.decode(before)) :]
    growing, pieces = StreamedText(vocabulary, before, ()), []
    while tokens:
        count = data.draw(st.integers(1, 3))
        pieces.append(growing.add(tokens[:count]))
        tokens = tokens[count:]
        assert "\ufffd" not in pieces[-1]
    assert "".join(pieces) + growing.add([], last=True) == whole


@given(st.text("ab", max_size=12), st.lists(st.text("ab", min_size=1, max_size=3), max_size=2))
def test_stop_strings_cut_at_the_first_wherever_pieces_end(text: str, stop: list[str]) -> None:
    vocabulary = TokenizerVocabulary(Tokenizer("bytes"))
    growing = StreamedText(vocabulary, [], stop)
    tokens = [*vocabulary.encode(text), vocabulary.eos_id]
    pieces = [growing.add([token], last=False) for token in tokens]
    # the first to be complete ends it, and of those that are at once the earliest
    ends = [(text.find(s) + len(s), text.find(s)) for s in stop if s in text]
    expected = text[: min(ends)[1]] if ends else text
    assert "".join(pieces) == growing.text == expected and growing.done


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("bom.txt", b"\xef\xbb\xbfdef main(\nimport os"),
        ("crlf.txt", b"def main(\r\n\r\nimport os\r\n"),
        ("bom.jsonl", b'\xef\xbb\xbf{"prompt": "def main("}\r\n{"prompt": "import os"}\n'),
    ],
)
def test_marks_and_ends_of_lines_are_no_text_of_a_prompt(
    name: str, content: bytes, tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(content)
    assert generate.read_prompts(str(tmp_path / name)) == ["def main(", "import os"]


def test_a_continuation_replaces_the_spaces_that_a_prompt_ends_with(capsys) -> None:
    generate.write(["def f(x):\n    return ", "a"], [" x", "b"], None, {})
    assert capsys.readouterr().out.split("-" * 20) == ["def f(x):\n    return x\n", "\nab\n", "\n"]


def test_mistakes_are_named(published: Path, tmp_path: Path) -> None:
    common = [f"--model_dir=hf:{published}", "--prompt=a"]
    (tmp_path / "bad.jsonl").write_text('{"prompt": "a"}\n{"text": "b"}\n')
    for arguments, named in (
        ([*common, "--max_new_tokens=500"], "leave no room for a prompt in a context of 128"),
        ([*common, "--top_p=2"], "top_p 2.0"),
        ([*common, "--step=2"], "--step is not read of hf:DIR"),
        ([*common, "--stop="], "--stop needs"),
        ([f"--model_dir={tmp_path}", "--prompt=a"], "is no run"),
        (
            [common[0], f"--prompts_file={tmp_path / 'bad.jsonl'}"],
            r"bad\.jsonl:2: no field 'prompt'",
        ),
        ([common[0], f"--prompts_file={tmp_path / 'none'}"], "none"),
        ([common[0], "--prompt=" + "word " * 200, "--max_new_tokens=8"], "do not fit the context"),
    ):
        gin.clear_config()
        with pytest.raises(UserError, match=named):
            generate.main(arguments)
