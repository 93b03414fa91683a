"""Rises that fall again: planted ones are found, and noise alone is not, at the nominal rate."""

import numpy as np
import pytest

from jaxllm.analysis.tokens.double_descent import double_descent
from jaxllm.errors import UserError
from tests.analysis.tokens.test_trends import autoregressive

STEPS = np.arange(1, 31) * 1000
SHARE = np.linspace(0, 1, 30)
SHAPES = {
    "flat": 0 * SHARE,
    "falling": 2 * (SHARE + 0.03) ** -0.3,
    "falling, then rising": 20 * (SHARE - 0.5) ** 2,
}
ONE = np.zeros(1, int)
RUNS = 40


def p_values(rng, shape, phi):
    """Of a curve with noise of standard deviation 1."""
    noise = autoregressive(rng, np.full(RUNS, phi), 30, np.sqrt(1 - phi**2))
    return [double_descent((shape + u)[:, None], STEPS, ONE).p_value for u in noise.T]


@pytest.mark.parametrize("shape", SHAPES)
def test_curves_without_a_double_descent_pass_at_the_level(shape) -> None:
    rng = np.random.default_rng(0)
    p = np.concatenate([p_values(rng, SHAPES[shape], phi) for phi in (0, 0.5, 0.8)])
    assert (p < 0.05).mean() < 0.05 + 2 * np.sqrt(0.05 * 0.95 / len(p))
    assert (p < 0.2).mean() < 0.2


def test_planted_double_descent_is_found() -> None:
    """Power at a bump of ten standard deviations of the noise, on a falling curve."""
    rng = np.random.default_rng(1)
    bump = 10 * np.exp(-(((SHARE - 0.6) / 0.15) ** 2) / 2)
    for phi in (0, 0.5, 0.8):
        assert np.mean(np.less(p_values(rng, SHAPES["falling"] + bump, phi), 0.05)) > 0.9


def test_the_rise_has_its_size_and_interval() -> None:
    rng = np.random.default_rng(2)
    documents = np.repeat(np.arange(40), 25)
    shift = np.abs(rng.normal(1, 0.5, 40))[documents]  # documents differ in their bump
    bump = np.exp(-(((SHARE - 0.6) / 0.12) ** 2) / 2)[:, None] * shift
    losses = 3 + bump + autoregressive(rng, np.zeros(1000), 30, 0.3)
    found = double_descent(losses.astype(np.float32), STEPS, documents)
    assert found.p_value < 0.01
    start, peak, end = found.steps
    assert start < 10_000 and 17_000 <= peak <= 20_000 and end > 27_000
    np.testing.assert_allclose(found.rise[0], shift.mean(), atol=0.05)
    half = 1.96 * shift[::25].std(ddof=1) / np.sqrt(40)
    np.testing.assert_allclose(found.rise[2] - found.rise[0], half, rtol=0.15)
    assert found.fall[1] < found.fall[0] < found.fall[2] and found.fall[0] < found.rise[0]


def test_a_monotone_curve_has_none() -> None:
    found = double_descent(np.linspace(3, 1, 20)[:, None], range(20), ONE)
    assert found.rise[0] == 0 and found.p_value == 1


def test_too_little_is_one_line() -> None:
    for losses in (np.ones((11, 3)), np.ones((12, 0))):
        with pytest.raises(UserError, match="12 or more"):
            double_descent(losses, range(len(losses)), np.zeros(losses.shape[1], int))


def test_checkpoints_without_finite_losses_are_left_out() -> None:
    """NaN would compare as less than any noise."""
    rng = np.random.default_rng(3)
    losses = rng.normal(2, 0.1, (30, 4))
    losses[[5, 20], 1] = np.nan, np.inf
    found, finite = [
        double_descent(losses[at], STEPS[at], np.arange(4))
        for at in (np.arange(30), np.setdiff1d(np.arange(30), (5, 20)))
    ]
    assert found == finite and np.isfinite(found.rise).all() and found.p_value > 0.05
    losses[11:, 0] = np.inf
    with pytest.raises(UserError, match="4 tokens at 10 checkpoints with finite losses"):
        double_descent(losses, STEPS, np.arange(4))
