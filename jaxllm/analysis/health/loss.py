"""Checks of the logged metrics: spikes, plateau, gradient norm.

Trends are lines over log2 tokens in the last doubling of tokens, through means of `BLOCKS` blocks:
neighbouring steps are correlated, blocks hardly are.
"""

from __future__ import annotations

import itertools
import math

import numpy as np
import pandas as pd
from scipy import stats

from jaxllm.analysis.health.result import ALPHA, CRITICAL, WARNING, Check
from jaxllm.analysis.stats import Line, line_fit

WINDOW, _SHORTEST = 128, 32
SPIKE_SIGMAS = 6.0
# Logged steps after which a spike without recovery raises an alarm.
LASTING = 5
FINITE, SPIKES = "finite loss", "loss spikes"  # names of checks
SINCE = "since"  # prefix of the alarm subject of a spike without recovery
BLOCKS = 10
# Relative decrease of the loss per doubling of tokens below which it is on a plateau; also as a
# share of that in the two doublings before. Of E + A / tokens^b it is 0.73 for b = 0.3, 1/3 for 1.
PLATEAU_SHARE, SLOWER = 0.005, 1 / 3
FALLING_SHARE = 0.02  # the most that this may be: steeper are the first steps of a run
DECAYED = 0.5  # share of its maximum below which the learning rate makes a loss level off
# Growth factor of the gradient norm per doubling of tokens up to which it is not drifting.
DRIFT_FACTOR = 1.2
# Spikes per logged step in healthy runs, from outlier batches: in the published logs of the
# modded-nanogpt records, which log every step, 0.1% to 0.45% (in 74 of 75; 0.7% in one).
TOLERATED_SPIKES = 1 / 200


def loss_checks(
    metrics: pd.DataFrame, alpha: float = ALPHA, newest: int | None = None
) -> tuple[Check, ...]:
    """Run the checks of the logged metrics of one run, each at level `alpha`; only the `newest`
    steps, if given, are searched for spikes.
    """
    late = metrics if newest is None else metrics.tail(newest)
    return (
        non_finite_loss(late),
        spikes(late, alpha),
        gradient_drift(metrics, alpha),
        plateau(metrics, alpha),
    )


def non_finite_loss(metrics: pd.DataFrame) -> Check:
    """Whether every logged loss is a finite number; where every step was skipped there is none."""
    name = FINITE
    if "loss" in metrics and "skipped_steps" in metrics:
        metrics = metrics[metrics.loss.notna() | metrics.skipped_steps.isna()]
    if "loss" not in metrics or metrics.empty:
        return Check(name, refused="no loss was logged")
    bad = metrics[~np.isfinite(_floats(metrics.loss))]
    if bad.empty:
        return Check(name, number=0, reason=f"All {len(metrics):,} logged losses are finite.")
    at = f"{len(bad):,} of {len(metrics):,} logged steps"
    reason = f"No finite loss at {at}: it is not a number there, or all updates were skipped."
    advice = (
        "Go back to a checkpoint before the first of them and lower the learning rate or skip the "
        "data there."
    )
    step, bad = float(bad.step.iloc[0]), bad[["step", "loss"]]
    return Check(name, True, len(bad), reason, advice, step, table=bad, severity=CRITICAL)


def spikes(metrics: pd.DataFrame, alpha: float = ALPHA) -> Check:
    """Detect loss spikes by z = (loss - median) / (1.4826 MAD), of the preceding `WINDOW` values
    (`_SHORTEST` at the start).

    A spike begins at z above `SPIKE_SIGMAS` and ends once the loss is back within three of those
    deviations. The alarm is raised when one has lasted for `LASTING` logged steps to the end of the
    log, or when there are significantly more than `TOLERATED_SPIKES`.
    """
    name = SPIKES
    entries = logged(metrics, "loss")
    count = len(entries)
    if count < 2 * _SHORTEST:
        return Check(name, refused=f"it takes {2 * _SHORTEST} logged losses")
    table = _spikes(entries)
    if table.empty:
        reason = (
            f"No loss among {count:,} stands more than {SPIKE_SIGMAS:.0f} robust deviations above "
            "those before it."
        )
        return Check(name, number=0, reason=reason, table=table)
    worst, newest = table.loc[table.sigmas.idxmax()], table.iloc[-1]
    p = float(stats.poisson.sf(len(table) - 1, TOLERATED_SPIKES * count))
    reason = (
        f"{len(table)} loss {'spikes' if len(table) > 1 else 'spike'}, the largest at step "
        f"{worst.peak_step:,.0f} to {worst.loss:.3g} ({worst.sigmas:.0f} robust deviations above "
        f"{worst.before:.3g})"
    )
    advice = (
        "Look at the gradient norm and the data at those steps; a lower learning rate, longer "
        "warmup or z-loss makes spikes rarer."
    )
    step, subjects, severity = float(worst.step), ("many",) if p < alpha else (), WARNING
    if not math.isnan(newest.steps_to_recover):
        reason += ", all recovered"
    elif (entries.step >= newest.step).sum() < LASTING:
        reason += ", the newest just begun"
    else:
        reason += f", and since step {newest.step:,.0f} the loss has not come back"
        step, subjects = float(newest.step), (*subjects, f"{SINCE} {newest.step:.0f}")
        severity = CRITICAL
        advice = (
            "Go back to the checkpoint before it, skip the data in between, and lower the learning "
            "rate if it happens again."
        )
    found = (bool(subjects), float(len(table)), f"{reason}.", advice, step, p, table)
    return Check(name, *found, subjects=subjects, severity=severity)


