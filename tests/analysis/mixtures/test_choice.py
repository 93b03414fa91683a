"""The choice of laws, on planted swarms."""

import numpy as np
import pandas as pd
import pytest

from jaxllm.analysis.mixtures.choice import fit, ranking
from jaxllm.analysis.mixtures.swarm import Swarm
from jaxllm.errors import UserError

DOMAINS = [f"d{j}" for j in range(5)]


def planted(n: int = 60, k: int = 5, seed: int = 0, noise: float = 0.01) -> Swarm:
    rng = np.random.default_rng(seed)
    x = rng.dirichlet(np.ones(k), n)
    first = 2 + 1.5 * np.exp(-2 * x[:, 0])
    second = 3 - 1.2 * x[:, 1] + 0.3 * x[:, 2]
    y = np.column_stack([first, second]) + rng.normal(0, noise, (n, 2))
    shares = pd.DataFrame(x, columns=[f"d{j}" for j in range(k)])
    return Swarm.of(shares, pd.DataFrame(y, columns=["a", "b"]))


def test_left_out_errors_are_the_noise_and_what_a_law_cannot_say() -> None:
    scores = fit(planted(), draws=10).scores.set_index(["target", "law"])
    assert scores.chosen.sum() == 2 and scores.loc["b"].chosen.idxmax() == "linear"
    assert scores.error[("a", "exponential")] < 0.015 < scores.error[("a", "linear")]
    assert (scores.spearman[scores.chosen] > 0.98).all()


def test_noise_has_no_law() -> None:
    swarm = planted()
    rng = np.random.default_rng(1)
    noise = pd.DataFrame(rng.normal(size=(60, 12)), columns=[f"n{j}" for j in range(12)])
    found = fit(
        Swarm.of(pd.DataFrame(swarm.shares, columns=DOMAINS), noise), ["linear", "power"], 10
    )
    assert len(found.refused()) >= 10
    assert "no better than their mean" in next(iter(found.refused().values()))


def test_draws_spread_as_independent_swarms_do() -> None:
    at = np.full((1, 5), 0.2)
    fits = [fit(planted(seed=s, noise=0.05).only(["a"]), ["power"], 40) for s in range(12)]
    values = np.array([one.predict["a"](at, None)[:, 0] for one in fits])
    assert 0.6 < values[:, 1:].std(axis=1).mean() / values[:, 0].std(ddof=1) < 1.7


def test_ranking_by_hand() -> None:
    measured = np.arange(40.0)
    swapped = measured.copy()
    swapped[[0, 3]] = swapped[[3, 0]]
    found = ranking(swapped, measured)
    assert found["regret"] == 3.0 and found["top_spearman"] == pytest.approx(-0.8)
    assert found["spearman"] > 0.99


def test_what_is_not_identified_is_refused() -> None:
    with pytest.raises(UserError, match="5 different mixtures do not determine"):
        fit(planted(n=5))
    few = fit(planted(n=8), draws=10).scores
    assert set(few.law[few.refused.str.contains("parameters")]) == {"log_linear", "power", "kernel"}
    wide = planted(n=30)
    shares = wide.shares.copy()
    shares[:, 4] = shares[:, 3] = (shares[:, 3] + shares[:, 4]) / 2
    tied = Swarm.of(pd.DataFrame(shares), pd.DataFrame(wide.values))
    with pytest.raises(UserError, match="5 domains vary in 4 directions"):
        fit(tied)
    with pytest.raises(UserError, match="no law cubic"):
        fit(wide, ["cubic"])


def test_bad_swarms() -> None:
    swarm = planted(n=12)
    x, y = pd.DataFrame(swarm.shares, columns=DOMAINS), pd.DataFrame(swarm.values)
    with pytest.raises(UserError, match=r"shares of run 3 sum to 0.5 \(1 such"):
        Swarm.of(x.mul(np.where(np.arange(12) == 3, 0.5, 1.0), axis=0), y)
    with pytest.raises(UserError, match="shares of run 0 are below 0"):
        Swarm.of(x.assign(d0=x.d0 - 1, d1=x.d1 + 1), y)
    with pytest.raises(UserError, match="no run trained on the domain d4"):
        Swarm.of(x.assign(d3=x.d3 + x.d4, d4=0.0), y)
    with pytest.raises(UserError, match="no run measured the target 1"):
        Swarm.of(x, y.assign(**{"1": np.nan})[[0, "1"]])
    with pytest.raises(UserError, match="differ in steps"):
        fit(Swarm.of(x, y, steps=[100.0] * 11 + [90.0]))
    with pytest.raises(UserError, match="differ in params"):
        fit(Swarm.of(x, y, params=[1e6] * 11 + [2e6]))
    y.iloc[2, 1] = np.nan
    swarm = Swarm.of(x.iloc[::-1], y.iloc[::-1])
    assert len(swarm) == 11 and "1 of 12 runs lack a finite value" in swarm.notes[0]
    assert "(first: 2)" in swarm.notes[0] and "2" not in swarm.names
    with pytest.raises(UserError, match="no proxy measured c"):
        swarm.only(["c"])
