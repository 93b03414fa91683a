"""A forecast for a run that has no finished runs to learn from.

The run's recent trend in log tokens goes on at half its slope (a damped trend: Gardner and
McKenzie 1985, "Forecasting trends in time series"), as far as the slope stands out from the
sampling noise; a task without a visible trend stays at its recent mean. The interval comes from
the run's own past: from each earlier checkpoint the same method forecast a later one that is
already known, as many times more tokens ahead as the end is now; the errors of all tasks, each
divided by what was expected of it, give the width (split-conformal). The past of a run is not its
future: on Pythia 84 to 97 % of these 90 % intervals hold, and they are about twice as wide as with
other runs to learn from.
"""

from __future__ import annotations

import math

import numpy as np

from jaxllm.analysis.forecast_curves import RECENT, Curve
from jaxllm.analysis.forecast_methods import ENOUGH_SCORES, quantile

DAMPING = 0.5
NORMAL = 1.6449
"""Half width of the normal distribution's 90 % interval, in standard deviations."""


def forecast_alone(targets: list[Curve], cut: float, level: float) -> list[tuple[float, float]]:
    """The final value of each of a run's tasks, and the half width of its interval.

    Args:
      targets: Curves of one run with a point before the cut each; nothing after it is read.
      cut: Share of the training.
      level: Coverage of the intervals.
    """
    now, scores = [], []
    for target in targets:
        x = np.log(target.before(cut))
        y = target.values[: len(x)]
        noise = _noise(target.stderr[len(x) - 1], y)
        now.append(_extrapolate(x, y, -x[-1], noise))
        scores += _past_scores(x, y, noise)
    radius = NORMAL * math.sqrt(2.0)
    if len(scores) >= ENOUGH_SCORES:
        radius = quantile(np.array(scores), level)
    return [(value, radius * scale) for value, scale in now]


def _extrapolate(x: np.ndarray, y: np.ndarray, ahead: float, noise: float) -> tuple[float, float]:
    """The value at `x[-1] + ahead`, and the error that is expected of it."""
    # The past that counts is as long, in log tokens, as what lies ahead.
    count = min(max(int((x >= x[-1] - ahead).sum()), RECENT), len(x))
    x, y = x[-count:], y[-count:]
    centred = x - x.mean()
    spread = float(centred @ centred)
    if count < 2 or spread == 0:
        return float(y[-1]), math.sqrt(2) * noise + 1e-9
    slope = float(centred @ y) / spread
    # Positive-part James-Stein: no trend is left where noise alone would show as much.
    signal = max(0.0, 1 - noise**2 / spread / slope**2) if slope else 0.0
    gain = DAMPING * signal * slope * ahead
    level = signal * y[-1] + (1 - signal) * y[-RECENT:].mean()
    return float(level + gain), math.sqrt(2 * noise**2 + (DAMPING * slope * ahead) ** 2) + 1e-9


def _past_scores(x: np.ndarray, y: np.ndarray, noise: float) -> list[float]:
    """|error| / expected error of forecasts from earlier checkpoints of the same curve."""
    ahead, scores = -x[-1], []
    for count in range(1, len(x)):
        horizons = x[count:] - x[count - 1]
        at = int(np.abs(horizons - ahead).argmin())
        if horizons[at] < ahead / 2:
            continue
        value, scale = _extrapolate(x[:count], y[:count], float(horizons[at]), noise)
        scores.append(abs(value - y[count + at]) / scale)
    return scores


def _noise(stderr: float, y: np.ndarray) -> float:
    """The standard error of a value; where it is unknown, from the jumps between neighbours."""
    if math.isfinite(stderr) and stderr > 0:
        return float(stderr)
    return float(np.abs(np.diff(y, 2)).mean() / 2) if len(y) > 2 else 0.0
