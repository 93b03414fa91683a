"""Drawn mixtures: shares of a simplex, with the moments of the Dirichlets they come from."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from jaxllm import cli
from jaxllm.data.config import DataConfig
from jaxllm.errors import UserError
from jaxllm.suites.config import SuiteConfig
from jaxllm.suites.mixtures import MOST, Draw, draw, swarm

FLOOR = Draw.floor
SHARES = {"web": 50.0, "code": 30.0, "wiki": 20.0}  # any scale


@given(st.lists(st.floats(1e-6, 1.0), min_size=2, max_size=40), st.integers(0, 99))
def test_a_mixture_is_one_and_within_its_bounds(shares: list[float], seed: int) -> None:
    own = np.array(shares) / sum(shares)
    for mixture in draw({f"d{k}": share for k, share in enumerate(shares)}, 5, Draw(seed)):
        drawn = np.array(list(mixture.values()))
        assert drawn.sum() == pytest.approx(1, abs=1e-12)
        assert (drawn >= np.minimum(FLOOR, own / 2) - 1e-15).all()
        assert (drawn <= MOST * own).all()


@pytest.mark.parametrize("strength", [0.5, 5.0])
@pytest.mark.parametrize("temperature", [0.5, 1.0])
def test_moments_are_those_of_the_dirichlet(strength: float, temperature: float) -> None:
    how = Draw(temperature=temperature, weakest=strength, strongest=strength)
    drawn = np.array([list(one.values()) for one in draw(SHARES, 4000, how)])
    root = np.array([0.5, 0.3, 0.2]) ** temperature
    planned = stats.dirichlet(strength * root / root.sum())
    scale = 1 - 3 * FLOOR
    np.testing.assert_allclose(drawn.mean(0), FLOOR + scale * planned.mean(), atol=0.02)
    np.testing.assert_allclose(drawn.var(0), scale**2 * planned.var(), rtol=0.08)


def test_strengths_go_from_one_domain_to_nearly_all() -> None:
    largest = np.array([max(one.values()) for one in draw(SHARES, 500)])
    assert np.mean(largest > 0.95) > 0.2 and np.mean(largest < 0.6) > 0.1


def test_a_larger_swarm_begins_with_the_smaller_one() -> None:
    assert draw(SHARES, 8)[:5] == draw(SHARES, 5) != draw(SHARES, 5, Draw(seed=1))


def test_no_domain_is_beyond_its_limit() -> None:
    limits = {"code": 0.25, "wiki": 0.1}
    drawn = draw(SHARES, 200, Draw(limits=limits))
    most = {name: max(one[name] for one in drawn) for name in SHARES}
    assert 0.2 < most["code"] <= 0.25 and 0.08 < most["wiki"] <= 0.1 and most["web"] > 0.9
    with pytest.raises(UserError, match=r"largest shares web 0.3, code 0.3, wiki 0.3: allow more"):
        draw(SHARES, 1, Draw(limits=dict.fromkeys(SHARES, 0.3)))


def test_a_swarm_begins_with_the_natural_mixture() -> None:
    named = swarm(SHARES, 4)
    assert list(named) == ["natural", "mix001", "mix002", "mix003"]
    assert named["natural"] == pytest.approx({"web": 0.5, "code": 0.3, "wiki": 0.2})
    assert list(named.values())[1:] == draw(SHARES, 3)
    with pytest.raises(UserError, match=r"drawn around DataConfig\.weights"):
        swarm({"web": 1.0}, 4)


def test_the_shipped_swarm_is_what_design_draws() -> None:
    cli.load_gin(cli.parse(cli.parser(""), ["--gin_file=suites/mixtures.gin"]))
    axes = SuiteConfig().axes
    assert isinstance(axes, dict)
    listed = axes["DataConfig.weights"]
    drawn = swarm(DataConfig().weights, len(listed))
    assert list(listed) == list(drawn)
    for name, mixture in drawn.items():
        assert listed[name] == pytest.approx(mixture, rel=1e-5)
