"""Milestones, bends and informative phases against planted truth and noise."""

import numpy as np
import pandas as pd
import pytest

from jaxllm.analysis.dynamics_bends import change_points
from jaxllm.analysis.dynamics_informative import informative_tasks
from jaxllm.analysis.dynamics_milestones import AT_CHANCE, FALLING, GROWING, SATURATED, milestones
from tests.analysis.planted import sigmoid, table

TOKENS = np.array([0, *np.logspace(6, 10, 40).astype(int)])


def noise(rng: np.random.Generator, tasks: int, level: float = 0.25, size: int = len(TOKENS)):
    return {f"t{i}": level + rng.normal(0, 0.01, size) for i in range(tasks)}


class TestMilestones:
    def test_finds_the_planted_moments(self) -> None:
        # Linear in tokens from chance to 0.75: share of the gain = share of the tokens.
        tokens = np.linspace(0, 1e9, 41)
        rng = np.random.default_rng(0)
        line = 0.25 + 0.5 * tokens / 1e9 + rng.normal(0, 0.005, 41)
        found = milestones(table({"t": line}, tokens=tokens, stderr=0.005)).table
        row = found.iloc[0]
        assert row.state == GROWING and row.late_low > 0
        assert 0 < row.onset_tokens <= 0.1e9
        assert row.half_tokens == pytest.approx(0.5e9, abs=0.06e9)
        assert row.saturation_tokens == pytest.approx(0.9e9, abs=0.06e9)
        for _, row in found.iterrows():
            assert row.share_low < row.fraction * 1.0 < row.share_high

    def test_tells_saturated_growing_and_falling(self) -> None:
        rng = np.random.default_rng(1)
        x = np.log10(TOKENS + 1)
        values = {
            SATURATED: 0.25 + 0.5 * sigmoid(x, 7, 0.2),
            GROWING: 0.25 + 0.5 * sigmoid(x, 9.8, 0.4),
            FALLING: 0.25 + 0.5 * sigmoid(x, 7, 0.2) - 0.5 * np.maximum(0, x - 9.4),
            AT_CHANCE: np.full(len(x), 0.25),
        }
        values = {name: v + rng.normal(0, 0.005, len(x)) for name, v in values.items()}
        found = milestones(table(values, tokens=TOKENS, stderr=0.005)).table
        assert dict(zip(found.task, found.state, strict=True)) == {name: name for name in values}

    def test_what_an_untrained_model_knows_is_a_guess(self) -> None:
        biased = np.array([0.63] * 6 + [0.36] * 10 + [0.42] * 4)
        late = np.array([0.53] * 6 + [0.54] * 4 + [0.60] * 10)
        tokens = np.array([0, 1, 2, 4, 8, 16, *np.linspace(1e6, 1e8, 14)])
        found = milestones(table({"b": biased, "l": late}, tokens=tokens, chance=0.5))
        rows = found.table.drop_duplicates("task").set_index("task")
        assert rows.state["b"] == AT_CHANCE and rows.guess["b"] == pytest.approx(0.63)
        assert rows.onset_tokens["l"] == int(tokens[10])

    def test_one_lucky_half_is_not_durable(self) -> None:
        values = np.array([0.25] * 5 + [0.4] * 5 + [0.25] * 5)
        assert milestones(table({"t": values})).table.onset_tokens.isna().all()

    def test_noise_leaves_chance_at_most_at_the_rate_of_two_standard_errors(self) -> None:
        rng = np.random.default_rng(2)
        values = noise(rng, 400)
        found = milestones(table(values, tokens=TOKENS)).table
        assert (found.drop_duplicates("task").state != AT_CHANCE).mean() <= 0.023

    def test_late_slope_covers_the_truth(self) -> None:
        rng = np.random.default_rng(3)
        tokens = np.linspace(1e8, 1e10, 40)
        values = {f"t{i}": 0.3 + 0.02 * np.log2(tokens / 1e8) + rng.normal(0, 0.01, 40)
                  for i in range(300)}  # fmt: skip
        found = milestones(table(values, tokens=tokens), fractions=(0.5,)).table
        covered = (found.late_low <= 0.02) & (found.late_high >= 0.02)
        assert 0.92 <= covered.mean() <= 0.98
        truth = np.log2(50.5) / np.log2(100)
        chance = table(values, tokens=tokens, chance=0.3)
        shares = milestones(chance, fractions=(0.505,)).table
        inside = (shares.share_low <= truth) & (shares.share_high >= truth)
        assert 0.90 <= inside.mean() <= 0.98  # the final level is a mean of the last points


