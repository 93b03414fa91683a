"""The batched robust fit against SciPy's optimisers, and what reaches it of bad input."""

import dataclasses
import math

import numpy as np
import pandas as pd
import pytest
from scipy import optimize, special

from jaxllm.analysis import scaling_fit
from jaxllm.analysis.scaling_fit import Estimate
from jaxllm.run.records import COLUMNS, Record


def saturating(x):
    """E + A exp(-c x) with rows (log A, c, E)."""
    return lambda p: p[:, [2]] + np.exp(p[:, [0]] - p[:, [1]] * x)


@pytest.mark.parametrize("delta", [math.inf, 0.02])
def test_it_finds_the_optimum_that_scipy_finds(delta) -> None:
    rng = np.random.default_rng(0)
    x = np.linspace(0, 4, 40)
    y = 0.5 + 2 * np.exp(-0.7 * x) + rng.standard_t(2, 40) * 0.02
    model = saturating(x)
    found, objective = scaling_fit.fit(model, y, np.array([[0.0, 1.0, 0.0]]), delta=delta)
    loss = {"loss": "linear"} if math.isinf(delta) else {"loss": "huber", "f_scale": delta}
    theirs = optimize.least_squares(
        lambda p: model(p[None])[0] - y, [0.0, 1.0, 0.0], xtol=1e-12, ftol=1e-12, **loss
    )
    np.testing.assert_allclose(objective[0], theirs.cost, rtol=1e-5)
    np.testing.assert_allclose(found[0], theirs.x, rtol=2e-3)


def test_bounds_hold_and_the_others_move_on() -> None:
    x = np.linspace(0, 4, 40)
    y = 0.5 + 2 * np.exp(-0.7 * x)
    bounds = {"low": [-5, 0, -1], "high": [5, 0.5, 1]}
    found, objective = scaling_fit.fit(saturating(x), y, np.array([[0.0, 0.2, 0.0]]), **bounds)
    theirs = optimize.least_squares(
        lambda p: saturating(x)(p[None])[0] - y,
        [0.0, 0.2, 0.0],
        bounds=([-5, 0, -1], [5, 0.5, 1]),
        xtol=1e-12,
    )
    assert found[0, 1] == 0.5
    np.testing.assert_allclose(objective[0], theirs.cost, rtol=1e-4)


def test_weights_are_copies_of_points() -> None:
    rng = np.random.default_rng(1)
    x = np.linspace(0, 4, 12)
    y = 0.5 + 2 * np.exp(-0.7 * x) + rng.normal(0, 0.05, 12)
    counts = scaling_fit.resamples(12, 1, seed=3)[0]
    start = np.array([[0.5, 0.7, 0.4]])
    weighted, _ = scaling_fit.fit(saturating(x), y, start, weights=counts)
    again = np.repeat(np.arange(12), counts.astype(int))
    copied, _ = scaling_fit.fit(saturating(x[again]), y[again], start)
    np.testing.assert_allclose(weighted, copied, rtol=1e-4)


def test_huber_is_the_textbook_one() -> None:
    r = np.linspace(-3, 3, 61)
    np.testing.assert_allclose(scaling_fit.huber(r, 0.7), special.huber(0.7, r), atol=1e-12)


def test_groups_are_drawn_whole() -> None:
    groups = np.array(["a", "a", "b", "c", "c", "c"])
    drawn = scaling_fit.resamples(6, 50, seed=0, groups=groups)
    assert (drawn[:, 0] == drawn[:, 1]).all() and (drawn[:, 3] == drawn[:, 5]).all()
    assert (drawn[:, [0, 2, 3]].sum(axis=1) == 3).all()


def test_of_bad_points_it_is_said_what_was_left_out() -> None:
    frame = pd.DataFrame(
        {"run": list("aabbc"), "params": [1e6, 1e6, 2e6, math.nan, "x"], "loss": [3, 5, 2, 2, 2.0]}
    )
    good, notes = scaling_fit.usable(frame, ("params", "loss"))
    assert good.loss.tolist() == [4.0, 2.0]
    assert notes == ("2 of 5 points lack a valid number", "1 repeated points were averaged")
    nothing, notes = scaling_fit.usable(frame, ("params", "tokens"))
    assert nothing.empty and "tokens" in notes[0]


def test_points_come_from_the_records_of_a_task() -> None:
    rows = []
    for step, metric, value, status in [
        (10, "accuracy", 0.3, "ok"), (10, "answer_bits_per_byte", 1.2, "ok"),
        (20, "accuracy", 0.4, "ok"), (20, "accuracy", 0.5, "ok"), (30, "accuracy", 0.9, "failed"),
    ]:  # fmt: skip
        rows.append(
            Record(run="r", family="f", params=7, step=step, tokens=10 * step, flops=420.0 * step,
                   task="arc", domain="d", shots=0, metric=metric, value=value, status=status)
        )  # fmt: skip
    rows.append(dataclasses.replace(rows[0], task="other"))
    records = pd.DataFrame(rows, columns=COLUMNS)
    found = scaling_fit.points(records, "arc", soft="answer_bits_per_byte", accuracy="accuracy")
    assert found.columns.tolist() == ["run", "params", "tokens", "flops", "soft", "accuracy"]
    assert found.tokens.tolist() == [100, 200]
    assert found.accuracy.tolist() == [0.3, 0.5]  # the later record of a repeated one
    assert found.soft[0] == 1.2 and math.isnan(found.soft[1])
    assert scaling_fit.points(records, "none", loss="loss").empty


def test_an_interval_needs_draws() -> None:
    assert math.isnan(Estimate.of(1.0, np.ones(5)).low)
    assert Estimate.of(1.0, np.linspace(0, 2, 1001)).covers(0.06)
    assert not Estimate.of(1.0, np.linspace(0, 2, 1001)).covers(0.04)
