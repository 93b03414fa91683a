"""The checks that read the logged metrics: spikes, plateau, diminishing returns, gradient norm.

Trends are those of the last doubling of tokens, against log2 tokens, through means of `BLOCKS`
blocks: neighbouring steps are correlated, blocks hardly are.
"""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
from scipy import stats

from jaxllm.analysis.checks import ALPHA, Check, Trend, trend

WINDOW, _SHORTEST = 128, 32
SPIKE_SIGMAS = 6.0
# A spike that is not over counts once it has lasted for so many logged steps.
LASTING = 5
SINCE = "since"  # begins the subject of an alarm about a spike that lasts
BLOCKS = 10
# A loss that falls by less than this share of itself in a doubling of tokens stands still.
PLATEAU_SHARE = 0.005
# What is left of a budget is hardly worth it when it brings less than this share of the loss.
WORTH_SHARE = 0.01
# A gradient norm that grows by less than this factor in a doubling of tokens is not drifting.
DRIFT_FACTOR = 1.2
# A rest of the budget below this share of the tokens seen brings little by its size alone.
LITTLE_REST = 0.25
# Healthy runs have up to so many spikes in a logged step, from batches of odd text: the share in
# the published logs of the modded-nanogpt records, where each step is a line, is 0.1% to 0.45% (in
# 74 of 75; 0.7% in one).
TOLERATED_SPIKES = 1 / 200
_UNITS = ((1e3, "thousand"), (1e6, "million"), (1e9, "billion"), (1e12, "trillion"))


def finite(metrics: pd.DataFrame, run: str) -> Check:
    """Whether every logged loss is a finite number."""
    name = "finite loss"
    if "loss" not in metrics or metrics.empty:
        return Check(name, run, refused="no loss was logged")
    bad = metrics[~np.isfinite(pd.to_numeric(metrics.loss, errors="coerce").astype("float64"))]
    if bad.empty:
        return Check(name, run, number=0, reason=f"All {len(metrics):,} logged losses are finite.")
    return Check(
        name, run, True, float(len(bad)),
        f"The loss is not a finite number at {len(bad):,} of {len(metrics):,} logged steps.",
        "Go back to a checkpoint before the first of them and lower the learning rate or skip the "
        "data there.",
        step=float(bad.step.iloc[0]), table=bad[["step", "loss"]],
    )  # fmt: skip


def spikes(metrics: pd.DataFrame, run: str, alpha: float = ALPHA) -> Check:
    """Losses far above those just before, by a robust z-score.

    z = (loss - median) / (1.4826 MAD), with median and median absolute deviation of the `WINDOW`
    values before (of `_SHORTEST` while there are not so many). Values above `SPIKE_SIGMAS` in a
    row are one spike; it is over once the loss is back within three of those deviations. The alarm
    is raised when a spike has lasted for `LASTING` lines to the end of the log, or when there are
    more than chance gives at `TOLERATED_SPIKES`: a batch of odd text makes a spike in every run.
    """
    name = "loss spikes"
    entries = logged(metrics, "loss")
    if len(entries) < 2 * _SHORTEST:
        return Check(name, run, refused=f"it takes {2 * _SHORTEST} logged losses")
    values, steps = entries.value.to_numpy(), entries.step.to_numpy()
    median, deviation = _running_medians(values, WINDOW)
    z, level = (values - median) / deviation, median + 3 * deviation
    events, lasting = [], 0
    at, last = 0, len(entries)
    while at < last:
        if not z[at] > SPIKE_SIGMAS:
            at += 1
            continue
        below = np.flatnonzero(values[at:] <= level[at])
        end = at + int(below[0]) if len(below) else last
        lasting = last - at if end == last else 0
        peak = at + int(np.argmax(values[at:end]))
        events.append(
            {"step": steps[at], "peak_step": steps[peak], "loss": values[peak],
             "before": median[at], "sigmas": float(z[at:end].max()),
             "steps_to_recover": float(steps[end] - steps[at]) if end < last else math.nan}
        )  # fmt: skip
        at = end
    columns = ["step", "peak_step", "loss", "before", "sigmas", "steps_to_recover"]
    table = pd.DataFrame(events, columns=columns)
    if table.empty:
        reason = f"No loss among {last:,} stands more than {SPIKE_SIGMAS:.0f} robust "
        return Check(name, run, number=0, reason=reason + "deviations above those before it.",
                     table=table)  # fmt: skip
    worst, newest = table.loc[table.sigmas.idxmax()], table.iloc[-1]
    p = _p_of_spikes(len(table), last)
    plural = "spikes" if len(table) > 1 else "spike"
    reason = (
        f"{len(table)} loss {plural}, the largest at step {worst.peak_step:,.0f} to "
        f"{worst.loss:.3g} ({worst.sigmas:.0f} robust deviations above {worst.before:.3g})"
    )
    advice = (
        "Look at the gradient norm and the data at those steps; a lower learning rate, longer "
        "warmup or z-loss makes spikes rarer."
    )
    place, subjects = float(worst.step), ("many",) if p < alpha else ()
    if lasting >= LASTING:
        reason += f", and since step {newest.step:,.0f} the loss has not come back."
        place, subjects = float(newest.step), (*subjects, f"{SINCE} {newest.step:.0f}")
        advice = (
            "Go back to the checkpoint before it, skip the data in between, and lower the learning "
            "rate if it happens again."
        )
    else:
        reason += ", the newest just begun." if lasting else ", all recovered."
    return Check(name, run, bool(subjects), float(len(table)), reason, advice, place, p,
                 table=table, subjects=subjects)  # fmt: skip


