"""The probes ask what they say, of text that training never saw, and no shortcut answers them."""

import collections
import itertools
import math
import re

import numpy as np
import pytest

from jaxllm.evals.probes import context, embedded, generated, numbers
from jaxllm.evals.probes.tools import numbers_near
from jaxllm.evaluation.registry import benchmarks

CHOICE = (
    "closing_bracket", "keyword", "indentation", "word_order", "docstring_continuation",
    "module_members", "induction", "fact_recall", "few_shot_labels", "counting", "addition",
)  # fmt: skip
PROMPTS = ("row_copy", "addition_exact")
CORPUS = {
    "code": ("code",),
    "language": ("docstrings",),
    "knowledge": ("modules",),
    "reasoning": ("copying", "recall", "labels"),
    "math": ("arithmetic",),
}


@pytest.fixture(scope="module")
def examples():
    return {d.name: list(d.examples()) for d in benchmarks().load([*CHOICE, *PROMPTS])}


@pytest.fixture(scope="module")
def train_texts():
    return {
        domain: [d["text"] for d in module.documents(domain, "train")]
        for module in (embedded, generated)
        for domain in module.DOMAINS
        if domain != "reference"
    }


def chance(name: str) -> float:
    return {2: 1 / 2, 4: 1 / 4}[len(next(iter(benchmarks().load([name])[0].examples())).options)]


def test_eight_tasks_in_four_domains_at_least():
    definitions = benchmarks().load([*CHOICE, *PROMPTS])
    assert len({d.domain for d in definitions}) >= 4
    assert {d.domain for d in definitions} == set(CORPUS)


@pytest.mark.parametrize("name", CHOICE)
def test_answers_stand_at_each_place_equally_often(examples, name):
    places = collections.Counter(example.answer for example in examples[name])
    assert len(places) == len(examples[name][0].options)
    assert max(places.values()) - min(places.values()) <= 1
    assert len(examples[name]) >= 150


@pytest.mark.parametrize("name", CHOICE)
def test_questions_and_options_differ(examples, name):
    asked = {(e.context, e.options) for e in examples[name]}
    assert len(asked) == len(examples[name])
    assert all(len(set(e.options)) == len(e.options) for e in examples[name])


def words(text: str) -> list[str]:
    return re.findall(r"[A-Za-z]+|[0-9]|[^A-Za-z0-9]", text)


def shortcuts(frequency: collections.Counter[str]):
    """Ways to choose without reading how the option goes with its context."""
    total = sum(frequency.values())

    def unigram(option: str) -> float:
        return sum(math.log((frequency[word] + 1) / total) for word in words(option))

    return {
        "longest": lambda context, option: len(option),
        "shortest": lambda context, option: -len(option),
        "frequent": lambda context, option: unigram(option),
        "frequent per word": lambda context, option: unigram(option) / len(words(option)),
        "largest": lambda context, option: option,
        "smallest in context": lambda context, option: context.count(option),
        "latest in context": lambda context, option: context.rfind(option),
        "earliest in context": lambda context, option: -context.find(option),
    }


@pytest.mark.parametrize("name", CHOICE)
def test_no_shortcut_beats_chance(examples, train_texts, name):
    """Length, frequency in training, order, and place in the context all score at chance."""
    (definition,) = benchmarks().load([name])
    texts = [text for domain in CORPUS[definition.domain] for text in train_texts[domain]]
    frequency = collections.Counter(word for text in texts[:2000] for word in words(text))
    guess, n = chance(name), len(examples[name])
    allowed = guess + 4 * math.sqrt(guess * (1 - guess) / n)
    for shortcut, score in shortcuts(frequency).items():
        right = []
        for example in examples[name]:
            scores = np.array([ord_score(score(example.context, o)) for o in example.options])
            best = scores == scores.max()
            right.append(best[example.answer] / best.sum())  # a tie is a guess
        assert np.mean(right) <= allowed, f"{shortcut} answers {np.mean(right):.2f}"


def ord_score(value: float | str) -> float:
    """Strings in their order: numbers by size, others by their first letters."""
    if isinstance(value, str):
        text = value.strip()
        return float(text) if text.isdigit() else sum(ord(c) / 256**i for i, c in enumerate(text))
    return float(value)


@pytest.mark.parametrize("name", ["closing_bracket", "indentation"])
def test_code_contexts_are_not_in_training(examples, train_texts, name):
    seen = "\n".join(train_texts["code"])
    repeated = sum(example.context in seen for example in examples[name])
    assert repeated <= 0.05 * len(examples[name])  # lines that many modules share


