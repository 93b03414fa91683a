"""Checks of a planted proposal: what bears it out, what contradicts it, and what tells nothing."""

import dataclasses

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from jaxllm.analysis.mixtures.check import FAILED, HELD, NOISE, check
from jaxllm.analysis.mixtures.choice import fit
from jaxllm.analysis.mixtures.propose import Proposal, propose
from jaxllm.analysis.mixtures.swarm import Swarm
from jaxllm.errors import UserError

NATURAL = np.array([0.6, 0.3, 0.1])
SEEDS = np.array([-1.0, 1.0, -0.5, 0.5])  # deviations of the runs of a mixture


def truth(x: np.ndarray) -> np.ndarray:
    return 2 + np.exp(-3 * x)


def swarm(x: np.ndarray, y: np.ndarray, size: float = 1e6) -> Swarm:
    n = len(x)
    shares, values = pd.DataFrame(x, columns=list("abc")), pd.DataFrame(y, columns=["A", "B", "C"])
    return Swarm.of(shares, values, [size] * n, [100.0] * n)


@pytest.fixture(scope="module")
def proposal() -> Proposal:
    rng = np.random.default_rng(0)
    x = rng.dirichlet(np.ones(3), 40)
    fitted = fit(swarm(x, truth(x) + rng.normal(0, 2e-3, x.shape)), ["exponential"], draws=20)
    return propose(fitted, natural=NATURAL)


def runs(proposal: Proposal, spread: float, gain: float = 1.0, size: float = 1e6) -> Swarm:
    """Two mixtures on four seeds; `gain` times the true difference between them."""
    ends = np.array([proposal.mixture, NATURAL])
    values = truth(ends)
    values[0] = values[1] + gain * (values[0] - values[1])
    x, y = np.repeat(ends, 4, axis=0), np.repeat(values, 4, axis=0)
    return swarm(x, y + spread * np.tile(SEEDS, 2)[:, None], size)


@pytest.mark.parametrize(
    ("case", "verdict", "caveat"),
    [
        ({"spread": 1e-3}, HELD, False),
        ({"spread": 1e-3, "gain": -1.0}, FAILED, False),
        ({"spread": 0.1}, NOISE, False),
        ({"spread": 1e-4, "gain": 3.0}, FAILED, False),  # another gain than the law predicts
        ({"spread": 1e-4, "gain": 3.0, "size": 4e6}, HELD, True),  # but it is not of this size
        ({"spread": 1e-4, "gain": -3.0, "size": 4e6}, FAILED, True),
    ],
)
def test_verdicts(proposal: Proposal, case: dict[str, float], verdict: str, caveat: bool) -> None:
    found = check(proposal, runs(proposal, **case))
    assert found.verdict == verdict and verdict in found.sentence
    assert bool(found.notes) == caveat
    assert not caveat or "of 1M parameters and 100 steps, these runs have 4M" in found.notes[0]


def test_intervals_are_those_of_the_t_test(proposal: Proposal) -> None:
    own = runs(proposal, 1e-3)
    table = check(proposal, own).table.set_index(["target", "mixture"])
    assert list(dict.fromkeys(table.index.get_level_values(0))) == ["objective", "A", "B", "C"]
    difference = table.loc["B", "difference"]
    expected = stats.ttest_ind(own.values[:4, 1], own.values[4:, 1]).confidence_interval()
    np.testing.assert_allclose([difference.low, difference.high], expected)
    mean = table.loc["objective", "proposed"]
    assert mean.measured == pytest.approx(own.values[:4].mean()) and mean.runs == 4
    assert mean.predicted == pytest.approx(proposal.predicted.value.iloc[0])


def test_other_runs_are_refused(proposal: Proposal) -> None:
    own = runs(proposal, 1e-3)
    with pytest.raises(UserError, match="1 of 5 runs are scored on the proposed mixture"):
        check(proposal, own.rows(np.array([0, 4, 5, 6, 7])))
    with pytest.raises(UserError, match="differ in params"):
        check(proposal, dataclasses.replace(own, params=np.arange(1.0, 9.0)))
