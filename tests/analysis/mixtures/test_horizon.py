"""Nesting with steps and sizes, on planted laws."""

import numpy as np
import pandas as pd
import pytest

from jaxllm.analysis.mixtures.horizon import BiMix, bimix_table, extrapolated
from jaxllm.analysis.mixtures.swarm import Swarm
from jaxllm.errors import UserError

STEPS = np.array([1e3, 2e3, 4e3, 8e3])
SIZES = np.array([1e6, 4e6, 1.6e7])


def planted(at_steps: float | None = None, at_params: float | None = None) -> Swarm:
    mixtures = np.random.default_rng(0).dirichlet(np.ones(3), 8)
    rows = [
        (*x, n, d) for x in mixtures
        for n in ([at_params] if at_params else SIZES) for d in ([at_steps] if at_steps else STEPS)
    ]  # fmt: skip
    *x, n, d = np.array(rows, float).T
    loss = 2 + np.exp(-x[0]) + (1 + x[1]) * (d / 1e3) ** -0.5
    loss += (n / 1e6) ** -0.3 * (0.5 + x[2])
    shares = pd.DataFrame(dict(zip("abc", x, strict=True)))
    return Swarm.of(shares, pd.DataFrame({"loss": loss}), n, d)


def test_steps_then_sizes_extrapolate() -> None:
    """The law along steps has another constant at each size, and the law along sizes another
    after it."""
    at = extrapolated(extrapolated(planted(), "steps", 1e5), "params", 1e9)
    true = planted(1e5, 1e9)
    assert len(at) == 8 and set(at.steps) == {1e5} and set(at.params) == {1e9}
    order = np.lexsort(at.shares.T), np.lexsort(true.shares.T)
    np.testing.assert_allclose(at.values[order[0]], true.values[order[1]], rtol=1e-3)


def test_two_points_are_no_law() -> None:
    swarm = planted()
    with pytest.raises(UserError, match="needs three values"):
        extrapolated(swarm.rows(swarm.steps < 3e3), "steps", 1e5)


def test_bimix_recovers_its_parameters() -> None:
    rng = np.random.default_rng(1)
    share, steps = rng.uniform(0.02, 0.6, 80), np.tile(STEPS, 20)
    truth = BiMix(0.8, 0.4, 1.9, 0.06, 3e3, (0.02, 0.6))
    law = BiMix.fit(share, steps, truth(share, steps))
    new = np.array([1e4, 3e4, 1e5])
    np.testing.assert_allclose(law(np.full(3, 0.3), new), truth(np.full(3, 0.3), new), rtol=1e-4)
    assert law.alpha == pytest.approx(0.4, rel=1e-3) and law.beta == pytest.approx(0.06, rel=1e-3)
    inside = law.supports(np.array([0.001, share.min(), 0.3, 0.9]))
    assert inside.tolist() == [False, True, True, False]
    with pytest.raises(UserError, match="two different shares above 0"):
        BiMix.fit(np.full(8, 0.2), np.tile(STEPS, 2), np.ones(8))


def test_bimix_table_leaves_each_mixture_out() -> None:
    swarm = planted(at_params=1e6)
    x, s = swarm.shares[:, 0], swarm.steps
    loss = (0.5 * (s / 1e3) ** -0.5 + 2) * x**-0.1
    own = Swarm.of(pd.DataFrame(swarm.shares, columns=list("abc")), pd.DataFrame({"a loss": loss}),
                   swarm.params, s)  # fmt: skip
    row = bimix_table(own, {"a loss": "a"}).iloc[0]
    assert row.error < 1e-4 and row.beta == pytest.approx(0.1, rel=1e-2)
    assert (row.low, row.high) == (x.min(), x.max()) and row.outside >= 1
