"""Laws of mixtures: planted parameters are found, weights leave runs out, derivatives are right."""

import numpy as np
import pytest
from scipy import optimize

from jaxllm.analysis.mixtures import laws
from jaxllm.analysis.mixtures.laws import LAWS, Predict
from jaxllm.analysis.mixtures.solver import levenberg_marquardt

RNG = np.random.default_rng(0)
X = RNG.dirichlet(np.ones(4), 90)
NEW = RNG.dirichlet(np.ones(4), 200)
ONCE = np.ones((1, len(X)))
T = np.array([-2.0, -0.3, 0.0, -0.8])
TRUTHS = {
    "linear": lambda x: 3 + x @ T,
    "log_linear": lambda x: 3 - np.log(x + 0.005) @ np.array([0.2, 0.1, 0.0, 0.3]),
    "exponential": lambda x: 2 + 1.5 * np.exp(x @ T),
    "power": lambda x: 2 + 0.7 * (x @ np.array([1.0, 0.1, 0.0, 0.3]) + 0.01) ** -0.4,
}


@pytest.mark.parametrize("name", TRUTHS)
def test_a_law_finds_its_own_planted_truth(name: str) -> None:
    y = TRUTHS[name](X)
    predicted = LAWS[name].fit(X, y, ONCE)(NEW, None)[0]
    assert np.sqrt(np.mean((predicted - TRUTHS[name](NEW)) ** 2)) < 0.01 * y.std()


def test_parameters_of_the_mixing_law_are_recovered(monkeypatch: pytest.MonkeyPatch) -> None:
    """c and the differences of t_j, which are identified; with noise as two runs of one recipe."""
    found = []
    fitted = laws._multi_start
    monkeypatch.setattr(laws, "_multi_start", lambda *a: found.append(fitted(*a)) or found[-1])
    y = TRUTHS["exponential"](X) + RNG.normal(0, 1e-3, len(X))
    laws.exponential(X, y, ONCE)
    c, _, *t = found[0][0]
    assert y.mean() + y.std() * c == pytest.approx(2.0, abs=0.05)
    np.testing.assert_allclose(np.array(t) - t[2], T - T[2], atol=0.1)


@pytest.mark.parametrize("name", LAWS)
def test_a_weight_of_zero_leaves_a_run_out_and_of_two_counts_it_twice(name: str) -> None:
    if name == "trees":
        pytest.importorskip("sklearn")
    y = TRUTHS["power"](X) + RNG.normal(0, 0.01, len(X))
    broken = y.copy()
    broken[:9] += 0.1
    weights = np.vstack([ONCE, np.where(np.arange(len(X)) < 9, 0.0, 1.0)])
    fits: list[Predict] = [LAWS[name].fit(X, values, weights) for values in (y, broken)]
    without = [one(NEW, None)[1] for one in fits]
    whole = [one(NEW, 1)[0] for one in fits]
    # what is shared by all weightings (ridge, length, scale) moves a little
    difference = np.abs(without[0] - without[1]).max()
    assert difference < 0.35 * np.abs(whole[0] - whole[1]).max()


def test_the_solver_agrees_with_scipy_for_every_weighting() -> None:
    x = np.linspace(0.1, 2, 40)
    y = 1 + 2 * np.exp(-1.5 * x) + RNG.normal(0, 0.02, 40)
    weights = RNG.multinomial(40, np.full(40, 1 / 40), size=3).astype(float)

    def model(theta: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        falling = np.exp(-theta[:, [2]] * x)
        slopes = [np.ones_like(falling), falling, -theta[:, [1]] * x * falling]
        return theta[:, [0]] + theta[:, [1]] * falling, np.stack(slopes, 2)

    theta, _ = levenberg_marquardt(
        model, np.tile([0.5, 1.0, 1.0], (3, 1)), y, weights, np.zeros(3), np.zeros(3), 0.02, 300
    )
    for row, weight in zip(theta, weights, strict=True):
        error = lambda p, w=weight: np.sqrt(w) * (p[0] + p[1] * np.exp(-p[2] * x) - y) / 0.02
        soft = lambda p, w=weight: np.sqrt(
            w * 2 * (np.sqrt(1 + (p[0] + p[1] * np.exp(-p[2] * x) - y) ** 2 / 4e-4) - 1)
        )
        direct = optimize.least_squares(soft, [1.0, 2.0, 1.5]).x
        assert np.isfinite(error(direct)).all()
        np.testing.assert_allclose(row, direct, rtol=2e-3)


def test_derivatives_of_the_power_law() -> None:
    model = laws._power_model(X[:5])
    theta = RNG.normal(0, 0.5, (1, 8))
    _, slopes = model(theta)
    for j in range(8):
        step = np.zeros((1, 8))
        step[0, j] = 1e-6
        numeric = (model(theta + step)[0] - model(theta - step)[0]) / 2e-6
        np.testing.assert_allclose(slopes[0, :, j], numeric[0], rtol=1e-5, atol=1e-8)
