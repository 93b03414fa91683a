"""Proposals on planted swarms: the optimum, the guards, and what is refused."""

import dataclasses
import math

import numpy as np
import pandas as pd
import pytest
from scipy import optimize

from jaxllm.analysis.mixtures.choice import Fit, fit
from jaxllm.analysis.mixtures.guards import Guards
from jaxllm.analysis.mixtures.propose import _capped, propose
from jaxllm.analysis.mixtures.swarm import Swarm
from jaxllm.errors import UserError

RATES = np.array([6.0, 3.0, 4.0, 2.0])


def swarm(x: np.ndarray, y: np.ndarray) -> Swarm:
    shares = pd.DataFrame(x, columns=[f"d{j}" for j in range(x.shape[1])])
    return Swarm.of(shares, pd.DataFrame(y, columns=[f"t{j}" for j in range(y.shape[1])]))


def truth(x: np.ndarray) -> np.ndarray:
    """Of each target a mixing law, which falls with a domain of its own."""
    return 2 + np.exp(-RATES * x)


def optimum(weights: np.ndarray) -> np.ndarray:
    mean = lambda x: float(truth(x) @ weights / weights.sum())
    one = {"type": "eq", "fun": lambda x: x.sum() - 1}
    bounds = [(0, 1)] * 4
    return optimize.minimize(mean, np.full(4, 0.25), bounds=bounds, constraints=one).x


@pytest.fixture(scope="module")
def fitted() -> Fit:
    rng = np.random.default_rng(0)
    x = rng.dirichlet(np.ones(4), 80)
    return fit(swarm(x, truth(x) + rng.normal(0, 0.01, (80, 4))), draws=20)


@pytest.mark.parametrize("weights", [[1, 1, 1, 1], [2, 1, 3, 2], [3, 1, 2, 1]])
def test_the_planted_optimum_of_a_weighted_mean_is_found(fitted: Fit, weights: list[int]) -> None:
    share = np.array(weights) / np.sum(weights)
    found = propose(fitted, {f"t{j}": float(w) for j, w in enumerate(weights)})
    best = optimum(share)
    np.testing.assert_allclose(found.mixture, best, atol=0.06)
    value = found.predicted.set_index("mixture").loc["proposed"]
    reached = truth(found.mixture) @ share
    assert value.low < reached < value.high and reached < truth(best) @ share + 0.006


def test_repetition_caps_a_domain(fitted: Fit) -> None:
    tokens = np.array([1e6, 1e9, 1e9, 1e9])
    found = propose(fitted, budget=2e7, tokens=tokens)
    assert found.mixture[0] == pytest.approx(4 * 1e6 / 2e7, rel=1e-3)
    assert found.table.epochs.iloc[0] == pytest.approx(4, rel=1e-3)
    assert "epochs" in propose(fitted, budget=2e7, tokens=tokens).guards.guard[0]
    assert math.isnan(propose(fitted).guards.value[0])
    with pytest.raises(UserError, match="every domain more than 4 times"):
        propose(fitted, budget=1e11, tokens=tokens)


def test_a_spurious_optimum_far_from_the_runs_is_not_proposed() -> None:
    """Near its natural shares a domain helps; beyond them, where no run is, it is ruinous."""
    rng = np.random.default_rng(1)
    natural = np.array([0.1, 0.3, 0.2, 0.2, 0.1, 0.1])
    truth = lambda x: 1 - 2 * x[:, 0] + 20 * np.maximum(x[:, 0] - 0.35, 0)
    x = rng.dirichlet(60 * natural, 80)
    found_fit = fit(swarm(x, (truth(x) + rng.normal(0, 0.01, 80))[:, None]), draws=20)
    found = propose(found_fit, natural=natural)
    assert found.status == "shrunk" and "KL from the natural shares" in found.reason
    rows = found.predicted.set_index("mixture")
    assert rows.value["unguarded"] < -0.2  # what a tool without guards would promise
    assert truth(found.mixture[None])[0] < truth(natural[None])[0] - 0.1
    assert rows.low["proposed"] < truth(found.mixture[None])[0] < rows.high["proposed"]
    known = found.guards[~found.guards.guard.str.contains("epochs")]  # of tokens that are unknown
    assert len(known) == 4 and (known.value <= known.limit * (1 + 1e-6)).all()


def test_natural_shares_far_from_the_runs_are_refused() -> None:
    rng = np.random.default_rng(2)
    x = rng.dirichlet(200 * np.array([0.4, 0.3, 0.2, 0.1]), 60)
    one = fit(swarm(x, (2 - x[:, 0] + rng.normal(0, 0.005, 60))[:, None]), draws=20)
    natural = np.array([0.01, 0.01, 0.01, 0.97])
    found = propose(one, natural=natural, tokens=np.array([1.0, 9, 9, 9]), budget=20.0)
    assert found.status == "refused" and "natural shares" in found.reason
    np.testing.assert_array_equal(found.mixture, natural)


def test_twenty_mixtures_of_39_domains_are_refused() -> None:
    rng = np.random.default_rng(3)
    x = rng.dirichlet(np.ones(39), 20)
    with pytest.raises(UserError, match="20 different mixtures do not determine the 39 parameters"):
        fit(swarm(x, rng.normal(size=(20, 3))))


def test_distances_of_a_mixture(fitted: Fit) -> None:
    runs = fitted.swarm
    guards = Guards(runs, runs.shares.mean(axis=0), runs.values[:, 0], 3.0, np.full(4, np.inf), 1.0)
    x = np.column_stack([np.ones(len(runs)), runs.shares[:, :3]])
    hat = np.diag(x @ np.linalg.inv(x.T @ x) @ x.T)
    np.testing.assert_allclose(guards.leverage(runs.shares), hat)
    assert guards.hull(runs.shares[:3].mean(axis=0)) < 1e-6
    corner, n = np.array([1.0, 0, 0, 0]), len(runs)
    direct = optimize.linprog(  # the least total variation: min Σ|Σ a x - corner| / 2
        np.r_[np.zeros(n), np.full(4, 0.5)],
        A_ub=np.block([[runs.shares.T, -np.eye(4)], [-runs.shares.T, -np.eye(4)]]),
        b_ub=np.r_[corner, -corner], A_eq=np.r_[np.ones(n), np.zeros(4)][None], b_eq=[1.0],
    ).fun  # fmt: skip
    assert direct - 1e-6 <= guards.hull(corner) < 2 * direct + 1e-3


def test_capped_shares_stay_on_the_simplex() -> None:
    rng = np.random.default_rng(4)
    cap = np.array([0.1, 0.4, 0.3, 0.5])
    shares = _capped(rng.dirichlet(np.ones(4), 500), cap)
    np.testing.assert_allclose(shares.sum(axis=1), 1)
    assert (shares <= cap + 1e-9).all()


def test_bad_objectives(fitted: Fit) -> None:
    with pytest.raises(UserError, match="no proxy measured t9"):
        propose(fitted, {"t9": 1.0})
    with pytest.raises(UserError, match="need positive ones"):
        propose(fitted, {"t0": -1.0})
    lost = dataclasses.replace(fitted, chosen=dict.fromkeys(("t0", "t2", "t3"), "linear"))
    with pytest.raises(UserError, match="t1 has no law"):
        propose(lost)
