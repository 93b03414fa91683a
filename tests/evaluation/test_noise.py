"""Noise in texts, scored apart from what follows it, and texts scored after their prompts."""

import json
import math

import jax
import numpy as np
import pytest

from jaxllm.errors import UserError
from jaxllm.evaluation.config import EvalConfig
from jaxllm.evaluation.metrics import measure
from jaxllm.evaluation.noise import AFTER, BEFORE, NOISY, corrupt
from jaxllm.evaluation.scoring import Scorer
from jaxllm.evaluation.selection import select
from jaxllm.evaluation.spans import scored_spans
from jaxllm.evaluation.tasks import Document, perplexity
from jaxllm.models.decoder import logits
from tests.evaluation.helpers import TINY, Bytes, mesh, sharded_params
from tests.models.helpers import one_document_rows

IDS, AMONG = np.arange(1000, 1050, dtype=np.int32), np.arange(50)


def texts():
    yield from (
        Document(text, f"d{n}") for n, text in enumerate(("a text to be changed", "b" * 90))
    )


perplexity("unit_noise_text", texts, domain="language")


def noised(kind: str, percent: int) -> tuple[list[int], list[int]]:
    tokens, parts = corrupt(IDS, f"{kind}_{percent}", AMONG, "seed")
    return tokens.tolist(), parts.tolist()


@pytest.mark.parametrize("percent", [20, 60, 100])
def test_noise_is_as_much_as_asked_for_and_the_rest_is_the_text(percent: int) -> None:
    count = percent * len(IDS) // 100
    for kind in ("replace", "insert", "repeat", "delete"):
        tokens, parts = noised(kind, percent)
        own = [t for t, part in zip(tokens, parts, strict=True) if part != NOISY]
        noise = [t for t, part in zip(tokens, parts, strict=True) if part == NOISY]
        kept = [t for t in IDS.tolist() if t in set(own)]
        assert own == kept, "in their order"
        if kind == "delete":
            assert len(tokens) == max(len(IDS) - count, 1) and not noise
            first = next(i for i, t in enumerate([*tokens, 0]) if t != IDS[i])
        else:
            assert len(noise) == count
            assert len(own) == len(IDS) - (count if kind == "replace" else 0)
            first = parts.index(NOISY)
        if kind == "repeat":
            at = [i for i, part in enumerate(parts) if part == NOISY]
            assert noise == [tokens[i - 1] for i in at]
        elif noise:
            assert set(noise) <= set(AMONG.tolist())
        assert parts[:first] == [BEFORE] * first
        assert BEFORE not in parts[first:]


def test_more_noise_contains_less_and_a_text_has_one_noise() -> None:
    few, many = noised("replace", 20)[0], noised("replace", 40)[0]
    assert all(b == a for a, b in zip(few, many, strict=True) if a < 1000)
    assert noised("replace", 20)[0] == few
    assert corrupt(IDS, "replace_20", AMONG, "other")[0].tolist() != few


def declared(name: str, **config):
    (task,) = select(EvalConfig(tasks=(name,), **config)).values()
    return task.definition, task.read_examples()


def forward(params, tokens: np.ndarray) -> np.ndarray:
    """Log-probabilities of tokens[1:], from the logits of the sequence alone."""
    values = np.asarray(logits(TINY, params, one_document_rows(tokens[None]))[0], np.float64)
    values -= np.log(np.exp(values).sum(-1, keepdims=True))
    return values[np.arange(len(tokens) - 1), tokens[1:]]


@pytest.mark.parametrize("kind", ["replace_40", "delete_20", "insert_20", "repeat_100"])
def test_noise_and_what_follows_it_are_scored_apart(kind: str) -> None:
    definition, examples = declared(f"noise_{kind}_unit_noise_text")
    on, vocabulary = mesh(fsdp=2), Bytes()
    params = sharded_params(TINY, on)
    scorer = Scorer(TINY, on, vocabulary, tokens_per_batch=4 * 64, shortest=16)
    prepared = scorer.prepare(definition, examples)
    measured, _ = measure(definition, examples, scorer.run(params, prepared))

    local, found = jax.device_get(params), {NOISY: [], AFTER: [], BEFORE: []}
    for document in examples:
        ids = np.asarray(vocabulary.encode(document.text)[:32], np.int32)
        among = np.array([i for i in range(259) if i not in (1, 2)])
        tokens, parts = corrupt(ids, kind, among, document.text)
        assert set(tokens) <= set(among)
        each = forward(local, np.array([1, *tokens]))
        for value, part in zip(each, parts, strict=True):
            found[int(part)].append(value)
    everything = [value for values in found.values() for value in values]
    expected = {
        "perplexity": everything, "perplexity_noise": found[NOISY], "perplexity_after": found[AFTER]
    }  # fmt: skip
    for name, values in expected.items():
        assert (name in measured) == bool(values)
        if values:
            assert measured[name].value == pytest.approx(math.exp(-np.mean(values)), rel=1e-4)
    assert "bits_per_byte" not in measured
    assert len(prepared.example_index) > len(examples)


def test_a_text_is_scored_after_its_prompt(tmp_path, caplog) -> None:
    rows = [
        {"prompt": "Once\n", "text": " upon a", "settings": {}},
        {"prompt": "Once ", "text": " upon"},
        {"prompt": "", "text": "a"},
        {"prompt": "a", "text": ""},
    ]
    (tmp_path / "made.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    definition, examples = declared("jsonl_made", data_dir=str(tmp_path))
    assert "1 of 4 texts are empty" in caplog.text
    assert (definition.kind, [e.id for e in examples]) == ("perplexity", ["0", "1", "2"])
    scored = [scored_spans(e, Bytes(), 64)[0][0] for e in examples]
    assert [Bytes().decode(s.tokens[-s.scored :]) for s in scored] == [" upon a", " upon", "a"]
    assert Bytes().decode(scored[0].tokens) == "Once\n upon a"
    rolled, _ = scored_spans(examples[0], Bytes(), 3)
    parts = [(Bytes().decode(s.tokens[-s.scored :]), s.truncated) for s in rolled]
    assert parts == [(" up", True), ("on ", True), ("a", True)], "every byte is scored"


def test_a_text_of_a_module_of_ones_own_can_have_noise(tmp_path, monkeypatch) -> None:
    (tmp_path / "unit_noise_module.py").write_text(
        "from jaxllm.evaluation.tasks import Document, perplexity\n"
        "texts = lambda: [Document('a text')]\n"
        "FAMILIES = {'unitown_': lambda name, data_dir: perplexity(name, texts, domain='own')}\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    modules = ("jaxllm.evals", "unit_noise_module")
    definition, examples = declared("noise_replace_20_unitown_text", modules=modules)
    assert definition.domain == "own"
    assert [(e.text, e.noise) for e in examples] == [("a text", "replace_20")]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("noise_swap_20_unit_noise_text", "write noise_<replace"),
        ("noise_delete_100_unit_noise_text", "delete leaves some"),
        ("noise_replace_120_unit_noise_text", "write noise_<replace"),
        ("noise_replace_20_induction", "induction is no task of texts"),
        ("noise_replace_20_unit_noise_texts", "no evaluation task is called unit_noise_texts"),
    ],
)
def test_mistakes_are_named(name: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        select(EvalConfig(tasks=(name,)))
