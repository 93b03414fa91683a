"""Metrics against hand-worked examples and SciPy's standard errors."""

import itertools
import math

import numpy as np
import pytest
from scipy import special, stats

from jaxllm.evaluation import metrics
from jaxllm.evaluation.tasks import Choice, Document, Prompt, TaskDefinition


def test_mean_has_the_sample_standard_error():
    values = np.random.RandomState(0).rand(37)
    measured = metrics.mean(values)
    assert measured.value == pytest.approx(values.mean())
    assert measured.stderr == pytest.approx(stats.sem(values))
    assert measured.n == 37
    assert math.isnan(metrics.mean(values[:1]).stderr)


def test_ratio_has_the_standard_error_of_a_bootstrap():
    rng = np.random.RandomState(0)
    size = rng.randint(50, 500, 400)
    loss = size * (1 + 0.3 * rng.randn(400))
    draws = rng.randint(0, 400, (4000, 400))
    resampled = loss[draws].sum(1) / size[draws].sum(1)
    measured = metrics.ratio(loss, size)
    assert measured.value == pytest.approx(loss.sum() / size.sum())
    assert measured.stderr == pytest.approx(resampled.std(), rel=0.05)


def test_multiple_choice_by_hand():
    examples = [
        Choice("q", (" a", " bb"), 0),
        Choice("q", (" long answer", " é", " c"), 0),
    ]
    ll = np.array([[-1.0, -3.0, np.nan], [-6.0, -4.0, -5.0]])
    tokens = np.array([[1, 2, 0], [4, 1, 1]])
    measured, columns = metrics.multiple_choice(examples, ll, tokens)
    value = {name: m.value for name, m in measured.items()}
    assert value["accuracy"] == 0.5  # second: " é" has the highest sum
    assert value["accuracy_per_token"] == 1.0  # -6/4 beats -4 and -5
    assert value["accuracy_per_char"] == 1.0  # -6/11 beats -4/1 and -5/1
    assert value["accuracy_per_byte"] == 1.0  # é is two bytes: -4/2
    share = [special.softmax(ll[0, :2]), special.softmax(ll[1])]
    assert value["probability_correct"] == pytest.approx((share[0][0] + share[1][0]) / 2)
    brier = [np.sum((share[0] - [1, 0]) ** 2), np.sum((share[1] - [1, 0, 0]) ** 2)]
    assert value["brier"] == pytest.approx(np.mean(brier))
    assert value["margin"] == pytest.approx((2.0 + -2.0) / 2)
    bits = [1 / math.log(2), 6 / math.log(2) / 11]
    assert value["answer_bits_per_byte"] == pytest.approx(np.mean(bits))
    assert measured["accuracy"].chance == pytest.approx((1 / 2 + 1 / 3) / 2)
    assert measured["brier"].chance == pytest.approx((1 / 2 + 2 / 3) / 2)
    assert columns["log_likelihoods"] == [[-1.0, -3.0], [-6.0, -4.0, -5.0]]
    assert columns["prediction"] == [0, 1]


def test_characters_and_bytes_of_an_option_differ():
    # Per character " ééé" wins (-3/3 against -2/2 is a tie for the first); per byte it is -3/6.
    examples = [Choice("q", (" ab", " ééé"), 1)]
    measured, _ = metrics.multiple_choice(examples, np.array([[-2.0, -3.0]]), np.array([[1, 1]]))
    assert measured["accuracy_per_char"].value == 0.0
    assert measured["accuracy_per_byte"].value == 1.0


def test_uniform_guess_is_at_chance():
    rng = np.random.RandomState(0)
    examples = [Choice("q", (" a", " b", " c", " d"), rng.randint(4)) for _ in range(50)]
    measured, _ = metrics.multiple_choice(examples, np.full((50, 4), -2.0), np.ones((50, 4)))
    for name in ("probability_correct", "brier"):
        assert measured[name].value == pytest.approx(measured[name].chance)
    assert measured["margin"].value == 0


def test_stated_chance_replaces_the_mean_of_one_over_options():
    measured, _ = metrics.multiple_choice(
        [Choice("q", (" a", " b"), 0)], np.array([[-1.0, -2.0]]), np.ones((1, 2)), chance=0.9
    )
    assert measured["accuracy"].chance == 0.9
    assert measured["probability_correct"].chance == 0.5


def test_perplexity_counts_utf8_bytes_of_the_text():
    documents = [Document("ab"), Document("é")]
    measured, columns = metrics.perplexity(
        documents, np.array([-2.0, -1.0]) * math.log(2), np.array([2, 1])
    )
    assert measured["bits_per_byte"].value == pytest.approx(3 / 4)
    assert measured["perplexity"].value == pytest.approx(2.0)
    assert measured["loss"].value == pytest.approx(math.log(2))
    assert columns["bytes"] == [2, 2]


def test_cloze_and_exact_match():
    prompts = [Prompt("1+1=", ("2", "two")), Prompt("2+2=", ("4",))]
    measured, _ = metrics.cloze(
        prompts,
        np.array([-math.log(2), -2 * math.log(2)]),
        np.array([1, 1]),
        np.array([True, False]),
    )
    assert measured["exact_match"].value == 0.5
    assert measured["target_bits_per_byte"].value == pytest.approx(1.5)
    assert measured["perplexity"].value == pytest.approx(2**1.5)
    assert measured["perplexity"].stderr == pytest.approx(2**1.5 * math.log(2) / 2)
    task = TaskDefinition("unit", "generation", lambda: prompts, "math", stop=("\n",))
    measured, columns = metrics.generation(task, prompts, [[" two\n3"], ["44"]])
    assert measured["exact_match"].value == 0.5
    assert columns["prediction"] == [" two", "44"]


