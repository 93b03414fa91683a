"""Weights and quantiles against closed forms, and the methods on curves whose end is known."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxllm.analysis import forecast_methods
from jaxllm.analysis.forecast_curves import Cut
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
            Trials(rng.normal(0, s, (24, 3)), held, np.zeros(24, bool), noise=s**2) for s in sigma
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
    learned = combine([Trials(errors, held, edge, noise=1.0)] * 3)
    assert learned.radius(0.9, edge=True) > 3 * learned.radius(0.9, edge=False)


def cut(**columns: object) -> Cut:
    arrays = {name: np.atleast_1d(np.asarray(value, float)) for name, value in columns.items()}
    count = len(arrays["recent"])
    arrays = {"size": np.arange(count), "variance": np.full(count, 1e-8), **arrays}
    arrays.setdefault("last", arrays["recent"])
    arrays.setdefault("log_linear", arrays["recent"])
    return Cut(**arrays)


def guess(target: Cut, others: Cut, metric: str) -> dict[str, float]:
    return dict(zip(METHODS, guesses(target, others, metric)[0], strict=True))


def test_methods_that_fit_the_world_foretell_it_exactly() -> None:
    sizes = np.log([1e8, 3e8, 1e9, 3e9])
    start = np.array([0.3, 0.36, 0.33, 0.45])
    target = cut(recent=0.4, log_params=np.log(6e8), final=np.nan)

    same_gain = cut(recent=start, log_params=sizes, final=start + 0.1)
    made = guess(target, same_gain, "accuracy")
    assert made["gain by size"] == pytest.approx(0.5)
    assert made["gain by level and size"] == pytest.approx(0.5)

    half_way = cut(recent=start, log_params=sizes, final=start + (1 - start) / 2)
    assert guess(target, half_way, "accuracy")["share of remaining gain"] == pytest.approx(0.7)
    shrinking = cut(recent=start, log_params=sizes, final=start / 2)
    assert guess(target, shrinking, "bits_per_byte")["share of remaining gain"] == pytest.approx(
        0.2
    )

    # A linear law of the level is found by the methods that regress on it.
    law = cut(recent=start, log_params=sizes, final=0.2 + 1.5 * start)
    made = guess(target, law, "accuracy")
    assert made["gain by level and size"] == pytest.approx(0.8, abs=1e-3)
    assert made["level and slope"] == pytest.approx(0.8, abs=1e-3)


def test_the_end_of_the_target_is_not_read() -> None:
    others = cut(recent=[0.3, 0.4, 0.5], log_params=[18, 19, 20], final=[0.4, 0.5, 0.6])
    for final in (0.0, 1.0, np.nan):
        target = cut(recent=0.35, log_params=18.5, final=final)
        assert np.isfinite(guesses(target, others, "accuracy")).all()
