"""Answers are compared as the harness, and the scripts of the benchmarks' authors, compare them."""

import importlib.util
import random
import re
import sys
import types
from pathlib import Path

import pytest

from jaxllm.evals import _answers, coqa, drop, squad, word_problems
from jaxllm.evaluation.tasks import Prompt


def of_harness(path):
    """A module of the harness' tasks, without the rest of the harness."""
    harness = importlib.util.find_spec("lm_eval")
    if harness is None or harness.origin is None:
        pytest.skip("lm_eval is not installed")
    file = Path(harness.origin).parent / "tasks" / path
    spec = importlib.util.spec_from_file_location(path.replace("/", "_")[:-3], file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


WORDS = ["the", "a", "an", "Cat", "cat.", "3", "3.0", "1,000", "12-year", "old", "-", "$5", ""]


def random_texts(seed, count):
    rng = random.Random(seed)
    return [" ".join(rng.choices(WORDS, k=rng.randrange(6))) for _ in range(count)]


PAIRS = list(zip(random_texts(1, 300), random_texts(2, 300), strict=True))


def test_words_are_compared_as_squad_does():
    theirs = of_harness("qasper/metrics.py")  # has the functions of SQuAD's own script
    for prediction, target in [*PAIRS, ("The cat sat", "a cat")]:
        assert _answers.plain(prediction) == theirs.normalize_answer(prediction)
        if _answers.plain(prediction) or _answers.plain(target):
            expected = theirs.f1_abstractive([prediction], [target])
            assert _answers.f1(prediction, target) == pytest.approx(expected, abs=1e-12)
    assert _answers.f1("the big cat", "cat") == pytest.approx(2 / 3)
    assert (_answers.f1("", "the"), _answers.f1("", "cat")) == (1.0, 0.0)
    assert _answers.exact_match("The cat!", "cat") == 1.0


def test_squad_takes_the_best_of_the_answers():
    example = Prompt("?", ("Denver Broncos", "the Broncos"))
    assert squad.score(" Broncos", example) == {"exact_match": 1.0, "f1": 1.0}
    assert squad.score(" Denver", example) == {"exact_match": 0.0, "f1": pytest.approx(2 / 3)}


def test_coqa_is_scored_as_the_harness_does(monkeypatch):
    # what the harness compares words with has left Transformers; it is SQuAD's, proved above
    squads = types.SimpleNamespace(
        compute_exact=lambda target, prediction: _answers.exact_match(prediction, target),
        compute_f1=lambda target, prediction: _answers.f1(prediction, target),
    )
    stand_in: object = squads
    for name in ("data.metrics.squad_metrics", "data.metrics", "data", ""):
        monkeypatch.setitem(sys.modules, f"transformers.{name}".strip("."), stand_in)
        stand_in = types.SimpleNamespace(**{name.split(".")[-1]: stand_in})
    theirs = of_harness("coqa/utils.py")
    texts = [text for text in random_texts(3, 400) if text]
    for start in range(0, len(texts) - 4, 4):
        prediction, *gold = texts[start : start + 4]
        gold = gold[: 1 + start % 3]
        expected = theirs.compute_scores(gold, prediction.strip().split("\n")[0])
        found = coqa.score(f" {prediction}\nmore", Prompt("?", tuple(gold)))
        assert found["exact_match"] == pytest.approx(expected["em"], abs=1e-12)
        assert found["f1"] == pytest.approx(expected["f1"], abs=1e-12)


def test_answers_of_coqa_differ_by_more_than_case():
    assert coqa._distinct(["White", "white", "grey", "WHITE"]) == ("White", "grey")


def test_drop_is_scored_as_the_harness_does():
    theirs = of_harness("drop/utils.py")
    texts = [text for text in random_texts(5, 600) if text.strip()]
    for start in range(0, len(texts) - 4, 4):
        prediction, *gold = texts[start : start + 4]
        golds = [tuple(gold[: 1 + start % 3]), (gold[-1],)]
        expected = theirs.process_results({"answers": golds}, [prediction])
        targets = tuple(drop.BETWEEN.join(spans) for spans in golds)
        found = drop.score(prediction, Prompt("?", targets))
        assert found == {"exact_match": expected["em"], "f1": pytest.approx(expected["f1"])}
        assert drop.normalise(prediction) == theirs._normalize(prediction)
    assert drop.score("The 12 years", Prompt("?", ("12.0 years",)))["exact_match"] == 1.0


NUMBERS = [
    "She has 3 + 4 = 7. The answer is 7.",
    "so The answer is $1,080. Next",
    "#### 42\n",
    "It is 1,000 dollars.",
    "nothing",
    "The answer is 5 apples, not 6.",
    "答案是 18。",
    "-3.50",
]


@pytest.mark.parametrize("task", ["gsm8k/gsm8k.yaml", "gsm8k/gsm8k-cot.yaml"])
def test_numbers_are_extracted_as_the_harness_does(task):
    harness = pytest.importorskip("lm_eval")
    yaml = pytest.importorskip("yaml")
    from lm_eval.api.metrics import exact_match_hf_evaluate
    from lm_eval.filters.extraction import RegexFilter

    config = yaml.safe_load((Path(harness.__file__).parent / "tasks" / task).read_text())
    (metric,) = config["metric_list"]
    options = {k: v for k, v in metric.items() if k.startswith(("ignore", "regexes"))}
    pattern = word_problems._HASHES if task.endswith("gsm8k.yaml") else word_problems._ENGLISH
    for text in NUMBERS:
        for target in ("7", "42", "1,000", "1080", "-3.50", "5"):
            ours = _answers.number_score(
                text, Prompt("?", (target,)), strict=pattern, ignore=word_problems.IGNORED
            )
            for each in config["filter_list"]:
                settings = {k: v for k, v in each["filter"][0].items() if k != "function"}
                ((extracted,),) = RegexFilter(**settings).apply([[text]], [{}])
                expected = exact_match_hf_evaluate([extracted], [target], **options)
                name = f"exact_match_{each['name'].replace('-', '_')}"
                assert ours[name] == expected["exact_match"], (text, target)


def test_numbers_in_chinese_follow_the_phrase_of_the_shots():
    score = word_problems.number_score
    found = score(
        "一共 9 个。答案是 1,018。", Prompt("?", ("1018",)),
        strict=word_problems._CHINESE, punctuation=False,
    )  # fmt: skip
    assert set(found.values()) == {1.0}


def test_extraction_takes_the_first_or_the_last_match():
    pattern = re.compile(r"(x[0-9])|([0-9]+)")
    assert _answers.extract(pattern, "x1 and 22") == "x1"
    assert _answers.extract(pattern, "x1 and 22", -1) == "22"
    assert _answers.extract(pattern, "none") == _answers.INVALID