def _spikes(entries: pd.DataFrame) -> pd.DataFrame:
    """Table with a row per spike; `steps_to_recover` is NaN for one that lasts to the end."""
    values, steps = entries.value.to_numpy(), entries.step.to_numpy()
    median, deviation = _running_medians(values)
    z, level = (values - median) / deviation, median + 3 * deviation
    events, at = [], 0
    while len(above := np.flatnonzero(z[at:] > SPIKE_SIGMAS)):
        at += int(above[0])
        below = np.flatnonzero(values[at:] <= level[at])
        end = at + int(below[0]) if len(below) else len(values)
        peak = at + int(np.argmax(values[at:end]))
        recovery = float(steps[end] - steps[at]) if len(below) else math.nan
        events.append((steps[at], steps[peak], values[peak], median[at], z[at:end].max(), recovery))
        at = end
    columns = ["step", "peak_step", "loss", "before", "sigmas", "steps_to_recover"]
    return pd.DataFrame(events, columns=columns)


def plateau(metrics: pd.DataFrame, alpha: float = ALPHA) -> Check:
    """Whether the loss has stopped falling: the trend of the last doubling rejects the null
    hypothesis that it still falls by the share `PLATEAU_SHARE` per doubling of tokens, and by
    `SLOWER` of what it fell before, unless that is more than `FALLING_SHARE`; under a decayed
    learning rate, that it does not rise.
    """
    name, line = "plateau", recent_trend(metrics, "loss")
    if isinstance(line, str):
        return Check(name, refused=line)
    rate, fall = logged(metrics, "learning_rate").value.to_numpy(), -line.slope
    if len(rate) and rate[-1] < DECAYED * rate.max():
        p, normal = line.p_above(0.0), "only a rise counts at a decayed learning rate"
    else:
        least, p = PLATEAU_SHARE * line.end, line.p_above(-PLATEAU_SHARE * line.end)
        slower, p_slower = _slower(metrics, FALLING_SHARE * line.end)
        p, normal = min(1.0, 2 * min(p, p_slower)), f"{max(least, slower):.2g} would be no plateau"
    reason = (
        f"In the last doubling of tokens the loss "
        f"{'fell' if fall >= 0 else 'rose'} by {abs(fall):.3g} (now {line.end:.3f}; {normal}, "
        f"p = {p:.2g})."
    )
    advice = "The loss is rising: go back to an earlier checkpoint with a lower learning rate."
    if fall >= 0:
        advice = (
            "Let the learning rate decay, or stop; if neither was planned, look for repeated data "
            "or a learning rate that is too high."
        )
    return Check(name, p < alpha, fall, reason, advice, p_value=p)


def _slower(metrics: pd.DataFrame, most: float) -> tuple[float, float]:
    """The share `SLOWER` of the fall per doubling in the two before the last, and the p-value of
    the null hypothesis that it was at least that in the last; 0 and 1 if too few, or above `most`.

    A line with a bend, through means of blocks. Their noise is what a line with three bends leaves,
    as AR(1) with φ = r + (1 + 3r) / n (Kendall 1954): its variance is that of n (1 - φ) / (1 + φ).
    """
    entries, rates = logged(metrics, "loss"), logged(metrics, "learning_rate")
    warm = rates.tokens[rates.value >= 0.99 * rates.value.max()].min() if len(rates) else 0.0
    start = entries.tokens.max() / 2
    entries = entries[entries.tokens >= max(start / 4, warm)]
    doublings = np.log2(entries.tokens / start)
    block = np.minimum(np.floor(2 * BLOCKS * doublings), 2 * BLOCKS - 1)
    blocks = entries.assign(x=doublings, count=1.0).groupby(block)
    x, y = blocks[["x", "value"]].mean().to_numpy().T
    if (x < 0).sum() < BLOCKS:
        return 0.0, 1.0
    weight = np.sqrt(blocks["count"].sum().to_numpy())

    def spline(*bends: float) -> np.ndarray:  # its coefficients: the value at 0, and the slopes
        slopes = [np.clip(x, *ends) for ends in itertools.pairwise(bends)]
        return weight[:, None] * np.stack([np.ones_like(x), *slopes], axis=1)

    inverse, freer = np.linalg.pinv(spline(-2, 0, 1)), spline(-2, -1, 0, 0.5, 1)
    fit, (other, _, rank, _) = inverse @ (y * weight), np.linalg.lstsq(freer, y * weight)
    off = y * weight - freer @ other
    squares = max(float(off @ off), 1e-300)
    r = off[1:] @ off[:-1] / squares
    phi = float(np.clip(r + (1 + 3 * r) / len(x), 0, 0.95))
    share = (1 - phi) / (1 + phi)
    if -SLOWER * fit[1] > most:
        return 0.0, 1.0  # the steep curve of the first steps, which no line with a bend fits
    contrast = np.array([0, -SLOWER, 1])
    error = np.linalg.norm(contrast @ inverse) * math.sqrt(squares / (len(x) - rank) / share)
    p = stats.t.sf(contrast @ fit / error, max(len(x) * share - rank, 1.0))
    return -SLOWER * fit[1], float(p)


