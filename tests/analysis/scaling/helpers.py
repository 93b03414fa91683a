"""What the tests of scaling laws share."""

from jaxllm.analysis.scaling.fit import IntervalEstimate


def covers(estimate: IntervalEstimate, truth: float) -> bool:
    """Whether the interval holds the truth."""
    return estimate.low <= truth <= estimate.high
