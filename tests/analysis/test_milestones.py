"""Milestones against planted truth and noise."""

import numpy as np
import pytest

from jaxllm.analysis.milestones import FALLING, GROWING, SATURATED, milestones
from jaxllm.analysis.onsets import AT_CHANCE
from jaxllm.analysis.registry import Study
from tests.analysis.planted import noise, sigmoid, table

TOKENS = np.array([0, *np.logspace(6, 10, 40).astype(int)])


def test_finds_the_planted_moments() -> None:
    # Linear in tokens from chance to 0.75: share of the gain = share of the tokens.
    tokens = np.linspace(0, 1e9, 41)
    rng = np.random.default_rng(0)
    line = 0.25 + 0.5 * tokens / 1e9 + rng.normal(0, 0.005, 41)
    found = milestones(Study(table({"t": line}, tokens=tokens, stderr=0.005))).table
    row = found.iloc[0]
    assert row.state == GROWING and row.late_low > 0
    assert 0 < row.onset_tokens <= 0.1e9
    assert row.half_tokens == pytest.approx(0.5e9, abs=0.06e9)
    assert row.saturation_tokens == pytest.approx(0.9e9, abs=0.06e9)
    for _, row in found.iterrows():
        assert row.share_low < row.fraction * 1.0 < row.share_high


def test_tells_saturated_growing_and_falling() -> None:
    rng = np.random.default_rng(1)
    x = np.log10(TOKENS + 1)
    values = {
        SATURATED: 0.25 + 0.5 * sigmoid(x, 7, 0.2),
        GROWING: 0.25 + 0.5 * sigmoid(x, 9.8, 0.4),
        FALLING: 0.25 + 0.5 * sigmoid(x, 7, 0.2) - 0.5 * np.maximum(0, x - 9.4),
        AT_CHANCE: np.full(len(x), 0.25),
    }
    values = {name: v + rng.normal(0, 0.005, len(x)) for name, v in values.items()}
    found = milestones(Study(table(values, tokens=TOKENS, stderr=0.005))).table
    assert dict(zip(found.task, found.state, strict=True)) == {name: name for name in values}


def test_what_an_untrained_model_knows_is_a_guess() -> None:
    biased = np.array([0.63] * 6 + [0.36] * 10 + [0.42] * 4)
    late = np.array([0.53] * 6 + [0.54] * 4 + [0.60] * 10)
    tokens = np.array([0, 1, 2, 4, 8, 16, *np.linspace(1e6, 1e8, 14)])
    found = milestones(Study(table({"b": biased, "l": late}, tokens=tokens, chance=0.5)))
    rows = found.table.drop_duplicates("task").set_index("task")
    assert rows.state["b"] == AT_CHANCE and rows.guess["b"] == pytest.approx(0.63)
    assert rows.onset_tokens["l"] == int(tokens[10])


def test_one_lucky_half_is_not_durable() -> None:
    values = np.array([0.25] * 5 + [0.4] * 5 + [0.25] * 5)
    assert milestones(Study(table({"t": values}))).table.onset_tokens.isna().all()


def test_noise_leaves_chance_at_most_at_the_rate_of_two_standard_errors() -> None:
    rng = np.random.default_rng(2)
    values = noise(rng, 400)
    found = milestones(Study(table(values, tokens=TOKENS))).table
    assert (found.drop_duplicates("task").state != AT_CHANCE).mean() <= 0.023


def test_late_slope_covers_the_truth() -> None:
    rng = np.random.default_rng(3)
    tokens = np.linspace(1e8, 1e10, 40)
    values = {f"t{i}": 0.3 + 0.02 * np.log2(tokens / 1e8) + rng.normal(0, 0.01, 40)
              for i in range(300)}  # fmt: skip
    found = milestones(Study(table(values, tokens=tokens)), fractions=(0.5,)).table
    covered = (found.late_low <= 0.02) & (found.late_high >= 0.02)
    assert 0.92 <= covered.mean() <= 0.98
    truth = np.log2(50.5) / np.log2(100)
    chance = table(values, tokens=tokens, chance=0.3)
    shares = milestones(Study(chance), fractions=(0.505,)).table
    inside = (shares.share_low <= truth) & (shares.share_high >= truth)
    assert 0.90 <= inside.mean() <= 0.98  # the final level is a mean of the last points


def test_pythia_tasks_come_early_late_and_never(pythia) -> None:
    found = milestones(Study(pythia)).table.drop_duplicates(["run", "task"])
    onset = found.groupby("task").onset_tokens.median()
    assert found[found.task.isin(["logiqa", "wsc"])].state.eq(AT_CHANCE).all()
    early = onset[["sciq", "lambada_openai", "piqa", "arc_easy"]]
    late = onset[["winogrande", "arc_challenge"]]
    assert early.max() < 7e9 < 2e10 < late.min()
    smallest = found[found.run.str.contains("70m") & found.task.isin(["sciq", "lambada_openai"])]
    assert smallest.state.eq(FALLING).all()