def spike_score(
    metrics: pd.DataFrame,
    run: str,
    window: int = WINDOW,
    rolling: int = 10_000,
    alpha: float = ALPHA,
) -> Check:
    """The share of steps at which loss or gradient norm spikes, as OLMo-core counts it.

    A value is a spike when it exceeds the mean of the `window` values before it by more than six
    of their standard deviations (of the population; none below 1e-10); spikes are not taken out
    of the window. The score is the count by all steps, the first `window` included; `table` has
    the running score over the last `rolling` steps too, once there are so many. Source: OLMo-core,
    train/callbacks/stability_monitor.py. It counts logged lines, so it is OLMo-core's number when
    every step is logged. The alarm is that of `spikes`.
    """
    name = "SpikeScore"
    if len(logged(metrics, "loss")) <= window:
        return Check(name, run, refused=f"it takes more than {window} logged losses")
    table = pd.DataFrame({"step": metrics.step.to_numpy()})
    for column in ("loss", "grad_norm"):
        table[column] = _above_six_sigma(metrics, column, window)
    table["spike"] = table.loss | table.grad_norm
    score = float(table.spike.mean())
    table["running"] = table.spike.rolling(rolling).mean()
    found = int(table.spike.sum())
    p = _p_of_spikes(found, len(table))
    reason = f"SpikeScore {100 * score:.3f}%: {found} of {len(table):,} logged steps spike."
    advice = "Lower the learning rate, warm up longer or clip the gradient tighter."
    last = float(table.step[table.spike].iloc[-1]) if found else math.nan
    return Check(name, run, p < alpha, score, reason, advice, last, p, table)


def plateau(metrics: pd.DataFrame, run: str, alpha: float = ALPHA) -> Check:
    """Whether the loss has stopped falling.

    Null hypothesis: in a doubling of tokens it still falls by `PLATEAU_SHARE` of itself. The alarm
    is raised when the trend of the last doubling rejects that, so a noisy curve raises none.
    """
    name = "plateau"
    found = _recent(metrics, "loss")
    if isinstance(found, str):
        return Check(name, run, refused=found)
    line, table = found
    fall = -line.slope
    p = line.p_above(-PLATEAU_SHARE * line.end)
    raised = p < alpha
    reason = (
        f"In the last doubling of tokens the loss "
        f"{'fell' if fall >= 0 else 'rose'} by {abs(fall):.3g} (now {line.end:.3f}; less than "
        f"{PLATEAU_SHARE * line.end:.2g} would be a plateau, p = {p:.2g})."
    )
    advice = (
        "Let the learning rate decay, or stop; if neither was planned, look for repeated data or a "
        "learning rate that is too high." if fall >= 0 else
        "The loss is rising: go back to an earlier checkpoint with a lower learning rate."
    )  # fmt: skip
    return Check(name, run, raised, fall, reason, advice, p_value=p, table=table)


