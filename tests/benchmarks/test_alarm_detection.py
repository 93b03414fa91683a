"""Every kind of fault is detected where it is planted, and a healthy log is quiet."""

import math

import pytest

from benchmarks.alarm_detection import (
    BEGIN,
    KINDS,
    LINES,
    detected,
    false_alarms,
    healthy,
    rate,
    share,
)

# Logged steps within which a fault is to be detected: half a doubling of tokens for a trend.
SLOW = {"slow drift of the loss", "slow drift of the gradient norm", "plateau"}


@pytest.mark.parametrize("name", KINDS)
def test_a_fault_is_detected(name: str) -> None:
    delay, _ = detected(KINDS[name], 1, 0.5)
    assert delay <= (LINES - BEGIN if name in SLOW else 48)


def test_a_healthy_log_is_quiet() -> None:
    found, steps = false_alarms(iter([healthy(1, 0.5)]))
    assert (found, steps) == ({}, LINES)


def test_exact_intervals() -> None:
    """Tables of Garwood (1936) for 0 and 5 events, and of Clopper and Pearson for 9 of 10."""
    assert rate(0, 10_000) == (0.0, 0.0, pytest.approx(3.689, abs=1e-3))
    assert rate(5, 10_000) == (5.0, pytest.approx(1.623, abs=1e-3), pytest.approx(11.668, abs=1e-3))
    low, high = share(9, 10)
    assert (low, high) == (pytest.approx(0.5550, abs=1e-4), pytest.approx(0.9975, abs=1e-4))
    assert math.isclose(share(10, 10)[1], 1.0)
