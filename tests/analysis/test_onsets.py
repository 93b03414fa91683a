"""Onsets and gains against simulations whose truth is known."""

import math
import re

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from jaxllm.analysis import onsets as analysis
from jaxllm.analysis.curves import curves
from jaxllm.analysis.registry import Study
from jaxllm.report import sentences
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


def trajectories(frame):
    return analysis.trajectories(curves(frame).main(), frame)


def finding(frame):
    return trajectories(frame)[1].iloc[0]


@pytest.mark.parametrize(
    ("values", "state", "step"),
    [
        ([0.25, 0.24, 0.36, 0.40], analysis.LEFT, 20),
        ([0.25, 0.36, 0.26, 0.40, 0.5], analysis.LEFT, 30),  # one lucky checkpoint is none
        ([0.25, 0.24, 0.26, 0.40], analysis.PROVISIONAL, 30),
        ([0.25, 0.24, 0.26, 0.28], analysis.AT_CHANCE, math.nan),
        ([0.25, 0.10, 0.05, 0.01], analysis.AT_CHANCE, math.nan),  # below chance is not above it
        ([0.40, 0.41, 0.40, 0.42], analysis.AT_CHANCE, math.nan),  # so was the untrained model
        ([0.40, 0.41, 0.49, 0.52], analysis.PROVISIONAL, 30),  # both have an error
        ([0.40, 0.41, 0.52, 0.53], analysis.LEFT, 20),
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


PYTHIA = np.array([0, *2.0 ** np.arange(10), *range(1000, 144000, 16000)])


@pytest.mark.parametrize("correlation", [0.0, 0.9, 1.0])  # from one checkpoint to the next
@pytest.mark.parametrize(
    ("clock", "model", "guess", "n"),
    [
        (PYTHIA, 0.523, 0.5, 1838),  # prefers short answers, which happen to be right
        (np.arange(12) * 1e9, 0.30, 0.25, 300),
        (1e9 * np.arange(1, 7), 0.635, 0.635, 104),  # always the majority class
        (np.array([3e11]), 0.02, 0.02, 500),
    ],
)
def test_an_untrained_model_leaves_the_guess_in_one_run_of_a_thousand(
    clock, model, guess, n, correlation
) -> None:
    rng = np.random.default_rng(0)
    noise = rng.standard_normal((10_000, len(clock)))
    for at in range(1, len(clock)):
        fresh = math.sqrt(1 - correlation**2) * noise[:, at]
        noise[:, at] = correlation * noise[:, at - 1] + fresh
    values = stats.binom.ppf(stats.norm.cdf(noise), n, model) / n
    stderr = np.sqrt(values * (1 - values) / (n - 1))
    above = analysis.above(clock, values, stderr, guess, n)
    found = sum(one[-1] or analysis.durable(one) is not None for one in above if one.any())
    assert found <= len(above) / 1000


def test_a_prior_for_one_answer_is_no_capability() -> None:
    flips = [0.38, 0.38, 0.62, 0.62, 0.62, 0.62, 0.62, 0.62]
    frame = points(flips, chance=0.5, stderr=0.0085).assign(n=3270)
    assert finding(frame).state == analysis.LEFT  # where the labels are not known
    assert finding(frame.assign(majority=0.62)).state == analysis.AT_CHANCE
    early = frame.assign(majority=[math.nan] * 7 + [0.62])  # records from before it was recorded
    assert finding(early).state == analysis.AT_CHANCE


def test_onsets_of_the_simulation_are_where_the_truth_leaves_chance(tmp_path) -> None:
    found = trajectories(Run.open(simulate(tmp_path)).records())[1]
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


values = st.lists(st.floats(0, 1) | st.just(math.nan), min_size=1, max_size=8)


@settings(max_examples=60, deadline=None)
@given(values=values, metric=st.sampled_from(["accuracy", "bits_per_byte"]), chance=st.booleans())
def test_shares_are_shares(values, metric, chance) -> None:
    frame = points(values, metric=metric, chance=0.25 if chance else math.nan)
    shares = analysis.gain_share(*trajectories(frame))
    assert len(shares) == len(values)
    assert shares.share.dropna().between(0, 1).all()
    assert list(shares.share.isna()) == list(shares.value.isna())


def test_the_best_checkpoint_has_the_whole_gain() -> None:
    shares = analysis.gain_share(*trajectories(points([0.25, 0.35, 0.65, 0.45]))).share
    np.testing.assert_allclose(shares, [0, 0.25, 1, 0.5])
    falling = points([4.0, 3.0, 2.0], metric="bits_per_byte", chance=math.nan)
    np.testing.assert_allclose(analysis.gain_share(*trajectories(falling)).share, [0, 0.5, 1])


def test_what_is_shown_is_marked_by_the_same_definition() -> None:
    frame = points([0.25, 0.36, 0.26, math.nan, 0.40, 0.5])
    shown, found = trajectories(frame)
    assert list(shown.above) == [False, True, False, False, True, True]
    assert list(shown.step[shown.left_chance]) == [40] == list(found.step)


def test_a_score_that_falls_back_has_not_left_chance() -> None:
    assert finding(points([0.25] * 5 + [0.4] * 5 + [0.25] * 5)).state == analysis.AT_CHANCE


def test_another_version_of_the_task_is_no_learning() -> None:
    old = points([0.25, 0.24, 0.26])
    new = points([0.45, 0.46, 0.45]).assign(step=[30, 40, 50], tokens=[300, 400, 500])
    found = finding(pd.concat([old, new.assign(task_version="2", chance=0.45)]))
    assert found.state == analysis.AT_CHANCE and found["first"] == 0.45


def test_a_finished_model_without_a_step_is_not_an_untrained_one() -> None:
    one = points([0.788], chance=0.5, stderr=0.0095).assign(tokens=math.nan)
    found = finding(one)
    assert found.state == analysis.PROVISIONAL and math.isnan(found.step)
    assert sentences.of_task(trajectories(one)[1]).startswith("Stands at 78.8%")
    assert "1 of 1 capability stands above chance: t" in sentences.headline(trajectories(one)[1])


def test_what_the_first_checkpoint_had_left_it_left_at_that_time_or_before() -> None:
    late = points([0.5, 0.6, 0.7]).assign(step=[10, 20, 30], tokens=[100, 200, 300])
    found = trajectories(late)[1]
    assert sentences.of_task(found).startswith("Left chance at 100 tokens (step 10) or before")
    assert "or before: t." in sentences.headline(found)


def test_what_is_below_chance_is_not_said_to_be_at_it() -> None:
    records = points(np.linspace(0.25, 0.1, 12), stderr=0.01, task="lost")
    findings = trajectories(records)[1]
    assert sentences.of_task(findings) == "Not above chance: 10.0% ± 1.0, chance 25%."
    assert list(sentences.remainder(findings)) == [
        "Not above chance: lost (10.0% ± 1.0, chance 25%)."
    ]


def test_all_that_left_chance_at_one_checkpoint_are_named() -> None:
    late = points([0.25, 0.25, 0.25, 0.6, 0.7])
    rows = [late, points([0.25, 0.6, 0.7, 0.7, 0.7]).assign(task="a")]
    both = pd.concat([*rows, rows[1].assign(task="b")])
    headline = sentences.headline(trajectories(both)[1])
    assert re.search(r"from a and b at \d+ tokens to t at", headline)
    runs = pd.concat([both, both.assign(run="other")])
    assert re.search(r"first a and b \(.*\), last t \(", sentences.of_many(trajectories(runs)[1]))
    tied = sentences.of_many(trajectories(runs[runs.task != "t"])[1])
    assert "first a and b (median" in tied and "last" not in tied


def test_a_first_checkpoint_that_was_late_dates_no_onset() -> None:
    """A run that begins at a late checkpoint, above chance, says nothing on when that came."""
    whole = points([0.25, 0.25, 0.6, 0.7, 0.7, 0.7])
    late = points([0.7, 0.7, 0.7]).assign(run="late", step=[60, 70, 80], tokens=[600, 700, 800])
    text = sentences.of_many(trajectories(pd.concat([whole, late]))[1])
    at = whole.tokens.iloc[2]
    assert (
        f"1 of them at their first checkpoint or before; of the others first t (median {at}" in text
    )
    assert "700" not in text and "600" not in text


def test_a_share_of_stereotypes_is_no_capability() -> None:
    runs = [points([0.5, 0.6, 0.7], metric="pct_stereotype", task="crows").assign(run=run)
            for run in "ab"]  # fmt: skip
    frame = pd.concat(runs)
    shown, found = trajectories(frame)
    assert set(found.state) == {analysis.NO_DIRECTION}
    assert sentences.of_task(found).endswith("neither is better.")
    assert not analysis.gain_share(shown, found).share.any()
    study = Study(pd.concat([frame, points([0.3, 0.5, 0.7])]))
    assert set(study.curves.table.task) == {"t"}
    assert any("crows" in note and "neither better" in note for note in study.curves.notes)


@pytest.mark.parametrize("known", [True, False])
def test_noise_makes_no_gain(known) -> None:
    rng = np.random.default_rng(0)
    noise = 0.25 + rng.normal(0, 0.02, (200, 12))
    fields = {"chance": 0.25, "stderr": 0.02} if known else {"chance": math.nan, "stderr": math.nan}
    frames = [points(row, task=f"t{i}", **fields) for i, row in enumerate(noise)]
    shares = analysis.gain_share(*trajectories(pd.concat(frames)))
    assert (shares.groupby("task").share.max() > 0).mean() <= 0.01
    rising = points(0.3 + 0.02 * np.arange(12), **fields)
    assert analysis.gain_share(*trajectories(rising)).share.max() == 1


def test_tasks_at_a_guess_in_all_runs_are_left_out() -> None:
    high, flat = points([0.3, 0.5, 0.6], task="a"), points([0.25, 0.24, 0.26], task="b")
    kept = analysis.off_guess(curves(pd.concat([high, flat])).main())
    assert set(kept.table.task) == {"a"} and kept.notes[-1].endswith("a guess: 1 of the tasks.")
