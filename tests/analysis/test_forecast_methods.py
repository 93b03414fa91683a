"""Weights and quantiles against closed forms, and the methods on curves whose end is known."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxllm.analysis.forecast_methods import (
    KERNELS,
    Batch,
    conformal_quantile,
    convex_weights,
    damped_trends,
    design,
    forecast_batches,
)


def test_weights_of_independent_errors_are_inverse_to_their_variance() -> None:
    moments = np.array([np.diag([1.0, 3.0]), np.full((2, 2), np.nan)])
    assert convex_weights(moments) == pytest.approx(np.array([[0.75, 0.25], [0.0, 1.0]]))


def test_a_forecast_that_adds_nothing_gets_no_weight() -> None:
    errors = np.random.default_rng(0).normal(size=10_000)
    worse = np.column_stack([errors, errors * 2.0])
    assert convex_weights((worse.T @ worse)[None])[0] == pytest.approx([1, 0])


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10_000))
def test_no_single_forecast_beats_the_weights_on_their_own_errors(seed: int) -> None:
    rng = np.random.default_rng(seed)
    errors = rng.normal(size=(30, 2)) * rng.uniform(0.1, 3, 2) + rng.normal(size=(30, 1))
    moments = errors.T @ errors
    (weights,) = convex_weights(moments[None])
    assert (weights >= 0).all() and weights.sum() == pytest.approx(1)
    grid = np.linspace(0, 1, 101)
    mixed = [np.array([w, 1 - w]) @ moments @ [w, 1 - w] for w in grid]
    assert weights @ moments @ weights <= min(mixed) * (1 + 1e-9)


def test_the_quantile_is_the_conformal_one() -> None:
    scores = np.random.default_rng(0).permutation(np.arange(1.0, 20.0))
    assert conformal_quantile(scores, 0.9) == 18  # rank ceil(20 * 0.9) of 19
    assert conformal_quantile(scores, 0.99) == 19


TIMES = np.array([0.1, 0.2, 0.3, 0.6, 1.0])
"""Three moments before the cut and two after it."""


def model(size, tokens=25.0):
    """Log parameters and log tokens of a run, or of several [runs, 2]."""
    return np.stack(np.broadcast_arrays(size, tokens), axis=-1)


def noise_about_levels(seed: int, sigma: np.ndarray) -> tuple[Batch, np.ndarray]:
    """A target and 24 finished runs of six sizes for every task, and the target's final values."""
    rng = np.random.default_rng(seed)
    sizes = np.repeat(np.linspace(18.0, 23.0, 6), 4)
    values = rng.normal(0.3, sigma[:, None, None], (len(sigma), 25, 5))
    tasks = np.arange(len(sigma))
    names = np.full(len(sigma), "exam")
    own, finished = values[:, 0, :3], values[:, 1:]
    return Batch(own, tasks, model(20.5), finished, model(sizes), TIMES, names), values[:, 0, -1]


@pytest.mark.parametrize("level", [0.5, 0.9])
def test_intervals_hold_new_values_at_the_nominal_rate_and_tasks_have_their_own(level) -> None:
    inside = []
    for seed in range(30):
        sigma = np.random.default_rng(seed).permutation(np.linspace(0.5, 2.0, 30))
        batch, truth = noise_about_levels(seed, sigma)
        ((value, half),) = forecast_batches([batch], level)
        inside += list(np.abs(truth - value) <= half)
        assert half[sigma > 1.5].mean() > 2 * half[sigma < 0.75].mean()
    # Six folds learn from five, so the intervals are a little wide.
    assert level - 0.04 < np.mean(inside) < level + 0.1


def test_a_forecast_beyond_all_sizes_has_a_wider_interval() -> None:
    rng = np.random.default_rng(0)
    sizes = np.repeat(np.linspace(18.0, 20.0, 4), 3)
    gain = np.linspace(0.05, 0.25, 4).repeat(3)[:, None] * np.linspace(0, 1, 5)
    finished = rng.normal(0.3 + gain, 0.01, (20, 12, 5))
    own = rng.normal(0.3, 0.01, (20, 3))
    halves = []
    for size in (20.5, 21.5, 23.0):
        names = np.full(20, "exam")
        batch = Batch(own, np.arange(20), model(size), finished, model(sizes), TIMES, names)
        halves.append(forecast_batches([batch], 0.9)[0][1].mean())
    assert halves[0] < halves[1] < halves[2] and halves[2] > 1.5 * halves[0]


