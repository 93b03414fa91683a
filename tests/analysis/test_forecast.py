"""Forecasts on simulated suites, without other runs, and on bad input."""

import math

import numpy as np
import pandas as pd
import pytest

from jaxllm.analysis.baselines import BASELINES
from jaxllm.analysis.forecast import ALONE, TRANSFER, aligned, forecast
from tests.analysis.simulated_suite import TOKENS, suite


@pytest.fixture(scope="module")
def records() -> pd.DataFrame:
    return suite(0, tasks=12)


def begun(records: pd.DataFrame, run: str, fraction: float) -> pd.DataFrame:
    """The table as it was when `run` had seen this share of its tokens."""
    return records[(records.run != run) | (records.tokens <= fraction * TOKENS)]


def truth(records: pd.DataFrame, run: str) -> pd.Series:
    return records[(records.run == run) & (records.tokens == TOKENS)].set_index("task").value


def test_a_run_in_progress_is_forecast(records: pd.DataFrame) -> None:
    found = forecast(begun(records, "1000m-0", 0.3), "1000m-0", {"1000m-0": TOKENS})
    assert not found.refused and found.sentence.startswith("From 30% of its training")
    table = found.table.set_index("task")
    end = truth(records, "1000m-0")
    assert (table.method == TRANSFER).all() and (table.finished_runs == 11).all()
    error, naive = (table.forecast - end).abs().mean(), (table["last"] - end).abs().mean()
    assert error < 0.6 * naive
    assert ((table.low <= table.forecast) & (table.forecast <= table.high)).all()
    assert "learned from 11 other runs" in found.sentence


def test_runs_in_progress_do_not_count_as_finished(records: pd.DataFrame) -> None:
    planned = {run: TOKENS for run in records.run if run.endswith("-0")}
    found = forecast(begun(records, "1000m-0", 0.3), "1000m-0", planned)
    assert (found.table.finished_runs == 6).all()


def test_without_other_runs_the_run_s_own_past_decides() -> None:
    inside, naive, error = [], [], []
    records = suite(10, tasks=25)
    for run in records.run.unique():
        seen = begun(records, run, 0.3)
        found = forecast(seen[seen.run == run], run, {run: TOKENS})
        table = found.table.set_index("task")
        assert (table.method == ALONE).all() and "from this run alone" in found.sentence
        end = truth(records, run)[table.index]
        inside += list((table.low <= end) & (end <= table.high))
        error += list((table.forecast - end).abs())
        naive += list((table["last"] - end).abs())
    assert 0.85 < np.mean(inside) < 0.97
    assert np.mean(error) < 0.9 * np.mean(naive)


def test_a_straight_line_goes_on_with_a_slope_that_falls_as_a_power_of_the_tokens() -> None:
    tokens = np.array([1e9, 2e9, 4e9, 8e9, 16e9])
    rows = suite(0, sizes=(1e8,), twins=1, tasks=1).iloc[: len(tokens)].copy()
    rows["tokens"], rows["value"] = tokens.astype(int), 0.1 + 0.05 * np.log2(tokens / 1e9)
    rows["stderr"], rows["metric"] = 1e-6, "bits_per_byte"  # which has no bounds
    run = rows.run.iloc[0]
    found = forecast(rows, run, {run: 64e9}).table.iloc[0]
    # The integral of slope (tokens / 16e9)^-0.75 over log tokens.
    slope, power = 0.05 / np.log(2), 0.75
    assert found.forecast == pytest.approx(0.3 + slope * (1 - 4**-power) / power)


def test_noise_about_a_level_is_no_trend() -> None:
    errors, naive = [], []
    for seed in range(5):
        flat = suite(seed, growth=0.0, twins=1, tasks=30)
        for run in flat.run.unique():
            seen = begun(flat, run, 0.3)
            table = forecast(seen[seen.run == run], run, {run: TOKENS}).table
            chance = table.task.map(flat.groupby("task").chance.first())
            errors += list((table.forecast - chance).abs())
            naive += list((table["last"] - chance).abs())
    assert np.mean(errors) < np.mean(naive)


def test_refusals_are_findings(records: pd.DataFrame) -> None:
    nothing = forecast(records, "nobody", {"nobody": TOKENS})
    assert nothing.table.empty and "no task of nobody" in nothing.sentence
    failed = records.assign(value=math.nan)
    assert "value" in forecast(failed, "1000m-0", {"1000m-0": TOKENS}).refused


def test_one_checkpoint_still_gives_a_forecast(records: pd.DataFrame) -> None:
    run = "1000m-0"
    first = records[(records.run == run) & (records.tokens == records.tokens.min())]
    alone = forecast(first, run, {run: TOKENS}).table
    assert np.allclose(alone.forecast, alone["last"])
    assert (alone.high - alone.low > 0.5).all()  # one point tells no trend
    found = forecast(pd.concat([first, records[records.run != run]]), run, {run: TOKENS}).table
    assert (found.method == TRANSFER).all() and np.isfinite(found.forecast).all()