class TestBends:
    def test_covers_a_planted_bend(self) -> None:
        rng = np.random.default_rng(0)
        x = np.log2(TOKENS[1:])
        bend, slope = 27.0, 0.04
        values = {f"t{i}": 0.25 + slope * np.maximum(0, x - bend) + rng.normal(0, 0.01, len(x))
                  for i in range(150)}  # fmt: skip
        found = change_points(table(values, tokens=TOKENS[1:]), most=1).table
        assert len(found) == 150
        inside = (np.log2(found.low) <= bend) & (np.log2(found.high) >= bend)
        assert inside.mean() >= 0.92
        assert np.log2(found.high / found.low).median() < 4
        assert found.slope_after.mean() == pytest.approx(slope, abs=0.003)
        assert abs(found.slope_before.mean()) < 0.003

    def test_finds_two_bends_in_order(self) -> None:
        rng = np.random.default_rng(1)
        x = np.log2(TOKENS[1:])
        rise = 0.25 + 0.06 * (np.maximum(0, x - 24) - np.maximum(0, x - 29))
        found = change_points(
            table({"t": rise + rng.normal(0, 0.005, 40)}, tokens=TOKENS[1:])
        ).table
        np.testing.assert_allclose(np.log2(found.tokens), [24, 29], atol=0.7)
        assert (found.low <= found.tokens).all() and (found.tokens <= found.high).all()

    def test_straight_lines_bend_at_the_nominal_rate(self) -> None:
        rng = np.random.default_rng(2)
        line = 0.01 * np.log2(TOKENS[1:])
        values = {f"t{i}": line + rng.normal(0, 0.01, 40) for i in range(400)}
        found = change_points(table(values, tokens=TOKENS[1:])).table
        assert 0.02 <= found.task.nunique() / 400 <= 0.08


class TestInformative:
    def test_names_the_phase_in_which_a_task_moves(self) -> None:
        rng = np.random.default_rng(0)
        tokens = np.linspace(1, 1000, 60)
        shapes = {
            "early": 0.25 + 0.3 * np.minimum(1, tokens / 300),
            "late": 0.25 + 0.3 * np.maximum(0, (tokens - 700) / 300),
            "never": np.full(60, 0.25),
        }
        true, wrong = {("0% to 30%", "early"), ("70% to 100%", "late")}, 0
        for _ in range(20):
            values = {name: v + rng.normal(0, 0.01, 60) for name, v in shapes.items()}
            found = informative_tasks(table(values, tokens=tokens), phases=(0, 0.3, 0.7, 1)).table
            told = set(zip(found.phase[found.informs], found.task[found.informs], strict=True))
            assert told >= true
            wrong += len(told - true)
        assert wrong <= 0.05 * 20 * 7 + 3

    def test_a_task_that_ranks_runs_informs_without_moving(self) -> None:
        rng = np.random.default_rng(1)
        told = []
        for _ in range(10):
            runs = [
                table({"t": 0.3 + 0.02 * i + rng.normal(0, 0.01, 20)}, run=f"r{i}", params=i + 1)
                for i in range(4)
            ]
            told += list(informative_tasks(pd.concat(runs), phases=(0.5, 1)).table.why)
        assert all("tells runs apart" in why for why in told)
        assert told.count("it tells runs apart") >= 8

    def test_noise_informs_no_more_often_than_claimed(self) -> None:
        rng = np.random.default_rng(2)
        wrong = 0
        for _ in range(40):
            runs = [table(noise(rng, 3, size=20), run=f"r{i}", params=i + 1) for i in range(3)]
            wrong += informative_tasks(pd.concat(runs), phases=(0, 0.5, 1)).table.informs.any()
        assert wrong / 40 <= 0.12  # 5% and two standard errors


def test_pythia_tasks_come_early_late_and_never(pythia) -> None:
    found = milestones(pythia).table.drop_duplicates(["run", "task"])
    onset = found.groupby("task").onset_tokens.median()
    assert found[found.task.isin(["logiqa", "wsc"])].state.eq(AT_CHANCE).all()
    early = onset[["sciq", "lambada_openai", "piqa", "arc_easy"]]
    late = onset[["winogrande", "arc_challenge"]]
    assert early.max() < 7e9 < 2e10 < late.min()
    smallest = found[found.run.str.contains("70m") & found.task.isin(["sciq", "lambada_openai"])]
    assert smallest.state.eq(FALLING).all()
    phases = informative_tasks(pythia).table.set_index(["phase", "task"])
    assert not phases.informs["1% to 10%", "logiqa"]
    gain = phases.gain.xs("lambada_openai", level="task")
    assert gain["1% to 10%"] > 2 * gain["50% to 100%"]
