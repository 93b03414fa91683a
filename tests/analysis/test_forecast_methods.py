"""Weights and quantiles against closed forms, and the methods on curves whose end is known."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxllm.analysis import forecast_methods
from jaxllm.analysis.forecast_curves import Cut
from jaxllm.analysis.forecast_kriging import COURSE, KERNELS, kriged
from jaxllm.analysis.forecast_methods import METHODS, Trials, combine, convex_weights, guesses


def test_weights_of_independent_errors_are_inverse_to_their_variance() -> None:
    weights = convex_weights(np.diag([1.0, 3.0, 2.0]))
    assert weights == pytest.approx(np.array([6, 2, 3]) / 11, abs=1e-4)


def test_a_method_that_adds_nothing_gets_no_weight() -> None:
    errors = np.random.default_rng(0).normal(size=(10_000, 2))
    worse = np.column_stack([errors, errors[:, 0] * 2.0])
    assert convex_weights(worse.T @ worse)[2] == pytest.approx(0, abs=1e-6)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 8))
def test_no_single_method_beats_the_weights_on_their_own_errors(seed: int, count: int) -> None:
    rng = np.random.default_rng(seed)
    errors = rng.normal(size=(30, count)) * rng.uniform(0.1, 3, count) + rng.normal(size=(30, 1))
    moments = errors.T @ errors
    weights = convex_weights(moments)
    assert (weights >= 0).all() and weights.sum() == pytest.approx(1)
    assert weights @ moments @ weights <= np.diag(moments).min() * (1 + 1e-3)


def test_the_quantile_is_the_conformal_one() -> None:
    scores = np.random.default_rng(0).permutation(np.arange(1.0, 20.0))
    assert forecast_methods.quantile(scores, 0.9) == 18  # rank ceil(20 * 0.9) of 19
    assert forecast_methods.quantile(scores, 0.99) == 19


@pytest.mark.parametrize("level", [0.5, 0.8, 0.9])
def test_intervals_hold_new_errors_at_the_nominal_rate(level: float) -> None:
    rng = np.random.default_rng(3)
    held = np.repeat(np.arange(6), 4)
    inside = []
    for _ in range(20):
        sigma = rng.uniform(0.5, 2.0, 30)
        trials = [
            Trials(rng.normal(0, s, (24, 3)), np.zeros(24), held, np.zeros(24, bool), noise=s**2)
            for s in sigma
        ]
        learned = combine(trials)
        new = (rng.normal(0, 1, (30, 3)) * sigma[:, None] * learned.weights).sum(1)
        inside += list(np.abs(new) <= learned.radius(level, edge=False) * learned.scales)
    # Six held-out units learn from five, so the intervals are a little wide.
    assert level - 0.04 < np.mean(inside) < level + 0.06


def test_the_edge_of_the_sizes_has_its_own_width() -> None:
    rng = np.random.default_rng(0)
    held = np.repeat(np.arange(5), 20)
    edge = (held == 0) | (held == 4)
    errors = rng.normal(size=(100, 2)) * np.where(edge, 5.0, 1.0)[:, None]
    learned = combine([Trials(errors, np.zeros(100), held, edge, noise=1.0)] * 3)
    assert learned.radius(0.9, edge=True) > 3 * learned.radius(0.9, edge=False)


def test_luck_at_the_last_checkpoint_does_not_decide_the_weights() -> None:
    rng = np.random.default_rng(1)
    held, luck = np.repeat(np.arange(6), 4), rng.normal(0, 10, 24)
    own = rng.normal(0, [1.0, 3.0], (24, 2))
    with_luck, without = (
        combine([Trials(own - each[:, None], each, held, np.zeros(24, bool), noise=1.0)])
        for each in (luck, np.zeros(24))
    )
    assert with_luck.weights == pytest.approx(without.weights)
    assert with_luck.radius(0.9, False) * with_luck.scales > 4 * without.scales  # but it is real


def test_a_benchmark_has_its_own_weights_and_width() -> None:
    rng = np.random.default_rng(2)
    held = np.repeat(np.arange(6), 4)

    def trials(good: int, spread: float, name: str) -> Trials:
        errors = rng.normal(0, 9.0, (24, 2))
        errors[:, good] = rng.standard_t(spread, 24)
        return Trials(errors, np.zeros(24), held, np.zeros(24, bool), 1.0, name)

    learned = combine(
        [trials(0, 50.0, "a") for _ in range(20)] + [trials(1, 3.0, "b") for _ in range(20)]
    )
    assert (learned.weights[:20, 0] > 0.8).all()
    assert (learned.weights[20:, 1] > 0.8).all()
    assert learned.radius(0.98, False, "a") < 0.9 * learned.radius(0.98, False, "b")


def field(values: np.ndarray, log_params: list[float]) -> Cut:
    """Runs scored at three moments before the cut and, here, two after it."""
    return Cut(
        log_params=np.array(log_params), values=values, log_linear=values[:, 2],
        final=values[:, -1], settled=values[:, -1], variance=np.full(len(values), 1e-4),
        times=np.array([0.1, 0.2, 0.3, 0.6, 1.0]), early=3,
    )  # fmt: skip


def test_kriging_is_the_gaussian_posterior_with_a_flat_constant() -> None:
    """Against the conditional mean of the joint normal distribution, its constant very wide."""
    rng = np.random.default_rng(0)
    sizes, own_size = np.array([18.0, 18.0, 19.5, 21.0, 22.5]), 20.2
    times = np.array([0.1, 0.2, 0.3, 0.6, 1.0])
    finished, own = rng.normal(0.3, 0.1, (5, 5)), rng.normal(0.3, 0.1, (2, 3))
    made = kriged(own, own_size, finished, sizes, times)
    for k, kernel in enumerate(KERNELS):
        points = [(own_size, t, -1) for t in times[:3]]
        points += [(s, t, run) for run, s in enumerate(sizes) for t in times]
        points += [(own_size, 1.0, -1)]
        covariance = np.empty((len(points), len(points)))
        for i, (s, t, run) in enumerate(points):
            for j, (z, u, other) in enumerate(points):
                course = np.exp(-(np.log(t / u) ** 2) / (2 * kernel.time**2))
                near = 4.5 - abs(s - z)
                covariance[i, j] = 1e8 + COURSE * course + kernel.run * (run == other)
                covariance[i, j] += (kernel.size + kernel.drift * course) * near
        seen = covariance[:-1, :-1] + np.eye(len(points) - 1)
        for each, found in zip(own, made[:, k], strict=True):
            data = np.concatenate([each, finished.ravel()]) - 0.3
            posterior = 0.3 + covariance[-1, :-1] @ np.linalg.solve(seen, data)
            assert found == pytest.approx(posterior, abs=1e-4)


def test_kriging_averages_noise_and_follows_what_grows() -> None:
    rng = np.random.default_rng(0)
    sizes = [18.0, 18.0, 19.0, 19.0, 20.0, 20.0, 22.0, 22.0]
    noise = rng.normal(0.25, 0.03, (200, 8, 5))
    guessed = np.array([
        guesses(field(rng.normal(0.25, 0.03, (1, 5)), [21.0]), field(one, sizes))[0]
        for one in noise
    ])  # fmt: skip
    errors = dict(zip(METHODS, np.abs(guessed - 0.25).mean(axis=0), strict=True))
    noisy, quiet = (errors[METHODS[i]] for i in (3, -1))
    assert noisy < 0.6 * errors["last value"] and noisy < quiet
    rising = np.array(sizes)[:, None] * 0.05 - 0.7 + np.linspace(0, 0.2, 5)
    target = field(21.0 * 0.05 - 0.7 + np.linspace(0, 0.2, 5)[None], [21.0])
    made = dict(zip(METHODS, guesses(target, field(rising, sizes))[0], strict=True))
    assert made[METHODS[-1]] == pytest.approx(target.final[0], abs=0.01)
    assert abs(made["last value"] - target.final[0]) > 0.09


def test_the_end_of_the_target_is_not_read() -> None:
    others = field(np.random.default_rng(0).normal(0.3, 0.1, (3, 5)), [18.0, 19.0, 20.0])
    found = []
    for later in (0.0, 1.0, np.nan):
        values = np.array([[0.3, 0.4, 0.5, later, later]])
        target = dataclasses.replace(field(values, [18.5]), log_linear=np.array([0.6]))
        found.append(guesses(target, others))
    assert np.isfinite(found[0]).all() and (found[0] == found[1]).all()
    assert (found[0] == found[2]).all()
