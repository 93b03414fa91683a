"""The backtest reads nothing it should not, is calibrated, and reaches its target on Pythia."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from jaxllm.analysis.backtest import Backtest, backtest
from jaxllm.analysis.benchmarks import OTHER_TASKS, benchmarks
from jaxllm.analysis.forecast import ALONE, TRANSFER
from jaxllm.analysis.registry import Study
from jaxllm.interop.importers import open_source
from tests.analysis.simulated_suite import TOKENS, suite

PREDICTED = [
    "run",
    "task",
    "last",
    "log_linear",
    "forecast",
    "low",
    "high",
    "stderr",
    "finished_runs",
]


@pytest.fixture(scope="module")
def simulated() -> Backtest:
    return backtest(Study(suite(2, tasks=25)), fractions=(0.1, 0.3, 0.5))


def test_the_forecast_beats_both_baselines_and_its_intervals_hold(simulated: Backtest) -> None:
    at = simulated.summary(["fraction"]).set_index("fraction")
    assert (at.reduction > 0.25).all()
    assert at.coverage.between(0.85, 0.97).all()
    assert at.mae.is_monotonic_decreasing


@pytest.mark.parametrize("method", [TRANSFER, ALONE])
def test_nothing_after_the_cut_and_no_twin_is_read(method: str) -> None:
    records = suite(3, tasks=5)
    held_out = records.run.isin(["1000m-0", "1000m-1"])
    if method == ALONE:  # the two runs of one size have nothing but their own past
        records, held_out = records[held_out], held_out[held_out]
    later = held_out & (records.tokens > 0.3 * TOKENS)
    changed = records.copy()
    changed.loc[later, "value"] = np.random.default_rng(0).uniform(size=later.sum())
    changed.loc[later, "stderr"] *= 7
    before, after = (
        found.points[found.points.run.isin(["1000m-0", "1000m-1"])]
        for found in (backtest(Study(each), fractions=(0.3,)) for each in (records, changed))
    )
    assert (before.method == method).all()
    pd.testing.assert_frame_equal(before[PREDICTED], after[PREDICTED])
    assert not np.allclose(before.truth, after.truth)


def test_a_twin_adds_nothing() -> None:
    records = suite(4, tasks=5)
    without = records[records.run != "1000m-1"]
    both, one = (
        found.points[found.points.run == "1000m-0"].reset_index(drop=True)
        for found in (backtest(Study(each), fractions=(0.3,)) for each in (records, without))
    )
    pd.testing.assert_frame_equal(both[PREDICTED], one[PREDICTED])


def test_of_pure_noise_nothing_is_forecast() -> None:
    found = backtest(Study(suite(5, growth=0.0, tasks=40)), fractions=(0.3,))
    points = found.points
    chance = points.task.map(suite(5, growth=0.0, tasks=40).groupby("task").chance.first())
    claimed = (points.low > points["last"]) | (points.high < points["last"])
    assert claimed.mean() < 0.1
    assert (points.forecast - chance).abs().mean() < 0.5 * (points["last"] - chance).abs().mean()
    assert 0.86 < found.summary(["metric"]).coverage[0] < 0.94


def test_intervals_hold_at_other_levels() -> None:
    for level in (0.5, 0.8):
        found = backtest(Study(suite(6, tasks=25)), fractions=(0.3,), level=level)
        assert abs(found.summary(["metric"]).coverage[0] - level) < 0.09


def test_scores_by_hand() -> None:
    points = pd.DataFrame(
        {
            "fraction": 0.3, "run": ["a", "b", "c"], "task": "t", "shots": 0, "metric": "accuracy",
            "task_version": "1", "last": [0.3, 0.4, 0.5], "log_linear": [0.5, 0.5, 0.5],
            "forecast": [0.5, 0.4, 0.6], "low": [0.4, 0.3, 0.5], "high": [0.6, 0.5, 0.7],
            "truth": [0.5, 0.6, 0.7], "stderr": 0.01, "method": "other runs",
        }
    )  # fmt: skip
    scores = Backtest("", points=points).summary(["metric"]).iloc[0]
    assert scores.mae == pytest.approx(0.1) and scores.mae_last == pytest.approx(0.2)
    assert scores.mae_log_linear == pytest.approx(0.1)
    assert scores.reduction == pytest.approx(0.0, abs=1e-9)
    assert scores.coverage == pytest.approx(2 / 3)


def test_benchmarks_are_found_by_their_names() -> None:
    tasks = [f"mmlu_{i} 5-shot" for i in range(5)] + ["arc_easy", "arc_challenge"]
    found = benchmarks(tasks)
    assert {found[task] for task in tasks[:5]} == {"mmlu"}
    assert found["arc_easy"] == OTHER_TASKS


def test_what_cannot_be_tested_is_refused() -> None:
    ends = suite(0, tasks=2)
    ends = ends[ends.tokens == TOKENS]
    found = backtest(Study(ends))
    assert "early enough" in found.sentence and found.table.empty
    assert "one point" in found.notes[-1]
    assert backtest(Study(ends.iloc[:0])).refused


@pytest.fixture(scope="module")
def pythia(shared_data: Path) -> Backtest:
    records = open_source(f"pythia:{shared_data / 'reference' / 'pythia'}").records
    return backtest(Study(records[records.metric == "accuracy"]), fractions=(0.3,))


def test_pythia_is_forecast_a_quarter_better_than_by_the_baselines(pythia: Backtest) -> None:
    exams = pythia.points[pythia.points.benchmark != "blimp"]  # the tasks that all runs were given
    assert exams.task.str.removesuffix(" 5-shot").nunique() == 65
    older = exams.run.str.endswith("-v0")
    twice = exams.run.str.contains("deduped")
    parts = [exams, exams[older], exams[~older], exams[exams.shots == 0], exams[exams.shots == 5]]
    for part in [*parts, exams[twice], exams[~twice]]:
        scores = Backtest("", points=part).summary(["metric"]).iloc[0]
        assert scores.reduction > 0.25
        assert 0.85 < scores.coverage < 0.95
    by = pythia.summary(["benchmark"]).set_index("benchmark")
    assert by.reduction[OTHER_TASKS] > 0.55  # the eight tasks outside MMLU and BLiMP
    assert by.reduction["mmlu"] > 0.22  # where noise between checkpoints is half of what is left
    assert by.reduction["blimp"] > 0.05  # of v0 alone, where small models forget late
    assert by.coverage.between(0.85, 0.96).all()
