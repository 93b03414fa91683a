"""Widths of rises on Pythia's checkpoints: smooth curves, kinks, noise and jumps."""

import numpy as np
import pytest

from jaxllm.analysis.rises import SUDDEN, Rises
from tests.analysis.planted import sigmoid

BATCH = 2**21  # tokens per step
STEPS = {
    "published": np.array([3000, *range(13_000, 144_000, 10_000)]),
    "all": np.array([*2 ** np.arange(10), *range(1000, 144_000, 1000)]),
}
DRAWS = 60


@pytest.fixture(scope="module", params=STEPS)
def rises(request) -> Rises:
    return Rises.of(np.log10(STEPS[request.param] * BATCH))


def logistic(x, middle, width):
    return sigmoid(x, middle, width / (2 * np.log(9)))


def fit(rises, rise, *, seed=0, noise=0.01, correlation=0.0, known=True):
    """`DRAWS` noisy curves `rise(x, middle)`, with middles all over the window."""
    rng = np.random.default_rng(seed)
    middles = rng.uniform(rises.x[0], rises.x[-1], DRAWS)
    curves = np.stack([rise(rises.x, middle) for middle in middles], axis=1)
    errors = rng.standard_normal(curves.shape)
    for at in range(1, len(errors)):
        errors[at] *= np.sqrt(1 - correlation**2)
        errors[at] += correlation * errors[at - 1]
    return rises.fit(curves + noise * errors, np.full(DRAWS, noise if known else 0.0))


def sudden(fitted):
    return ((fitted.high < SUDDEN) & (fitted.p < 0.05)).mean()


@pytest.mark.parametrize("width", [0.3, 0.5, 1, 2, 3])
@pytest.mark.parametrize("noise", [0.05, 0.01, 0.001])
def test_smooth_rises_are_not_sudden_and_their_width_is_covered(rises, width, noise) -> None:
    for known in (True, False):
        found = fit(rises, lambda x, m: 0.3 * logistic(x, m, width), noise=noise, known=known)
        assert sudden(found) <= 0.05
        assert ((found.low <= width) & (found.high >= width)).mean() >= 0.93
        if width == SUDDEN:
            assert (found.low > SUDDEN).mean() <= 0.05


@pytest.mark.parametrize("alpha", [0.3, 1.0, 3.0])
def test_power_laws_are_not_sudden(rises, alpha) -> None:
    """From the start of the window, and from an onset within it."""
    for noise in (0.01, 0.001):
        started = fit(rises, lambda x, m: -0.3 * 10 ** (-alpha * (x - x[0])), noise=noise)
        onset = fit(
            rises, lambda x, m: -0.3 * 10 ** (-alpha * np.maximum(x - m, 0)), noise=noise
        )  # fmt: skip
        assert sudden(started) <= 0.05 and sudden(onset) <= 0.05


@pytest.mark.parametrize(
    "curve",
    [
        lambda u: 0.0 * u,
        lambda u: 0.3 * u,
        lambda u: 0.3 * u**2,
        lambda u: 0.3 * (0.3 + 0.69 * u) ** 20,  # the exact match of 20 tokens
        lambda u: 0.2 * logistic(u, 0.3, 0.3) + 0.2 * logistic(u, 0.7, 0.3),
    ],
    ids=["noise", "line", "parabola", "exact match", "two rises"],
)
def test_other_smooth_curves_are_not_sudden(rises, curve) -> None:
    for correlation in (0.0, 0.5, 0.8):
        found = fit(
            rises, lambda x, _: curve((x - x[0]) / np.ptp(x)), correlation=correlation
        )  # fmt: skip
        assert sudden(found) <= 0.05


def test_noise_has_no_width(rises) -> None:
    found = fit(rises, lambda x, _: 0 * x)
    assert (found.low == 0).mean() >= 0.95 and np.isinf(found.high).mean() >= 0.95


@pytest.mark.parametrize("width", [0.01, 0.1])
def test_jumps_are_sudden(rises, width) -> None:
    """Where checkpoints are close: 0.4 decades before the last one."""
    for correlation in (0.0, 0.5):
        found = fit(
            rises, lambda x, _: 0.3 * logistic(x, x[-1] - 0.4, width), correlation=correlation
        )
        assert sudden(found) >= 0.9
        assert ((found.low <= width) & (found.high >= width)).mean() >= 0.95
        assert abs(np.log10(found.tokens) - rises.x[-1] + 0.4).max() < 0.15


def test_a_jump_between_distant_checkpoints_has_no_known_width() -> None:
    """Pythia's early checkpoints are a factor of two apart, 0.301 decades."""
    rises = Rises.of(np.log10(STEPS["all"] * BATCH))
    found = fit(rises, lambda x, _: 0.3 * (x > x[6]), noise=0.001)
    assert found.high.min() >= np.log10(2) and found.low.max() == 0


@pytest.mark.parametrize("before", [0.005, 0.1])
def test_a_jump_at_the_end_of_the_window_may_not_be_over(rises, before) -> None:
    found = fit(rises, lambda x, _: 0.3 * (x > x[-1] - before))
    assert sudden(found) == 0
    started = fit(rises, lambda x, _: 0.3 * (x > x[0]))
    assert sudden(started) == 0


@pytest.mark.parametrize("share", [0.3, 0.5])
def test_a_jump_that_is_not_most_of_the_gain_is_not_sudden(rises, share) -> None:
    def drift(x, _):
        return 0.3 * share * (x - x[0]) / np.ptp(x) + 0.3 * (1 - share) * (x > x[-1] - 0.4)

    assert sudden(fit(rises, drift)) <= 0.05
