"""Onsets and gains against simulations whose truth is known."""

import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxllm.analysis import capabilities as analysis
from jaxllm.run.records import COLUMNS, Record
from jaxllm.run.run import Run
from tests.simulated_run import STEPS, TASKS, simulate, true_value


def points(values, *, chance=0.25, stderr=0.02, metric="accuracy", task="t", **fields):
    rows = [
        Record(
            run="r", family="f", params=1, step=10 * i, tokens=100 * i, flops=1e6 * i, task=task,
            domain="d", shots=0, metric=metric, value=value, stderr=stderr, n=500, chance=chance,
            primary=True, **fields,
        )
        for i, value in enumerate(values)
    ]  # fmt: skip
    return pd.DataFrame(rows, columns=COLUMNS)


def finding(frame):
    return analysis.onsets(analysis.charted(frame)).iloc[0]


@pytest.mark.parametrize(
    ("values", "state", "step"),
    [
        ([0.25, 0.24, 0.30, 0.40], analysis.LEFT, 20),
        ([0.25, 0.30, 0.26, 0.40, 0.5], analysis.LEFT, 30),  # one lucky checkpoint is none
        ([0.25, 0.24, 0.26, 0.40], analysis.PROVISIONAL, 30),
        ([0.25, 0.24, 0.26, 0.28], analysis.AT_CHANCE, math.nan),
        ([0.25, 0.10, 0.05, 0.01], analysis.AT_CHANCE, math.nan),  # below chance is not above it
        ([0.40, 0.41, 0.40, 0.42], analysis.AT_CHANCE, math.nan),  # so was the untrained model
        ([0.40, 0.41, 0.46, 0.47], analysis.LEFT, 20),
        ([math.nan] * 3, analysis.NO_VALUE, math.nan),
    ],
)
def test_onset(values, state, step) -> None:
    found = finding(points(values))
    assert found.state == state
    assert found.step == step or (math.isnan(found.step) and math.isnan(step))


def test_without_chance_or_doubt_nothing_is_claimed() -> None:
    assert finding(points([0.2, 0.9, 0.9], chance=math.nan)).state == analysis.NO_CHANCE_LEVEL
    assert finding(points([0.2, 0.9, 0.9], stderr=math.nan)).state == analysis.NO_STANDARD_ERROR


def test_a_missing_checkpoint_does_not_hide_an_onset() -> None:
    assert finding(points([0.25, 0.40, math.nan, 0.50])).step == 10


def test_guessing_rarely_leaves_chance() -> None:
    """12 checkpoints of pure guessing: two neighbours beyond 2 SE are expected in under 1%."""
    rng = np.random.default_rng(0)
    values = rng.binomial(500, 0.25, size=(400, 12)) / 500
    frames = [
        points(row, task=f"t{i}").assign(stderr=np.sqrt(row * (1 - row) / 500))
        for i, row in enumerate(values)
    ]
    found = analysis.onsets(analysis.charted(pd.concat(frames)))
    assert (found.state == analysis.LEFT).mean() < 0.02
    assert (found.state == analysis.PROVISIONAL).mean() < 0.06


def test_onsets_of_the_simulation_are_where_the_truth_leaves_chance(tmp_path) -> None:
    found = analysis.onsets(analysis.charted(Run(simulate(tmp_path)).records()))
    found = found.set_index("task")
    for task in TASKS:
        if math.isnan(task.chance):
            assert found.state[task.name] == analysis.NO_CHANCE_LEVEL
            continue
        if task.name == "reference_ending":
            assert found.state[task.name] == analysis.AT_CHANCE
            continue
        # Expected excess over chance, in standard errors, around the step that was found.
        at = STEPS.index(int(found.step[task.name]))
        z = [_excess(task, STEPS[i]) for i in range(len(STEPS))]
        assert z[min(at + 1, len(STEPS) - 1)] > 1.0, task.name
        assert max(z[: max(at - 1, 0)], default=0.0) < 4.0, task.name


def _excess(task, step: int) -> float:
    p = true_value(task, step / STEPS[-1])
    return (p - task.chance) / max(math.sqrt(p * (1 - p) / task.n), 1e-9)


def test_missing_records_become_rows_that_say_so() -> None:
    both = pd.concat([points([0.2, 0.3, 0.4]), points([0.2, 0.3, 0.4], task="u")])
    lacking = both[~((both.task == "u") & (both.step == 10))]
    charted = analysis.charted(lacking)
    row = charted[(charted.task == "u") & (charted.step == 10)].iloc[0]
    assert row.status == "no record"
    assert math.isnan(row.value)
    assert row.tokens == 100


def test_failed_checkpoints_stay() -> None:
    failed = points([math.nan], status="ValueError: no").assign(step=99, tokens=990)
    charted = analysis.charted(pd.concat([points([0.2, 0.3]), failed]))
    assert list(charted.step) == [0, 10, 99]
    assert charted.status.iloc[-1] == "ValueError: no"


values = st.lists(st.floats(0, 1) | st.just(math.nan), min_size=1, max_size=8)


@settings(max_examples=60, deadline=None)
@given(values=values, metric=st.sampled_from(["accuracy", "bits_per_byte"]), chance=st.booleans())
def test_shares_are_shares(values, metric, chance) -> None:
    charted = analysis.charted(points(values, metric=metric, chance=0.25 if chance else math.nan))
    shares = analysis.gain_share(charted, analysis.onsets(charted))
    assert len(shares) == len(values)
    assert shares.share.dropna().between(0, 1).all()
    assert list(shares.share.isna()) == list(charted.value.isna())


def test_the_best_checkpoint_has_the_whole_gain() -> None:
    charted = analysis.charted(points([0.25, 0.35, 0.65, 0.45]))
    shares = analysis.gain_share(charted, analysis.onsets(charted)).share
    np.testing.assert_allclose(shares, [0, 0.25, 1, 0.5])
    falling = analysis.charted(points([4.0, 3.0, 2.0], metric="bits_per_byte", chance=math.nan))
    shares = analysis.gain_share(falling, analysis.onsets(falling)).share
    np.testing.assert_allclose(shares, [0, 0.5, 1])
