"""Kaplan's power laws: exact intervals, the choice of points, refusals."""

import math

import numpy as np
import pandas as pd
import pytest

from jaxllm.analysis.scaling import kaplan
from jaxllm.analysis.scaling.kaplan import power_law
from tests.analysis.scaling.helpers import covers

ALPHA_N, N_C = 0.076, 8.8e13  # Kaplan et al. (2020), equation 1.1
ALPHA_D, D_C = 0.095, 5.4e13  # equation 1.2


def planted(seed, noise=0.004, count=8):
    rng = np.random.default_rng(seed)
    n = np.geomspace(1e6, 1e9, count)
    return pd.DataFrame(
        {"params": n, "loss": (N_C / n) ** ALPHA_N * np.exp(rng.normal(0, noise, count))}
    )


def test_without_noise_the_published_law_comes_back() -> None:
    law = power_law(planted(0, noise=0), "params")
    assert law.alpha.value == pytest.approx(ALPHA_N)
    assert law.constant == pytest.approx(N_C, rel=1e-6)


def test_intervals_hold_the_truth_as_often_as_they_say() -> None:
    """95 % of 200: between 90 % and 99 % is the 99.6 % range."""
    found = [power_law(planted(seed), "params") for seed in range(200)]
    assert 0.9 <= np.mean([covers(law.alpha, ALPHA_N) for law in found]) <= 0.99
    assert np.mean([law.curvature_p < 0.05 for law in found]) <= 0.1


def with_floor(seed, noise, floor=1.7, count=12):
    rng = np.random.default_rng(seed)
    n = np.geomspace(1e6, 1e10, count)
    loss = (floor + 400 / n**0.34) * np.exp(rng.normal(0, noise, count))
    return pd.DataFrame({"params": n, "loss": loss})


def test_an_irreducible_loss_is_fitted_where_it_bends_the_line() -> None:
    law = power_law(with_floor(0, 0), "params")
    assert law.floor.value == pytest.approx(1.7, rel=0.01)
    assert law.alpha.value == pytest.approx(0.34, rel=0.01)
    assert "above an irreducible 1.7" in law.sentence
    found = [power_law(with_floor(seed, 0.004), "params") for seed in range(200)]
    found = [law for law in found if law.floor.value > 0]
    assert len(found) > 180
    assert np.mean([covers(law.floor, 1.7) for law in found])
    assert np.mean([covers(law.alpha, 0.34) for law in found]) >= 0.91


def test_without_a_bend_no_irreducible_loss_is_claimed() -> None:
    found = [power_law(planted(seed, count=10), "params") for seed in range(100)]
    assert np.mean([law.floor.value > 0 for law in found]) <= 0.05
    assert "not identifiable" in found[0].notes[-1]


def test_a_run_far_off_is_named() -> None:
    data = planted(0, count=13)
    data.loc[4, "loss"] *= 1.1
    assert "Far off the line: the runs of 10M parameters." in power_law(data, "params").notes
    assert not any("Far off" in note for note in power_law(planted(0, count=13), "params").notes)


def test_noise_falls_with_nothing() -> None:
    rng = np.random.default_rng(0)
    frames = (planted(0).assign(loss=np.exp(rng.normal(1, 0.1, 8))) for _ in range(150))
    found = sum(not power_law(frame, "params").refused for frame in frames)
    assert found / 150 <= 0.055


def test_each_law_takes_its_points() -> None:
    """With no interaction of N and D, the laws of each and of the frontier are those planted."""
    rows = []
    for i, n in enumerate(np.geomspace(1e6, 1e9, 7)):
        for d in np.geomspace(1e8, 1e11, 7):
            value = (N_C / n) ** ALPHA_N * (D_C / d) ** ALPHA_D
            rows.append((f"run {i}", n, d, 6 * n * d, value))
    data = pd.DataFrame(rows, columns=["run", "params", "tokens", "flops", "loss"])
    laws = kaplan.kaplan(data)
    assert laws["params"].alpha.value == pytest.approx(ALPHA_N)
    assert laws["tokens"].alpha.value == pytest.approx(ALPHA_D)
    assert ALPHA_N <= laws["flops"].alpha.value <= ALPHA_D
    assert (laws["flops"].table.loss.diff().dropna() < 0).all()


def test_a_law_of_size_wants_equal_tokens() -> None:
    n = np.geomspace(1e6, 1e9, 6)
    data = pd.DataFrame({"params": n, "tokens": 20 * n, "flops": 120 * n**2, "loss": n**-0.1})
    law = kaplan.kaplan(data)["params"]
    assert "are needed, not 1" in law.refused
    assert law.notes == ("1 of 6 runs are on 20B tokens.",)


def test_a_law_of_compute_wants_unequal_tokens() -> None:
    n = np.geomspace(1e6, 1e9, 6)
    data = pd.DataFrame({"params": n, "tokens": 3e11, "flops": 18e11 * n, "loss": n**-0.1})
    laws = kaplan.kaplan(data)
    assert laws["params"].alpha.value == pytest.approx(0.1)
    assert laws["flops"].refused.endswith("budgets of runs on unequal tokens are needed, not 0")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda t: t.head(3), "are needed, not"),
        (lambda t: t.head(0), "are needed, not"),
        (lambda t: t.assign(params=np.linspace(1e8, 2e8, 8)), "factor of 2"),
        (lambda t: t.assign(loss=math.nan), "are needed, not"),
        (lambda t: t.assign(loss=t.loss.to_numpy()[::-1]), "does not fall"),
        (lambda t: t.assign(loss=3.0), "does not fall"),
    ],
)
def test_refusals_say_why(change, reason) -> None:
    law = power_law(change(planted(0)), "params")
    assert reason in law.refused and law.refused in law.sentence
    assert math.isnan(law.constant)


def test_no_points_at_all() -> None:
    laws = kaplan.kaplan(pd.DataFrame({"run": [], "loss": []}))
    assert all(law.refused for law in laws.values())