def returns(
    metrics: pd.DataFrame, run: str, budget_tokens: float = math.nan, alpha: float = ALPHA
) -> Check:
    """What the tokens that are left will bring, at the rate of the last doubling.

    A loss curve flattens against log tokens, so the straight line promises too much: the alarm
    (null hypothesis: the rest brings at least `WORTH_SHARE` of the loss) is on the safe side,
    except that a learning rate yet to decay brings a fall that no trend foresees; the reason says
    so then and no alarm is raised. Nor is one when less than `LITTLE_REST` is left.

    Args:
      metrics: The logged steps of one run.
      run: Its name.
      budget_tokens: Tokens at the end of the planned run; NaN for twice those seen.
      alpha: Level of the test.
    """
    name = "diminishing returns"
    found = _recent(metrics, "loss")
    if isinstance(found, str):
        return Check(name, run, refused=found)
    line, table = found
    now = float(logged(metrics, "loss").tokens.max())
    budget = budget_tokens if budget_tokens > 0 else 2 * now
    if budget <= now:
        return Check(name, run, refused="the budget is spent")
    doublings = math.log2(budget / now)
    fall = -line.slope * doublings
    p = line.p_above(-WORTH_SHARE * line.end / doublings)
    table = table.assign(per_billion_tokens=-table.value.diff() / table.tokens.diff() * 1e9)
    planned = "the remaining budget" if budget_tokens > 0 else "twice the tokens"
    unit, word = max(u for u in _UNITS if u[0] <= max(budget - now, 1e3))
    next_unit = -line.slope * math.log2(1 + unit / now)
    reason = (
        f"At the present rate {planned} ({(budget - now) / now:.0%} more) "
        f"{'lowers' if fall >= 0 else 'raises'} the loss by {abs(fall):.3g} or "
        f"{abs(fall) / line.end:.1%}, one more {word} tokens by {abs(next_unit):.2g}"
    )
    rates = logged(metrics, "learning_rate").value
    waiting = len(rates) > 0 and rates.iloc[-1] > 0.5 * rates.max() > 0
    if waiting:
        reason += "; the learning rate has not decayed yet, which usually lowers it further"
    advice = "Consider stopping here: the rest buys little. See the expected gains of the tasks."
    raised = p < alpha and not waiting and budget - now >= LITTLE_REST * now
    return Check(name, run, raised, fall, reason + ".", advice, p_value=p, table=table)


def gradient_drift(metrics: pd.DataFrame, run: str, alpha: float = ALPHA) -> Check:
    """Whether the gradient norm is growing.

    Null hypothesis: in a doubling of tokens it grows by no more than `DRIFT_FACTOR`. A norm that
    keeps growing goes before many divergences (OLMo 2, arXiv 2501.00656, section 3).
    """
    name = "gradient norm"
    found = _recent(metrics, "grad_norm", log=True)
    if isinstance(found, str):
        return Check(name, run, refused=found)
    line, table = found
    factor = 2.0**line.slope
    p = line.p_above(math.log2(DRIFT_FACTOR))
    verb = "grew" if factor >= 1 else "shrank"
    reason = (
        f"The gradient norm {verb} by a factor of {max(factor, 1 / factor):.2f} in the last "
        f"doubling of tokens, to {2.0**line.end:.3g} (p = {p:.2g})."
    )
    advice = "Lower the learning rate or clip tighter before it diverges; check weight decay."
    return Check(name, run, p < alpha, factor, reason, advice, p_value=p,
                 table=table.assign(value=2.0**table.value))  # fmt: skip