def gradient_drift(metrics: pd.DataFrame, alpha: float = ALPHA) -> Check:
    """Whether the gradient norm grows by more than the factor `DRIFT_FACTOR` per doubling of
    tokens.

    A growing norm precedes many divergences (OLMo 2, arXiv 2501.00656, section 3).
    """
    name, line = "gradient norm", recent_trend(metrics, "grad_norm", log=True)
    if isinstance(line, str):
        return Check(name, refused=line)
    factor = 2.0**line.slope
    p = line.p_above(math.log2(DRIFT_FACTOR))
    reason = (
        f"The gradient norm {'grew' if factor >= 1 else 'shrank'} by a factor of "
        f"{max(factor, 1 / factor):.2f} in the last doubling of tokens, to {2.0**line.end:.3g} "
        f"(p = {p:.2g})."
    )
    advice = "Lower the learning rate or clip tighter before it diverges; check weight decay."
    return Check(name, p < alpha, factor, reason, advice, p_value=p)


def logged(metrics: pd.DataFrame, column: str) -> pd.DataFrame:
    """Table of `step, tokens, value`: the finite entries of a column, by step."""
    names = ["step", "tokens", "value"]
    if column not in metrics:
        return pd.DataFrame(columns=names, dtype="float64")
    known = "tokens" in metrics and metrics["tokens"].notna().any()
    columns = [metrics[name] for name in ("step", "tokens" if known else "step", column)]
    rows = np.column_stack([_floats(values) for values in columns])
    rows = rows[np.isfinite(rows).all(axis=1)]
    if not (np.diff(rows[:, 0]) > 0).all():  # of repeated steps the last one is used
        rows = rows[np.argsort(rows[:, 0], kind="stable")]
        rows = rows[np.append(np.diff(rows[:, 0]) > 0, True)]
    return pd.DataFrame(rows, columns=names)


def _floats(column: pd.Series) -> np.ndarray:
    return pd.to_numeric(column, errors="coerce").to_numpy(np.float64, na_value=math.nan)


def recent_trend(metrics: pd.DataFrame, column: str, log: bool = False) -> Line | str:
    """Trend of a column, or of its log2, over the last doubling of tokens; or why there is none."""
    entries = logged(metrics, column)
    entries = entries[(entries.tokens > 0) & ((entries.value > 0) | (not log))]
    if entries.empty:
        return f"no {column} was logged"
    start = entries.tokens.max() / 2
    recent = entries[entries.tokens >= start]
    few = f"it takes {3 * BLOCKS} logged steps in the last doubling of tokens"
    if len(recent) < 3 * BLOCKS or recent.tokens.nunique() == 1:
        return few
    rates = logged(metrics, "learning_rate")
    rate = rates.value.to_numpy()
    if len(rate) and rate[-1] == rate.max() > rate[rates.tokens >= start].min() * 1.01:
        return "the learning rate is still warming up"
    value = np.log2(recent.value) if log else recent.value
    recent = recent.assign(value=value, doublings=np.log2(recent.tokens))
    place = (recent.doublings - recent.doublings.min()) / np.ptp(recent.doublings)
    blocks = recent.groupby((place * BLOCKS).astype(int).clip(upper=BLOCKS - 1)).mean()
    return line_fit(blocks.doublings, blocks.value, fewest=4) or few


def _running_medians(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Median and 1.4826 MAD of the `WINDOW` values before each, of `_SHORTEST` at the start.

    They depend on earlier values only: a spike is the same at every later check.
    """
    median, deviation = np.full((2, len(values)), np.nan)
    for width, last in ((_SHORTEST, WINDOW), (WINDOW, len(values))):
        last = min(last, len(values))
        for at in range(width, last, 8192):  # bounds the memory of long logs
            end = min(at + 8192, last)
            before = np.lib.stride_tricks.sliding_window_view(values[at - width : end - 1], width)
            middle = np.median(before, axis=1)
            spread = 1.4826 * np.median(np.abs(before - middle[:, None]), axis=1)
            median[at:end], deviation[at:end] = middle, np.maximum(spread, 1e-6 * np.abs(middle))
    return median, deviation
