"""The clocks of a run, and its loss, as chart axes, shared by every chart of a page."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pandas as pd

LOSS = "loss"
CLOCKS = {"tokens": "Training tokens", "flops": "Training FLOPs", "step": "Step"}

# "10G" tokens are 10B, "800m" is 0.8, and "1e+18" FLOPs are 1e18.
COUNT_LABEL = (
    "abs(datum.value) < 1000 ? format(datum.value, '~r') : "
    "replace(replace(format(datum.value, '~s'), 'G', 'B'), 'k', 'K')"
)
FLOPS_LABEL = "datum.value == 0 ? '0' : replace(format(datum.value, '~e'), 'e+', 'e')"
_LABELS = {
    "tokens": COUNT_LABEL,
    "flops": FLOPS_LABEL,
    "step": "datum.value >= 10000 ? format(datum.value, '~s') : format(datum.value, '~r')",
}


@dataclasses.dataclass(frozen=True)
class Axis:
    """One clock on a logarithmic or linear scale, as Vega-Lite's `field`, `scale` and `axis`."""

    field: str
    scale: dict[str, Any]
    axis: dict[str, Any]


def axes(points: pd.DataFrame, metrics: pd.DataFrame) -> dict[str, dict[str, Axis]]:
    """`{clock: {"log": Axis, "linear": Axis}}`, from 0 to the largest value of all runs.

    As a run has a checkpoint at step 0, the logarithmic scale is symmetric (log(1 + x/c)); c is the
    first checkpoint after it.
    """
    result = {}
    for clock, title in CLOCKS.items():
        scored, logged = _positive(points, clock), _positive(metrics, clock)
        low, high = min(scored or logged or [1.0]), max([*scored, *logged] or [1.0])
        axis = {"title": title, "labelExpr": _LABELS[clock]}
        scale = {"domain": [0, high], "nice": False}
        ticks = [0, *_decades(low, high)]  # tickCount: all of them where there is room
        log = axis | {"values": ticks, "tickCount": len(ticks)}
        result[clock] = {
            "log": Axis(clock, {"type": "symlog", "constant": low, **scale}, log),
            "linear": Axis(clock, {"type": "linear", **scale}, axis | {"tickMinStep": 1}),
        }
    if losses := _positive(points, LOSS):
        # A run goes from a high loss to a low one, and so does the axis, from left to right.
        scale = {"domain": [max(losses) * 1.01, min(losses) / 1.01], "nice": False}
        axis = {"title": "Training loss"}
        result[LOSS] = {
            "log": Axis(LOSS, {"type": "log", **scale}, axis),
            "linear": Axis(LOSS, {"type": "linear", "zero": False, **scale}, axis),
        }
    return result


def preferred_scale(points: pd.DataFrame) -> str:
    """Logarithmic when the checkpoints span more than a factor of 30, as early dense ones do."""
    values = _positive(points, "tokens")
    return "log" if values and max(values) > 30 * min(values) else "linear"


def default_axis(points: pd.DataFrame, metrics: pd.DataFrame) -> Axis:
    """The axis of charts unless their reader chooses another."""
    return axes(points, metrics)["tokens"][preferred_scale(points)]


def _positive(frame: pd.DataFrame, clock: str) -> list[float]:
    return [float(value) for value in frame.get(clock, ()) if 0 < value < math.inf]


def _decades(low: float, high: float) -> list[float]:
    """Powers of ten from `low` to `high`, with 3s (or 2s and 5s) between when they are few."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    steps = (1, 2, 5) if last - first < 3 else (1, 3) if last - first < 5 else (1,)
    ticks = [m * 10.0**e for e in range(first, last + 1) for m in steps]
    return [tick for tick in ticks if low <= tick <= high * 1.0001]