def logged(metrics: pd.DataFrame, column: str) -> pd.DataFrame:
    """`step, tokens, value` of the finite entries of a column, by step."""
    if column not in metrics:
        return pd.DataFrame({"step": [], "tokens": [], "value": []}, dtype="float64")
    known = "tokens" in metrics and metrics["tokens"].notna().any()
    names = ("step", "tokens" if known else "step", column)
    rows = np.column_stack([_floats(metrics[name]) for name in names])
    rows = rows[np.isfinite(rows).all(axis=1)]
    if not (np.diff(rows[:, 0]) > 0).all():  # of equal steps the last one holds
        rows = rows[np.argsort(rows[:, 0], kind="stable")]
        rows = rows[np.append(np.diff(rows[:, 0]) > 0, True)]
    return pd.DataFrame(rows, columns=["step", "tokens", "value"])


def _floats(column: pd.Series) -> np.ndarray:
    if column.dtype.kind not in "fiu":
        column = pd.to_numeric(column, errors="coerce")
    return column.to_numpy(np.float64, na_value=math.nan)


def _recent(
    metrics: pd.DataFrame, column: str, log: bool = False
) -> tuple[Trend, pd.DataFrame] | str:
    """The trend of the last doubling of tokens and its blocks, or why there is none."""
    entries = logged(metrics, column).to_numpy()
    entries = entries[entries[:, 1] > 0]
    if log:
        entries = entries[entries[:, 2] > 0]
        entries[:, 2] = np.log2(entries[:, 2])
    if not len(entries):
        return f"no {column} was logged"
    start = entries[:, 1].max() / 2
    recent = entries[entries[:, 1] >= start]
    span = np.ptp(recent[:, 1])
    if len(recent) < 3 * BLOCKS or span == 0:
        return f"it takes {3 * BLOCKS} logged steps in the last doubling of tokens"
    _, clock, rates = logged(metrics, "learning_rate").to_numpy().T
    if len(rates) and rates[-1] == rates.max() > rates[clock >= start].min() * 1.01:
        return "the learning rate is still warming up"
    doublings = np.log2(recent[:, 1])
    bins = ((doublings - doublings.min()) / np.ptp(doublings) * BLOCKS).clip(max=BLOCKS - 0.5)
    rows = np.column_stack([doublings, recent])
    of_block = bins.astype(int)
    blocks = np.array([rows[of_block == block].mean(axis=0) for block in np.unique(of_block)])
    line = trend(blocks[:, 0], blocks[:, 3])
    if line is None:
        return f"it takes {3 * BLOCKS} logged steps in the last doubling of tokens"
    return line, pd.DataFrame(blocks[:, 1:], columns=["step", "tokens", "value"])


def _p_of_spikes(found: int, lines: int) -> float:
    """p-value of the null hypothesis that spikes are no more frequent than `TOLERATED_SPIKES`."""
    return float(stats.poisson.sf(found - 1, TOLERATED_SPIKES * lines))


def _above_six_sigma(metrics: pd.DataFrame, column: str, window: int) -> np.ndarray:
    if column not in metrics:
        return np.zeros(len(metrics), bool)
    values = pd.to_numeric(metrics[column], errors="coerce").astype("float64")
    before = values.shift(1).rolling(window)
    deviation = before.std(ddof=0)
    spikes = values > before.mean() + SPIKE_SIGMAS * deviation
    return (spikes & (deviation >= 1e-10)).to_numpy()


def _running_medians(values: np.ndarray, window: int) -> tuple[np.ndarray, np.ndarray]:
    """Median and 1.4826 MAD of the `window` values before each, of `_SHORTEST` for the first.

    They depend on nothing else, so that a spike is the same one whenever it is looked at.
    """
    median, deviation = np.full(len(values), np.nan), np.full(len(values), np.nan)
    for width in (_SHORTEST, window):
        if len(values) <= width:
            break
        before = np.lib.stride_tricks.sliding_window_view(values, width)[:-1]
        until = window - _SHORTEST if width < window else len(before)
        for at in range(0, min(until, len(before)), 8192):  # bounds the memory of long logs
            part = before[at : min(at + 8192, until)]
            middle = np.median(part, axis=1)
            spread = 1.4826 * np.median(np.abs(part - middle[:, None]), axis=1)
            rows = slice(width + at, width + at + len(part))
            median[rows], deviation[rows] = middle, np.maximum(spread, 1e-6 * np.abs(middle))
    return median, deviation
