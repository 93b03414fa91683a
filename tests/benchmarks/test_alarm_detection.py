"""Sudden faults are detected at once, and intervals are those of the tables."""

import math

import pytest

from benchmarks.alarm_detection import (
    KINDS,
    detected,
    rate,
    share,
)

# The trends take about a doubling of tokens; `python benchmarks/alarm_detection.py` has them all.
QUICK = {"spike that does not": 5, "data switch, loss +0.12": 32, "NaN": 0, "dead layer": 1}


@pytest.mark.parametrize("name", QUICK)
def test_a_fault_is_detected(name: str) -> None:
    assert detected(KINDS[name], 1, 0.5)[0] <= QUICK[name]


def test_exact_intervals() -> None:
    """Tables of Garwood (1936) for 0 and 5 events, and of Clopper and Pearson for 9 of 10."""
    assert rate(0, 10_000) == (0.0, 0.0, pytest.approx(3.689, abs=1e-3))
    assert rate(5, 10_000) == (5.0, pytest.approx(1.623, abs=1e-3), pytest.approx(11.668, abs=1e-3))
    low, high = share(9, 10)
    assert (low, high) == (pytest.approx(0.5550, abs=1e-4), pytest.approx(0.9975, abs=1e-4))
    assert math.isclose(share(10, 10)[1], 1.0)
