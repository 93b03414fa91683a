"""Simple forecasts that a forecaster must beat; those that know model sizes are the hard ones."""

from __future__ import annotations

import numpy as np

from jaxllm.analysis.curves import Array
from jaxllm.analysis.forecast_methods import SAME_SIZE

# Column -> name. The first two need no other run, the others a finished one: see `by_size`.
BASELINES = {
    "last": "last value",
    "recent": "mean of recent checkpoints",
    "nearest_gain": "gain of the nearest size",
    "gain_line": "line in log N of gains",
    "final_line": "line in log N of final values",
}


def by_size(
    last: float, now: Array, end: Array, sizes: Array, size: float
) -> tuple[float, float, float]:
    """Final value by the nearest size's gain and by lines in log N of gains and of final values.

    From the run's `last` value, the finished runs' values `now` [runs] at the same share of the
    training, final ones `end` and log parameters `sizes`, and the run's own `size`.
    """
    apart = np.abs(sizes - size)
    nearest = apart <= apart.min() + SAME_SIZE
    across = sizes - sizes.mean()
    weights = np.full(len(sizes), 1 / len(sizes))
    if np.ptp(sizes) >= SAME_SIZE:
        weights += (size - sizes.mean()) / (across @ across) * across
    gain = end - now
    return last + float(gain[nearest].mean()), last + float(weights @ gain), float(weights @ end)
