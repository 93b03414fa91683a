"""Correlated gains against planted truth and noise."""

import functools
import math
import re

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from jaxllm.analysis.correlations import correlations, gains_of
from jaxllm.analysis.curves import curves
from jaxllm.analysis.registry import Study
from tests.analysis import planted

table = functools.partial(planted.table, chance=math.nan)  # no task is left out


def test_equal_spearman_of_scipy() -> None:
    rng = np.random.default_rng(0)
    values = {"a": rng.normal(size=20), "b": rng.normal(size=20)}
    records = table(values, tokens=2.0 ** np.arange(20))
    row = correlations(Study(records), draws=20).table.iloc[0]
    a, b = (np.convolve(np.diff(v), [-0.5, 1, -0.5], "valid") for v in values.values())
    assert row.gain == pytest.approx(stats.spearmanr(a, b).statistic)
    assert row.n == 17


@pytest.mark.parametrize("kind", ["noise", "walks"])
def test_unrelated_tasks_are_found_at_the_nominal_rate(kind) -> None:
    """Noise in levels makes gains alternate: without Bartlett's factor 10 % are found."""
    rng = np.random.default_rng(2)
    pvalues = []
    for seed in range(12):
        values = rng.normal(size=(27, 8))
        values = np.cumsum(values, axis=0) if kind == "walks" else values
        found = correlations(Study(table({f"t{i}": values[:, i] for i in range(8)})), draws=100,
                             seed=seed)  # fmt: skip
        pvalues += list(found.table.gain_p)
    assert 0.01 <= np.mean(np.array(pvalues) <= 0.05) <= 0.075


def test_rising_together_is_not_growing_together() -> None:
    rng = np.random.default_rng(3)
    rise = np.linspace(0, 0.5, 40)[:, None]
    pvalues = []
    for seed in range(4):
        levels = rise + rng.normal(0, 0.02, (40, 8))
        values = {f"t{i}": levels[:, i] for i in range(8)}
        found = correlations(Study(table(values)), draws=100, seed=seed).table
        assert abs(found.gain.mean()) < 0.1
        pvalues += list(found.gain_p)
    assert np.mean(np.array(pvalues) <= 0.05) <= 0.08


@pytest.mark.parametrize("grid", [np.arange(1, 14), np.arange(1, 61), np.geomspace(1, 1e4, 25)])
@pytest.mark.parametrize("power", [0.0, 0.4])
def test_slowing_down_together_is_not_growing_together(grid, power) -> None:
    """Steady rises by log tokens, and power laws, whose gains all fall along the checkpoints."""
    rng = np.random.default_rng(7)
    rise = 0.6 * np.log(grid) / np.log(grid[-1]) if not power else 0.6 * (1 - grid**-power)
    runs = [
        table({f"t{i}": rise + rng.normal(0, 0.004, len(grid)) for i in range(8)},
              tokens=1000 * grid, run=f"r{run}", params=run + 1)
        for run in range(4)
    ]  # fmt: skip
    found = correlations(Study(pd.concat(runs)), draws=100).table
    assert (found.gain_q <= 0.05).sum() <= 1 and abs(found.gain.mean()) < 0.1


def test_common_steps_are_found_and_domains_told_apart() -> None:
    rng = np.random.default_rng(4)
    common = rng.normal(size=(60, 2))
    values, domains = {}, {}
    for i in range(6):
        steps = common[:, i % 2] + 0.5 * rng.normal(size=60)
        values[f"t{i}"], domains[f"t{i}"] = np.cumsum(steps), "xy"[i % 2]
    found = correlations(Study(table(values, domains=domains)), draws=200)
    same = found.table.same_domain
    assert (found.table.gain_q[same] < 0.05).all() and (found.table.gain_q[~same] > 0.05).all()
    numbers = re.search(r"at (\S+) within a domain and (\S+) across .* = (.*)\)", found.sentence)
    assert numbers is not None
    within, across, p = map(float, numbers.groups())
    assert within > 0.6 > 0.3 > across and p < 0.12


def test_runs_of_a_suite_are_not_independent_witnesses() -> None:
    """Four copies of one run say what the run says."""
    rng = np.random.default_rng(5)
    wrong = []
    for seed in range(25):
        values = {"a": np.cumsum(rng.normal(size=25)), "b": np.cumsum(rng.normal(size=25))}
        copies = [table(values, run=f"r{i}", params=i) for i in range(4)]
        found = correlations(Study(pd.concat(copies)), draws=40, seed=seed)
        wrong.append(found.table.gain_p[0] <= 0.05)
    assert np.mean(wrong) <= 0.16


def test_one_task_at_other_shots_is_no_pair() -> None:
    rng = np.random.default_rng(6)
    values = {
        "a": rng.normal(size=20),
        "a 5-shot": rng.normal(size=20),
        "b": rng.normal(size=20),
    }
    found = correlations(Study(table(values)), draws=20).table
    assert set(map(frozenset, zip(found.task_a, found.task_b, strict=True))) == {
        frozenset({"a", "b"}), frozenset({"a 5-shot", "b"})
    }  # fmt: skip


def test_gains_are_between_the_checkpoints_of_a_run_beyond_their_rate() -> None:
    grid = 2.0 ** np.arange(10)
    jump = np.log(grid) + (grid > 100)
    one = table({"a": jump}, tokens=grid, run="one")
    two = table({"a": 3 * np.log(grid[:9])}, tokens=3 * grid[:9], run="two", params=2)
    three = table({"a": jump[:8]}, tokens=grid[:8], run="three", params=3)
    gains, notes = gains_of(curves(pd.concat([one, two, three])).main().comparable())
    expected = [0, 0, 0, 0, -0.5, 1, -0.5, *np.zeros(6)]
    np.testing.assert_allclose(np.concatenate(gains)[:, 0], expected, atol=1e-9)
    assert "1 of 3 runs" in notes[0]


def test_pythia_tasks_slow_down_together(pythia) -> None:
    found = correlations(Study(pythia))
    pairs = found.table.set_index(["task_a", "task_b"])
    assert pairs.gain[("arc_easy", "sciq")] > 0.2 and (found.table.gain_q < 0.05).sum() <= 2
    assert not any({"logiqa", "wsc"} & set(pair) for pair in pairs.index)
    assert any("never score above a guess" in note for note in found.notes)


def test_tasks_of_every_other_checkpoint_are_compared() -> None:
    values = np.random.default_rng(5).normal(size=(40, 4))
    records = table({f"t{i}": values[:, i] for i in range(4)})
    records = records[(records.task == "t0") | (records.step % 2 == 0)]
    assert len(correlations(Study(records), draws=20).table) == 6
    at_last = records[(records.task < "t2") | (records.step == records.step.max())]
    assert list(correlations(Study(at_last), draws=20).table.n) == [16]
