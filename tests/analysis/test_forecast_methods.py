"""Weights and quantiles against closed forms, and the methods on curves whose end is known."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxllm.analysis.forecast_methods import (
    COURSE,
    KERNELS,
    METHODS,
    CrossValidation,
    combine,
    conformal_quantile,
    convex_weights,
    predictions,
)


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
    assert conformal_quantile(scores, 0.9) == 18  # rank ceil(20 * 0.9) of 19
    assert conformal_quantile(scores, 0.99) == 19


@pytest.mark.parametrize("level", [0.5, 0.8, 0.9])
def test_intervals_hold_new_errors_at_the_nominal_rate(level: float) -> None:
    rng = np.random.default_rng(3)
    folds = np.repeat(np.arange(6), 4)
    inside = []
    for _ in range(20):
        sigma = rng.uniform(0.5, 2.0, 30)
        tasks = [CrossValidation(rng.normal(0, s, (24, 3)), folds) for s in sigma]
        weights, half = combine(tasks, level)
        new = (rng.normal(0, 1, (30, 3)) * sigma[:, None] * weights).sum(1)
        inside += list(np.abs(new) <= half)
    # Six folds learn from five, so the intervals are a little wide.
    assert level - 0.04 < np.mean(inside) < level + 0.06


def test_a_benchmark_has_its_own_weights_and_a_task_its_own_width() -> None:
    rng = np.random.default_rng(2)
    folds = np.repeat(np.arange(6), 4)

    def task(good: int, spread: float, name: str) -> CrossValidation:
        errors = rng.normal(0, 9.0, (24, 2))
        errors[:, good] = rng.normal(0, spread, 24)
        return CrossValidation(errors, folds, name)

    spreads = np.linspace(0.5, 2.0, 20)
    weights, half = combine(
        [task(0, each, "a") for each in spreads] + [task(1, each, "b") for each in spreads], 0.9
    )
    assert (weights[:20, 0] > 0.8).all() and (weights[20:, 1] > 0.8).all()
    assert half[15:20].mean() > 2 * half[:5].mean()


TIMES = np.array([0.1, 0.2, 0.3, 0.6, 1.0])
"""Three moments before the cut and two after it."""


def test_kriging_is_the_gaussian_posterior_with_a_flat_constant() -> None:
    """Against the conditional mean of the joint normal distribution, its constant very wide."""
    rng = np.random.default_rng(0)
    sizes, own_size = np.array([18.0, 18.0, 19.5, 21.0, 22.5]), 20.2
    times = TIMES
    finished, own = rng.normal(0.3, 0.1, (5, 5)), rng.normal(0.3, 0.1, (2, 3))
    made = predictions(own, own_size, finished, sizes, times)
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
        for each, found in zip(own, made[:, k + 2], strict=True):
            data = np.concatenate([each, finished.ravel()]) - 0.3
            posterior = 0.3 + covariance[-1, :-1] @ np.linalg.solve(seen, data)
            assert found == pytest.approx(posterior, abs=1e-4)


def test_kriging_averages_noise_and_follows_what_grows() -> None:
    rng = np.random.default_rng(0)
    sizes = np.array([18.0, 18.0, 19.0, 19.0, 20.0, 20.0, 22.0, 22.0])
    noise = rng.normal(0.25, 0.03, (200, 9, 5))
    predicted = np.array([predictions(n[:1, :3], 21.0, n[1:], sizes, TIMES) for n in noise])
    last, _, noisy, quiet = np.abs(predicted - 0.25).mean(axis=(0, 1))
    assert noisy < 0.6 * last and noisy < quiet
    growth = np.linspace(0, 0.2, 5)
    target, rising = 21.0 * 0.05 - 0.7 + growth, sizes[:, None] * 0.05 - 0.7 + growth
    made = dict(
        zip(METHODS, predictions(target[None, :3], 21.0, rising, sizes, TIMES)[0], strict=True)
    )
    assert made[METHODS[-1]] == pytest.approx(target[-1], abs=0.01)
    assert abs(made["last value"] - target[-1]) > 0.09