def test_pass_at_k_is_the_chance_that_one_of_k_drawn_answers_passes():
    prompts = [Prompt("a", ("yes",)), Prompt("b", ("yes",))]
    answers = [["yes"] * 3 + ["no"] * 7, ["no"] * 10]
    score = lambda text, example: {"pass": float(text == "yes")}
    task = TaskDefinition("unit", "generation", lambda: prompts, "code", score=score)
    measured, _ = metrics.generation(task, prompts, answers)
    assert measured["pass@1"].value == pytest.approx(np.mean([0.3, 0.0]))
    assert measured["pass@10"].value == pytest.approx(np.mean([1.0, 0.0]))
    # every pair of ten answers, three of which pass
    pairs = list(itertools.combinations([1] * 3 + [0] * 7, 2))
    assert 1 - math.comb(7, 2) / math.comb(10, 2) == np.mean([max(pair) for pair in pairs])


def test_several_correct_options_share_their_probability():
    choice = Choice("q", (" a", " b", " c"), answer=0, also_correct=(2,))
    ll = np.log([[0.2, 0.5, 0.1]])
    measured, _ = metrics.multiple_choice([choice], ll, np.ones((1, 3), int))
    assert measured["probability_correct"].value == pytest.approx(0.3 / 0.8)  # mc2
    assert measured["probability_correct"].chance == pytest.approx(2 / 3)
    assert measured["accuracy"].value == 0.0
    assert measured["margin"].value == pytest.approx(math.log(0.2 / 0.5))
    assert measured["probability_raw"].value == pytest.approx(0.2)
    assert measured["pooled_perplexity_correct"].value == pytest.approx(5.0)
    assert measured["pooled_perplexity_incorrect"].value == pytest.approx(2.0)


def test_perplexities_of_options_are_those_of_all_their_tokens():
    """Not of their examples: a long option counts by its length."""
    examples = [Choice("q", (" a", " b", " c"), answer=0), Choice("q", (" a", " b"), answer=1)]
    ll = -np.array([[2.0, 8.0, 3.0], [1.0, 9.0, np.nan]])
    measured, _ = metrics.multiple_choice(examples, ll, np.array([[1, 4, 2], [1, 3, 0]]))
    right, wrong = measured["pooled_perplexity_correct"], measured["pooled_perplexity_incorrect"]
    assert right.value == pytest.approx(math.exp((2 + 9) / (1 + 3))) and right.n == 4
    assert wrong.value == pytest.approx(math.exp((8 + 3 + 1) / (4 + 2 + 1))) and wrong.n == 7
    # The delta method: residuals 2 - 2.75 and 9 - 3 * 2.75 of two examples, 4 tokens.
    assert right.stderr / right.value == pytest.approx(math.sqrt(2 * (0.75**2 + 0.75**2)) / 4)


def test_a_constant_answer_has_the_accuracy_of_the_majority_class():
    """Seven of ten answers are yes: 0.7, and one half of the two classes' recalls."""
    examples = [Choice("q", (" yes", " no"), int(i >= 7)) for i in range(10)]
    always_yes = np.tile([-1.0, -2.0], (10, 1))
    measured, _ = metrics.multiple_choice(examples, always_yes, np.ones((10, 2)))
    assert measured["accuracy"].majority == measured["accuracy"].value == 0.7
    assert measured["accuracy_per_char"].majority == measured["probability_correct"].majority == 0.7
    assert measured["balanced_accuracy"].value == measured["balanced_accuracy"].chance == 0.5
    shuffled = [Choice("q", e.options[::-1], 1 - e.answer) if i % 2 else e
                for i, e in enumerate(examples)]  # fmt: skip
    measured, _ = metrics.multiple_choice(shuffled, always_yes, np.ones((10, 2)))
    assert measured["accuracy"].majority == 0.7  # the text, not its place
    # Always the first option: right in 4 of 7 (0, 2, 4, 6), and in 2 of 3 (7 and 9).
    assert measured["accuracy"].value == 0.6
    assert measured["balanced_accuracy"].value == pytest.approx((4 / 7 + 2 / 3) / 2)


def test_without_classes_there_is_no_balanced_accuracy():
    examples = [Choice("q", (f" {i}", f" {i + 1}"), 0) for i in range(8)]
    measured, _ = metrics.multiple_choice(examples, np.zeros((8, 2)), np.ones((8, 2)))
    assert "balanced_accuracy" not in measured and measured["accuracy"].majority == 1 / 8
    blanks = [Choice("", (" x", " x"), 0, contexts=(f"a{i}", f"b{i}")) for i in range(8)]
    measured, _ = metrics.multiple_choice(blanks, np.zeros((8, 2)), np.ones((8, 2)))
    assert "balanced_accuracy" not in measured and measured["accuracy"].majority == 1 / 8


def test_the_best_constant_text_of_generated_and_cloze_answers():
    prompts = [Prompt("q", targets) for targets in [("4",), ("4", "four"), ("5",), ("four",)]]
    task = TaskDefinition("unit", "generation", lambda: prompts, "math")
    measured, _ = metrics.generation(task, prompts, [["4"]] * 4)
    assert measured["exact_match"].majority == measured["exact_match"].value == 0.5
    measured, _ = metrics.cloze(prompts, np.zeros(4), np.ones(4), np.zeros(4))
    assert measured["exact_match"].majority == 0.5
