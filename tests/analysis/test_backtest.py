"""The backtest reads nothing it should not, is calibrated, and reaches its target on Pythia."""

import dataclasses
import itertools
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from jaxllm.analysis.backtest import Backtest, backtest
from jaxllm.analysis.baselines import BASELINES, by_size
from jaxllm.analysis.benchmarks import OTHER_TASKS, benchmarks, pooled
from jaxllm.analysis.forecast import ALONE, TRANSFER, aligned, predict
from jaxllm.analysis.registry import Study
from jaxllm.interop.importers import open_source
from tests.analysis import published
from tests.analysis.simulated_suite import TOKENS, suite

PREDICTED = ["run", "task", *BASELINES, "forecast", "low", "high", "stderr", "finished_runs"]


@pytest.fixture(scope="module")
def simulated() -> Backtest:
    return backtest(Study(suite(2, tasks=25)), fractions=(0.1, 0.3, 0.5))


def one_size_held_out(found: Backtest) -> Backtest:
    return dataclasses.replace(found, points=found.points[found.points.held_out == 1])


def test_the_forecast_beats_every_baseline_and_its_intervals_hold(simulated: Backtest) -> None:
    at = one_size_held_out(simulated).summary(["fraction"]).set_index("fraction")
    assert (at.reduction > 0.1).all()
    assert at.coverage.between(0.85, 0.97).all()
    assert at.mae[0.5] < at.mae[0.1]


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


def test_a_run_in_progress_is_not_taken_for_a_finished_one() -> None:
    records = suite(4, tasks=5)
    mine = records.run == "1000m-1"
    study = Study(records[~mine | (records.tokens < 0.99 * TOKENS)])
    running = dataclasses.replace(study, planned_tokens={"1000m-1": float(TOKENS)})
    of_all, of_finished = (backtest(one, fractions=(0.3,)).points for one in (study, running))
    pd.testing.assert_frame_equal(
        of_finished, backtest(Study(records[~mine]), fractions=(0.3,)).points
    )
    assert set(of_all.run) - set(of_finished.run) == {"1000m-1"}


def test_of_pure_noise_nothing_is_forecast() -> None:
    found = backtest(Study(suite(5, growth=0.0, tasks=40)), fractions=(0.3,))
    found = one_size_held_out(found)
    points = found.points
    chance = points.task.map(suite(5, growth=0.0, tasks=40).groupby("task").chance.first())
    claimed = (points.low > points["last"]) | (points.high < points["last"])
    assert claimed.mean() < 0.1
    assert (points.forecast - chance).abs().mean() < 0.5 * (points["last"] - chance).abs().mean()
    assert 0.86 < found.summary(["metric"]).coverage[0] < 0.94


def test_intervals_hold_at_other_levels() -> None:
    for level in (0.5, 0.8):
        found = backtest(Study(suite(6, tasks=25)), fractions=(0.3,), level=level)
        found = one_size_held_out(found)
        assert abs(found.summary(["metric"]).coverage[0] - level) < 0.09


def test_scores_by_hand() -> None:
    points = pd.DataFrame(
        {
            "fraction": 0.3, "run": ["a", "b", "c"], "task": "t", "shots": 0, "metric": "accuracy",
            "task_version": "1", "last": [0.3, 0.4, 0.5],
            "forecast": [0.5, 0.4, 0.6], "low": [0.4, 0.3, 0.5], "high": [0.6, 0.5, 0.7],
            "truth": [0.5, 0.6, 0.7], "stderr": 0.01, "method": "other runs", "recent": 0.1,
            "nearest_gain": [0.4, 0.5, 0.6], "gain_line": [0.5, 0.6, np.nan], "final_line": 0.3,
        }
    )  # fmt: skip
    scores = Backtest("", points=points).summary(["metric"]).iloc[0]
    assert scores.mae == pytest.approx(0.1) and scores.mae_last == pytest.approx(0.2)
    assert np.isnan(scores.mae_gain_line)  # which was not known for all three
    assert scores.mae_nearest_gain == pytest.approx(0.1) == scores.mae_best
    assert scores.reduction == pytest.approx(0.0, abs=1e-9)
    assert scores.coverage == pytest.approx(2 / 3)


def test_baselines_by_hand() -> None:
    sizes = np.log([1e8, 1e9, 1e9])
    now, end = np.array([0.2, 0.4, 0.4]), np.array([0.3, 0.6, 0.6])
    nearest, gains, finals = by_size(0.5, now, end, sizes, np.log(1e10))
    assert nearest == pytest.approx(0.7)
    assert gains == pytest.approx(0.8) and finals == pytest.approx(0.9)