def test_bad_rows_are_counted_and_do_not_matter(records: pd.DataFrame) -> None:
    seen = begun(records, "1000m-0", 0.3)
    clean = forecast(seen, "1000m-0", {"1000m-0": TOKENS})
    spoilt = seen[seen.task == "task0"].assign(value=math.inf, tokens=lambda rows: rows.tokens + 1)
    doubled = pd.concat([seen.head(50).assign(value=0.5), spoilt, seen], ignore_index=True)
    found = forecast(doubled, "1000m-0", {"1000m-0": TOKENS})
    assert any("50 repeated" in note for note in found.notes)
    assert any(f"{len(spoilt)} of " in note for note in found.notes)
    pd.testing.assert_frame_equal(
        found.table.sort_values("task", ignore_index=True),
        clean.table.sort_values("task", ignore_index=True),
    )


def test_unknown_sizes_errors_and_chance_levels_are_survived(records: pd.DataFrame) -> None:
    bare = records.assign(params=0, stderr=math.nan, chance=math.nan)
    found = forecast(begun(bare, "1000m-0", 0.3), "1000m-0", {"1000m-0": TOKENS}).table
    assert np.isfinite(found[["forecast", "low", "high"]]).all(axis=None)
    assert (found.method == TRANSFER).all()


@pytest.mark.parametrize(
    "finished", [["1000m-1"], ["410m-0"], ["410m-0", "2800m-0"], ["1000m-1", "410m-0"]]
)
def test_few_finished_runs_are_used(finished: list[str]) -> None:
    errors, inside = [], []
    for seed in range(3):
        whole = suite(seed, tasks=25)
        seen = begun(whole, "1000m-0", 0.3)
        seen = seen[seen.run.isin(["1000m-0", *finished])]
        table = forecast(seen, "1000m-0", {"1000m-0": TOKENS}).table.set_index("task")
        assert (table.method == TRANSFER).all() and (table.finished_runs == len(finished)).all()
        end = truth(whole, "1000m-0")[table.index]
        errors.append(table[["forecast", *BASELINES]].sub(end, axis=0).abs())
        inside += list((table.low <= end) & (end <= table.high))
    mean = pd.concat(errors).mean()
    assert mean.forecast < mean.nearest_gain and mean.forecast < mean["last"]
    assert np.mean(inside) > 0.85


def test_a_share_stays_a_share_however_steep_its_rise() -> None:
    rows = suite(0, sizes=(1e8, 1e9), twins=1, tasks=3)
    rows["value"] = np.clip(np.log10(rows.tokens / 1e9) / 2, 0, 1)
    for seen in (rows, rows[rows.params == 1e9]):
        table = forecast(begun(seen, "1000m-0", 0.3), "1000m-0", {"1000m-0": TOKENS}).table
        assert table[["forecast", "low", "high"]].stack().between(0, 1).all()
        assert (table.forecast > table["last"]).all()


def test_the_interval_grows_with_the_distance_in_size() -> None:
    whole = suite(3, tasks=25)
    widths = []
    known = whole[whole.params < 2e8]
    for run in ("410m-0", "1000m-0", "2800m-0", "6900m-0"):
        seen = pd.concat([known, begun(whole[whole.run == run], run, 0.3)])
        table = forecast(seen, run, {run: TOKENS}).table
        widths.append((table.high - table.low).median())
    assert widths == sorted(widths) and widths[3] > 1.3 * widths[0]


def test_the_final_value_is_the_mean_of_the_last_checkpoints() -> None:
    rows = suite(0, sizes=(1e9,), twins=1, tasks=1).iloc[:4].copy()
    rows["tokens"], rows["value"] = [50, 96, 98, 100], [0.1, 0.2, 0.4, 0.6]
    (curve,), _ = aligned(rows)
    smooth = curve.smooth()
    assert smooth.values.tolist() == pytest.approx([0.1, 0.2, 0.5])
    assert smooth.progress[-1] == pytest.approx(math.sqrt(0.98))


def test_finished_runs_of_one_size_are_held_out_run_by_run() -> None:
    same = suite(1, sizes=(1e9,), twins=6, tasks=8)
    found = forecast(begun(same, "1000m-0", 0.3), "1000m-0", {"1000m-0": TOKENS})
    assert (found.table.method == TRANSFER).all()
    assert (found.table.finished_runs == 5).all()


def test_losses_are_forecast_too(records: pd.DataFrame) -> None:
    losses = records.assign(metric="bits_per_byte", value=2.0 - records.value, chance=math.nan)
    found = forecast(begun(losses, "1000m-0", 0.3), "1000m-0", {"1000m-0": TOKENS}).table
    end = truth(losses, "1000m-0")
    table = found.set_index("task")
    assert (table.forecast - end).abs().mean() < 0.6 * (table["last"] - end).abs().mean()


def test_curves_know_their_size_and_planned_ends() -> None:
    rows = suite(0, sizes=(1.00e9, 1.05e9, 1.3e9), twins=1, tasks=1)
    found, _ = aligned(rows, {"1300m-0": 2 * TOKENS})
    by_run = {one.curve.run: one for one in found}
    assert by_run["1000m-0"].size == by_run["1050m-0"].size != by_run["1300m-0"].size
    assert by_run["1300m-0"].progress[-1] == 0.5
    assert by_run["1000m-0"].progress[-1] == 1
