"""Linearity and breakthroughness in closed form, and mirages told from jumps."""

import math

import numpy as np
import pandas as pd
import pytest

from jaxllm.analysis import emergence as analysis
from jaxllm.analysis.emergence import breakthroughness, emergence, improvement, linearity
from jaxllm.analysis.registry import Study
from tests.analysis.planted import sigmoid, table

TOKENS = np.logspace(6, 10, 24).astype(np.int64)
X = np.linspace(0, 1, 24)


class TestDefinitions:
    def test_a_straight_line(self) -> None:
        y = np.linspace(0.2, 0.7, 6)
        assert improvement(y) == pytest.approx(0.5)
        assert linearity(y) == pytest.approx(5) and breakthroughness(y) == pytest.approx(5)

    def test_one_jump(self) -> None:
        y = np.array([0.0, 0.01, 0.02, 0.03, 0.93])
        assert breakthroughness(y) == pytest.approx(93)
        assert linearity(y) == pytest.approx(0.93 / math.sqrt((3 * 0.01**2 + 0.9**2) / 4))

    def test_a_decline_is_negative(self) -> None:
        y = np.array([0.9, 0.7, 0.5])
        assert improvement(y) == pytest.approx(-0.4) and linearity(y) < 0 > breakthroughness(y)

    def test_a_median_of_zero_is_bounded_by_the_resolution(self) -> None:
        y = np.array([0.0, 0.0, 0.0, 0.0, 0.5])
        assert math.isnan(breakthroughness(y))
        assert breakthroughness(y, resolution=0.001) == pytest.approx(500)
        assert math.isnan(linearity(np.full(4, 0.3)))


def task(accuracy, soft, rng, *, stderr=0.01, metric="bits_per_byte", name="t", tokens=TOKENS):
    """One task under accuracy and a continuous metric, with their sampling noise."""
    accuracy = np.clip(accuracy + rng.normal(0, stderr, len(accuracy)), 0, 1)
    soft = soft + rng.normal(0, stderr, len(soft))
    hard = table({name: accuracy}, tokens=tokens, stderr=stderr, chance=0.0)
    return pd.concat([
        hard, table({name: soft}, tokens=tokens, stderr=stderr, metric=metric, chance=np.nan)
    ])  # fmt: skip


def verdicts(records) -> pd.Series:
    found = emergence(Study(records))
    assert found.sentence.endswith(".")
    return found.table[found.table.hard].set_index("task").verdict


class TestVerdicts:
    def test_a_power_of_a_smooth_probability_is_the_metrics_jump(self) -> None:
        """Schaeffer et al. 2023: exact match of 20 tokens is p to the 20th."""
        rng = np.random.default_rng(0)
        p = 0.3 + 0.69 * X
        rows = [task(p**20, -np.log2(p), rng, name=f"t{i}") for i in range(20)]
        assert (verdicts(pd.concat(rows)) == analysis.METRIC).mean() >= 0.95

    def test_a_jump_under_every_metric_is_the_models(self) -> None:
        rng = np.random.default_rng(1)
        jump = sigmoid(X, 0.6, 0.01)
        rows = [task(0.9 * jump, 2 - jump, rng, name=f"t{i}") for i in range(20)]
        assert (verdicts(pd.concat(rows)) == analysis.MODEL).mean() >= 0.9

    def test_a_steady_gain_is_gradual_at_the_nominal_rate(self) -> None:
        rng = np.random.default_rng(2)
        rows = [task(0.05 + 0.6 * X, 2 - X, rng, name=f"t{i}") for i in range(60)]
        found = emergence(Study(pd.concat(rows))).table
        assert (found.verdict == analysis.GRADUAL).mean() >= 0.95
        assert (found.p[found.hard] <= 0.05).mean() <= 0.13

    def test_noise_has_no_gain(self) -> None:
        rng = np.random.default_rng(3)
        rows = [table({f"t{i}": 0.25 + rng.normal(0, 0.01, 24)}, tokens=TOKENS) for i in range(100)]
        assert (verdicts(pd.concat(rows)) == analysis.NO_GAIN).mean() >= 0.97

    def test_accuracy_alone_cannot_say_why(self) -> None:
        records = task(0.9 * sigmoid(X, 0.6, 0.01), X, np.random.default_rng(4))
        assert (verdicts(records[records.metric == "accuracy"]) == analysis.UNCLEAR).all()

    def test_probabilities_and_brier_scores_are_continuous_metrics(self) -> None:
        rng = np.random.default_rng(5)
        p = 0.3 + 0.69 * X
        for metric, soft in (("probability_correct", p), ("brier", (1 - p) ** 2)):
            found = verdicts(task(p**20, soft, rng, metric=metric))
            assert (found == analysis.METRIC).all(), metric


def test_pythias_lambada_is_a_mirage(pythia_records) -> None:
    """Its accuracy leaves 0 after a quarter of the gain in log perplexity is made."""
    found = emergence(Study(pythia_records))
    hard = found.table[found.table.hard]
    lambada = hard[hard.task == "lambada_openai"]
    assert len(lambada) == 13 and lambada.verdict.eq(analysis.METRIC).all()
    soft = found.table[found.table.metric == "perplexity"]
    assert soft.early_low.min() > 0.1
    assert hard[hard.task.isin(["logiqa", "wsc"])].verdict.eq(analysis.NO_GAIN).all()
    assert not hard.verdict.eq(analysis.MODEL).any()