def test_forecasts_from_afar_are_scored_by_distance(simulated: Backtest) -> None:
    far = simulated.points[simulated.points.held_out > 1]
    assert set(simulated.points.far) == {"×1.7", "×4", "×12", "×30"}
    assert (far.distance[far.held_out == 5].max()) == pytest.approx(6.9e9 / 70e6)
    assert len(simulated.lines) == 4 and "the gain of the nearest size" in " ".join(simulated.lines)
    by = simulated.summary(["far"])
    assert by.coverage.between(0.85, 1.0).all()


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
    """What the report shows: MMLU and BLiMP pooled."""
    records, _ = pooled(open_source(f"pythia:{shared_data / 'reference' / 'pythia'}").records)
    return backtest(Study(records[records.metric == "accuracy"]), fractions=(0.3,))


def test_pythia_is_forecast_better_than_by_what_knows_the_sizes(pythia: Backtest) -> None:
    near = one_size_held_out(pythia)
    assert near.points.task.nunique() == 19
    by_task = near.summary(["task"])
    baselines = by_task[[f"mae_{name}" for name in BASELINES]].mean()
    best = baselines.idxmin()
    assert by_task.mae.mean() < 0.85 * baselines[best]
    # One value that never changes counts as equal.
    assert (by_task.mae <= by_task[best] + 1e-4).all()
    assert 0.85 < near.summary(["metric"]).coverage[0] < 0.95


def test_pythia_from_afar(pythia: Backtest) -> None:
    far = pythia.summary(["far"])
    assert (far.n > 100).all() and len(far) == 4
    assert (far.reduction > 0).all()
    assert far.coverage.between(0.85, 0.95).all()
    # Most of them, and all at ×30, know one or two sizes only.
    by_known = pythia.summary(["held_out"])
    assert by_known.coverage.between(0.85, 0.98).all()


def test_the_olmo_ladder_is_forecast_better_than_by_what_knows_the_sizes(shared_data: Path) -> None:
    found = backtest(Study(published.ladder(shared_data)), fractions=(0.3,))
    near = one_size_held_out(found).summary(["metric"]).iloc[0]
    assert near.reduction > 0.18 and 0.85 < near.coverage < 0.95
    assert found.summary(["far"]).coverage.between(0.85, 0.95).all()


def test_runs_that_differ_in_tokens_only_are_told_apart(shared_data: Path) -> None:
    """Against the same runs as if all had the same tokens."""
    known = [one for one in aligned(published.ladder(shared_data, "*xC"))[0] if one.finished]
    off = []
    for curves in (known, [dataclasses.replace(one, tokens=1e9) for one in known]):
        held_out = [one for one in curves if one.size == 3]
        table = predict(held_out, [one for one in curves if one.size != 3], 0.3)
        off.append((table.forecast - [one.smooth().values[-1] for one in held_out]).abs().mean())
    assert off[0] < 0.92 * off[1]


def test_a_single_twin_is_used_and_its_gain_not_taken_for_certain(shared_data: Path) -> None:
    records = published.ladder(shared_data, "1B-*xC*")
    known = [one for one in aligned(records[records.metric == "accuracy"])[0] if one.finished]
    runs = sorted({one.curve.run for one in known})
    of = {run: [one for one in known if one.curve.run == run] for run in runs}
    tables = [
        predict(of[run], of[twin], 0.3).assign(truth=[one.smooth().values[-1] for one in of[run]])
        for run, twin in itertools.permutations(runs, 2)
    ]
    points = pd.concat(tables)
    assert len(points) > 500 and (points.finished_runs == 1).all()
    off = points[["forecast", "nearest_gain"]].sub(points.truth, axis=0).abs().mean()
    assert off.forecast < off.nearest_gain
    inside = (points.low <= points.truth) & (points.truth <= points.high)
    assert 0.85 < inside.mean() < 0.98


@pytest.mark.parametrize("run", ["Amber", "olmo-1b"])
def test_alone_a_run_is_forecast_better_than_by_its_last_value(
    run: str, shared_data: Path, tmp_path: Path
) -> None:
    source = f"wandb:{shared_data / 'reference' / 'amber'}?run=Amber&params=6.74e9"
    if run == "olmo-1b":
        scores = pd.read_csv(shared_data / "reference" / "olmo_trajectories" / "olmo-1b.csv.gz")
        scores = scores[scores.kind == "downstream"]
        names = {"acc": "accuracy", "len_norm": "accuracy_per_char", "f1": "f1"}
        scores.assign(metric=scores.metric.map(names)).to_csv(tmp_path / "olmo.csv")
        source = f"csv:{tmp_path / 'olmo.csv'}?run='olmo-1b'&params='1.18e9'"
    records = open_source(source).records
    scores = backtest(Study(records[~records.metric.eq("perplexity")])).summary(["fraction"])
    assert len(scores) == 4 and (scores.mae < 0.9 * scores.mae_last).all()


def test_tasks_of_every_other_checkpoint_are_finished(shared_data: Path) -> None:
    amber = f"wandb:{shared_data / 'reference' / 'amber'}?run=Amber&params=6.74e9"
    found = backtest(Study(open_source(amber).records), fractions=(0.3,))
    assert not found.notes
    assert {"piqa", "boolq", "winogrande"} <= set(found.points.task)
