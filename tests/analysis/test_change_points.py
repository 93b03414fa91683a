"""Change points against planted truth and noise."""

import numpy as np
import pytest

from jaxllm.analysis.change_points import change_points
from jaxllm.analysis.registry import Study
from tests.analysis.planted import table

TOKENS = np.array([0, *np.logspace(6, 10, 40).astype(int)])


def test_covers_a_planted_bend() -> None:
    rng = np.random.default_rng(0)
    x = np.log2(TOKENS[1:])
    bend, slope = 27.0, 0.04
    values = {f"t{i}": 0.25 + slope * np.maximum(0, x - bend) + rng.normal(0, 0.01, len(x))
              for i in range(150)}  # fmt: skip
    found = change_points(Study(table(values, tokens=TOKENS[1:])), most=1).table
    assert len(found) == 150
    inside = (np.log2(found.low) <= bend) & (np.log2(found.high) >= bend)
    assert inside.mean() >= 0.92
    assert np.log2(found.high / found.low).median() < 4
    assert found.slope_after.mean() == pytest.approx(slope, abs=0.003)
    assert abs(found.slope_before.mean()) < 0.003


def test_finds_two_bends_in_order() -> None:
    rng = np.random.default_rng(1)
    x = np.log2(TOKENS[1:])
    rise = 0.25 + 0.06 * (np.maximum(0, x - 24) - np.maximum(0, x - 29))
    found = change_points(
        Study(table({"t": rise + rng.normal(0, 0.005, 40)}, tokens=TOKENS[1:]))
    ).table
    np.testing.assert_allclose(np.log2(found.tokens), [24, 29], atol=0.7)
    assert (found.low <= found.tokens).all() and (found.tokens <= found.high).all()


def test_straight_lines_bend_at_the_nominal_rate() -> None:
    rng = np.random.default_rng(2)
    line = 0.01 * np.log2(TOKENS[1:])
    values = {f"t{i}": line + rng.normal(0, 0.01, 40) for i in range(400)}
    found = change_points(Study(table(values, tokens=TOKENS[1:]))).table
    assert 0.02 <= found.task.nunique() / 400 <= 0.08