def predictions(own, own_model, finished, models, times):
    """Final values [targets, 2] by both kernels."""
    early = own.shape[1]
    weights = design(own_model, early, models, times).weights
    return own @ weights[:, :early].T + weights[:, early:] @ finished.ravel()


@pytest.mark.parametrize("tokens", [np.full(6, 25.0), np.array([25.0, 23.5, 24.0, 25.5, 24.0, 25])])
def test_kriging_is_the_gaussian_posterior_with_a_flat_constant(tokens: np.ndarray) -> None:
    """Against the conditional mean of the joint normal distribution, its constant very wide."""
    rng = np.random.default_rng(0)
    sizes, times = np.array([18.0, 18.0, 19.5, 21.0, 22.5, 20.2]), TIMES
    finished, own = rng.normal(0.3, 0.1, (5, 5)), rng.normal(0.3, 0.1, (2, 3))
    models = model(sizes, tokens)
    made = predictions(own, models[-1], finished, models[:-1], times)
    for k, kernel in enumerate(KERNELS):
        points = [(5, t) for t in times[:3]]
        points += [(run, t) for run in range(5) for t in times]
        points += [(5, 1.0)]
        covariance, centre = np.empty((len(points), len(points))), sizes[[p[0] for p in points]]
        for i, (run, t) in enumerate(points):
            for j, (other, u) in enumerate(points):
                course = np.exp(-(np.log(t / u) ** 2) / (2 * kernel.time**2))
                near = 4.5 + np.ptp(tokens) - np.abs(models[run] - models[other]).sum()
                covariance[i, j] = 1e8 + kernel.course * course + kernel.run * (run == other)
                covariance[i, j] += (kernel.size + kernel.drift * course) * near
                trend = kernel.trend + kernel.trend_drift * course
                s, z = sizes[[run, other]] - centre.mean()
                covariance[i, j] += trend * s * z
        seen = covariance[:-1, :-1] + np.eye(len(points) - 1)
        for each, found in zip(own, made[:, k], strict=True):
            data = np.concatenate([each, finished.ravel()]) - 0.3
            posterior = 0.3 + covariance[-1, :-1] @ np.linalg.solve(seen, data)
            assert found == pytest.approx(posterior, abs=1e-4)


def test_of_runs_of_one_size_that_of_as_many_tokens_counts_most() -> None:
    models = model(np.array([19.0, 19.0, 22.0, 22.0]), np.array([23.0, 26.0, 23.0, 26.0]))
    weights = design(model(20.5, 26.0), 3, models, TIMES).weights[1, 3:].reshape(4, 5)
    short, long, _, _ = np.abs(weights[:, -1])
    assert long > 1.5 * short


def test_kriging_averages_noise_and_follows_what_grows() -> None:
    rng = np.random.default_rng(0)
    sizes = np.array([18.0, 18.0, 19.0, 19.0, 20.0, 20.0, 22.0, 22.0])
    noise = rng.normal(0.25, 0.03, (200, 9, 5))
    predicted = np.array(
        [predictions(n[:1, :3], model(21.0), n[1:], model(sizes), TIMES) for n in noise]
    )
    noisy, quiet = np.abs(predicted - 0.25).mean(axis=(0, 1))
    last = np.abs(noise[:, 0, 2] - 0.25).mean()
    assert noisy < 0.6 * last and noisy < quiet
    growth = np.linspace(0, 0.2, 5)
    target, rising = 21.0 * 0.05 - 0.7 + growth, sizes[:, None] * 0.05 - 0.7 + growth
    made = predictions(target[None, :3], model(21.0), rising, model(sizes), TIMES)[0]
    assert made[-1] == pytest.approx(target[-1], abs=0.01)


def test_checkpoints_may_scatter_more_than_samples() -> None:
    rng, x = np.random.default_rng(0), np.log(np.linspace(0.01, 0.5, 50))
    curves = [(x, rng.normal(0, 1.0, len(x)), 0.1) for _ in range(200)]
    value, half = np.array(damped_trends(curves, 0.9)).T
    inside = np.abs(value - rng.normal(0, 1.0, len(value))) < half
    assert 0.85 < inside.mean() < 0.97
    last = np.array([y[-1] for _, y, _ in curves])
    assert (value**2).mean() < 0.9 * (last**2).mean()
