"""Fits from several starts and to samples, and what reaches them of bad input."""

import math

import numpy as np
import pandas as pd
import pytest
from scipy import optimize, special

from jaxllm.analysis.scaling import fit
from jaxllm.analysis.scaling.fit import IntervalEstimate
from tests.analysis.scaling.helpers import covers

BOUNDS = ((-5.0, 0.0, -5.0), (5.0, 9.0, 5.0))


def saturating(x):
    """E + A exp(-c x) of the parameters (log A, c, E), and its derivatives."""

    def curve(p):
        return np.exp(p[0] - p[1] * x)

    return (
        lambda p: p[2] + curve(p),
        lambda p: np.stack([curve(p), -x * curve(p), np.ones_like(x)], axis=1),
    )


@pytest.mark.parametrize("delta", [math.inf, 0.02])
def test_the_best_of_the_starts_has_the_least_huber_loss(delta) -> None:
    """Against a general minimiser of SciPy's Huber loss, from the truth."""
    rng = np.random.default_rng(0)
    x = np.linspace(0, 4, 40)
    y = 0.5 + 2 * np.exp(-0.7 * x) + rng.standard_t(2, 40) * 0.02
    model, jacobian = saturating(x)
    starts = np.array([[0.0, 1.0, 0.0], [3.0, 5.0, 2.0]])
    found = fit.fit(model, jacobian, y, starts, iter(()), bounds=BOUNDS, delta=delta)

    def loss(p):
        error = model(p) - y
        return (special.huber(delta, error) if delta < math.inf else error**2 / 2).sum()

    other = optimize.minimize(loss, [math.log(2), 0.7, 0.5], method="Nelder-Mead",
                              options={"xatol": 1e-9, "fatol": 1e-13, "maxiter": 5000})  # fmt: skip
    assert loss(found[0]) == pytest.approx(other.fun, rel=1e-5)
    np.testing.assert_allclose(found[0], other.x, rtol=2e-3)


def test_samples_are_fitted_as_copies_of_points() -> None:
    rng = np.random.default_rng(1)
    x = np.linspace(0, 4, 12)
    y = 0.5 + 2 * np.exp(-0.7 * x) + rng.normal(0, 0.05, 12)
    (rows,) = fit.resamples(np.arange(12), 1, seed=3)
    assert len(rows) == 12 and len(np.unique(rows)) < 12
    start = np.array([[0.5, 0.7, 0.4]])
    model, jacobian = saturating(x)
    drawn = fit.fit(model, jacobian, y, start, iter([rows]), bounds=BOUNDS)[1]
    copy, of_copy = saturating(x[rows])
    copied = fit.fit(copy, of_copy, y[rows], start, iter(()), bounds=BOUNDS)[0]
    np.testing.assert_allclose(drawn, copied, rtol=1e-4)


def test_groups_are_drawn_whole() -> None:
    groups = np.array(["a", "a", "b", "c", "c", "c"])
    for rows in fit.resamples(groups, 50, seed=0):
        times = np.bincount(rows, minlength=6)
        assert times[0] == times[1] and times[3] == times[4] == times[5]
        assert times[[0, 2, 3]].sum() == 3


def test_of_bad_points_it_is_said_what_was_left_out() -> None:
    frame = pd.DataFrame(
        {"run": list("aabbc"), "params": [1e6, 1e6, 2e6, math.nan, "x"], "loss": [3, 5, 2, 2, 2.0]}
    )
    good, notes = fit.usable(frame, ("params", "loss"))
    assert good.loss.tolist() == [4.0, 2.0]
    assert notes == ("2 of 5 points lack a valid number", "1 repeated points were averaged")
    nothing, notes = fit.usable(frame, ("params", "tokens"))
    assert nothing.empty and notes[0].startswith("5 of 5 points")


def test_an_interval_needs_draws() -> None:
    assert math.isnan(IntervalEstimate.of(np.ones(6)).low)
    drawn = IntervalEstimate.of(np.array([1.0, *np.linspace(0, 2, 1001)]))
    assert covers(drawn, 0.06) and not covers(drawn, 0.04)
