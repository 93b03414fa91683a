"""Number formats of the report: short, with units, and no spurious digits."""

from __future__ import annotations

import math

from jaxllm.analysis.curves import is_share
from jaxllm.analysis.finding import amount, power_of_ten

UNKNOWN = "–"
UNITS = {
    "loss": "nats per token",
    "grad_norm": "Euclidean norm, before clipping",
    "tokens_per_second": "of all devices",
    "mfu": "share of the peak FLOP/s",
    "goodput": "share of the wall time",
    "time": "share of the wall time",
}
"""Units of the columns of metrics.jsonl whose names do not say them, by what precedes a slash."""


def flops(number: float) -> str:
    """FLOPs as a power of ten: 3.4e18 -> "3.4 × 10¹⁸"."""
    if number == 0 or not math.isfinite(number):
        return UNKNOWN if number else "0"
    return power_of_ten(number)


def value(number: float, metric: str) -> str:
    """Value of a metric: shares in percent, other values with three decimals."""
    if not math.isfinite(number):
        return UNKNOWN
    if is_share(metric):
        return f"{100 * number:.1f}%"
    return f"{number:.3f}" if abs(number) < 100 else f"{number:.4g}"


def chance(number: float, metric: str) -> str:
    """Chance level, with shares in whole percent: "25%"."""
    return value(number, metric).replace(".0%", "%")


def short(number: float) -> str:
    """Any number to three digits."""
    return amount(number) if abs(number) >= 1000 else f"{number:.3g}"


def with_error(number: float, stderr: float, metric: str) -> str:
    """Value and standard error: "62.1% ± 1.4"; alone where no example differs and it is 0."""
    if not (math.isfinite(number) and stderr > 0):
        return value(number, metric)
    smallest, scaled = (0.1, 100 * stderr) if is_share(metric) else (0.001, stderr)
    error = (
        f"{scaled:.{1 if is_share(metric) else 3}f}" if scaled >= smallest / 2 else f"<{smallest}"
    )
    return f"{value(number, metric)} ± {error}"


def metric_name(metric: str) -> str:
    """Readable name of a metric: "bits_per_byte" -> "bits per byte"."""
    return metric.replace("_", " ")


def join(words: list[str]) -> str:
    """Enumeration: "a", "a and b", "a, b and c"."""
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)