@pytest.mark.parametrize("name", ["word_order", "docstring_continuation"])
def test_docstrings_of_the_probes_are_not_in_training(examples, train_texts, name):
    seen = " ".join("\n".join(train_texts["docstrings"]).split())
    right = [e.context[-40:] + e.options[e.answer] for e in examples[name]]
    assert sum(text in seen for text in right) <= 0.05 * len(right)


@pytest.mark.parametrize("domain", ["code", "docstrings", "reference"])
def test_held_out_passages_are_not_in_training(domain):
    seen = "\n".join(d["text"] for d in embedded.documents(domain, "train"))
    passages = [d.text for d in benchmarks().load([f"held_out_{domain}"])[0].examples()]
    assert len(passages) == len(set(passages)) == 48
    assert sum(text in seen for text in passages) <= 1


def test_indentation_follows_the_colon(examples):
    """The rule of the language gives the answer; the same lines serve at equal depth."""
    for example in examples["indentation"]:
        deeper = max(range(2), key=lambda i: len(example.options[i]))
        code = re.sub(r"#.*", "", example.context.rsplit("\n", 1)[-1]).rstrip()
        assert (example.answer == deeper) == code.endswith(":"), example


def test_closing_bracket_matches_the_open_one(examples):
    pairs = {"(": ")", "[": "]"}
    agree = 0
    for example in examples["closing_bracket"]:
        text = re.sub(r"'[^'\n]*'|\"[^\"\n]*\"", "", example.context)
        stack: list[str] = []
        for character in text:
            if character in "([{":
                stack.append(character)
            elif character in ")]}" and stack:
                stack.pop()
        agree += bool(stack) and pairs.get(stack[-1]) == example.options[example.answer]
    assert agree > 0.97 * len(examples["closing_bracket"])  # strings cut at the context's edge


def test_facts_asked_are_true_and_the_others_are_not(examples):
    facts = dict(embedded.facts())
    for example in examples["module_members"]:
        module = example.context.split()[1]
        inside = [option.strip() in facts[module] for option in example.options]
        assert inside.index(True) == example.answer and sum(inside) == 1
        lengths = [len(option) for option in example.options]
        assert max(lengths) - min(lengths) <= 4 or max(lengths) > 14


def test_rows_facts_and_labels_answer_themselves(examples):
    for example in examples["induction"]:
        row, cue = example.context.removeprefix("row: ").split(" ; ")
        following = dict(itertools.pairwise(row.split()))[cue]
        assert example.options[example.answer] == f" {following}"
        assert generated.split_of((tuple(row.split()),)) == "test"
    for example in examples["row_copy"]:
        row, cue = example.context.removeprefix("row: ").split(" ; ")
        assert f" {cue}{example.targets[0]}" in f" {row}"
    for example in examples["fact_recall"]:
        stated, word = example.context.removeprefix("facts: ").split(" . ")
        pairs = tuple(tuple(fact.split(" is ")) for fact in stated.split(" , "))
        assert dict(pairs)[word.removesuffix(" is")] == example.options[example.answer].strip()
        assert generated.split_of((pairs,)) == "test"
    category = {w: name for name, group in generated.CATEGORIES.items() for w in group}
    for example in examples["few_shot_labels"]:
        *shots, asked = example.context.removeprefix("labels: ").split(" , ")
        labels = {category[s.split(" : ")[0]]: s.split(" : ")[1] for s in shots}
        word = asked.removesuffix(" :")
        assert labels[category[word]] == example.options[example.answer].strip()
        assert word not in example.context.rsplit(" , ", 1)[0].split()
        assert len(shots) == context._SHOTS


def test_math_is_right_and_held_out(examples):
    sums, rows = set(generated.additions("test")), set(generated.progressions("test"))
    for example in examples["addition"]:
        a, b = map(int, example.context.removesuffix("=").split("+"))
        assert (a, b) in sums and int(example.options[example.answer]) == a + b
    for example in examples["addition_exact"]:
        a, b = map(int, example.context.removesuffix("=").split("+"))
        assert example.targets == (str(a + b),)
    for example in examples["counting"]:
        shown = list(map(int, example.context.removesuffix(",").split(",")))
        step = shown[1] - shown[0]
        assert (shown[0], step) in rows
        assert int(example.options[example.answer]) == shown[-1] + step
    assert len(list(numbers.counting())) >= 150


@pytest.mark.parametrize("value", [0, 1, 5, 50, 95, 98, 99])
def test_wrong_numbers_are_near_distinct_and_in_range(value):
    ranks = set()
    for number in range(4):
        near = numbers_near(value, number)
        assert len(set(near)) == 3 and value not in near
        assert all(0 <= n <= 99 and abs(n - value) in (1, 2, 3, 10, 11) for n in near)
        ranks.add(sum(n < value for n in near))
    assert len(ranks) == (4 if 10 <= value <= 89 else len(ranks))
