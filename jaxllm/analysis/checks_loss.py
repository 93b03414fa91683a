"""The checks that read the logged metrics: spikes, plateau, diminishing returns, gradient norm.

Trends are those of the last doubling of tokens, against log2 tokens, through means of `BLOCKS`
blocks: neighbouring steps are correlated, blocks hardly are.
"""

from __future__ import annotations

import math

import numpy as np
import pandas as pd

from jaxllm.analysis.checks import ALPHA, Check, Trend, trend

WINDOW, _SHORTEST = 128, 32
SPIKE_SIGMAS = 6.0
BLOCKS = 10
# A loss that falls by less than this share of itself in a doubling of tokens stands still.
PLATEAU_SHARE = 0.005
# What is left of a budget is hardly worth it when it brings less than this share of the loss.
WORTH_SHARE = 0.01
# A gradient norm that grows by less than this factor in a doubling of tokens is not drifting.
DRIFT_FACTOR = 1.2
# More spikes than one in so many logged steps are more than bad luck with a batch.
TOLERATED_SPIKES = 1 / 1000


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


def spikes(metrics: pd.DataFrame, run: str, window: int = WINDOW) -> Check:
    """Losses far above those just before, by a robust z-score.

    z = (loss - median) / (1.4826 MAD), with median and median absolute deviation of the `window`
    values before (half of the log if that is fewer). Values above `SPIKE_SIGMAS` in a row are one
    spike; it is over once the loss is back within three of those deviations. The alarm is raised
    when a spike is not over at the end of the log or there are more than `TOLERATED_SPIKES`.
    """
    name = "loss spikes"
    entries = logged(metrics, "loss")
    if len(entries) < 2 * _SHORTEST:
        return Check(name, run, refused=f"it takes {2 * _SHORTEST} logged losses")
    median, deviation = _running_medians(entries.value.to_numpy(), min(window, len(entries) // 2))
    z = (entries.value - median) / deviation
    events = []
    at, last = 0, len(entries)
    high, level = (z > SPIKE_SIGMAS).to_numpy(), median + 3 * deviation
    values, steps = entries.value.to_numpy(), entries.step.to_numpy()
    while at < last:
        if not high[at]:
            at += 1
            continue
        below = np.flatnonzero(values[at:] <= level[at])
        end = at + int(below[0]) if len(below) else last
        peak = at + int(np.argmax(values[at:end]))
        events.append(
            {"step": steps[at], "peak_step": steps[peak], "loss": values[peak],
             "before": median[at], "sigmas": float(z.iloc[at:end].max()),
             "steps_to_recover": float(steps[end] - steps[at]) if end < last else math.nan}
        )  # fmt: skip
        at = end
    columns = ["step", "peak_step", "loss", "before", "sigmas", "steps_to_recover"]
    table = pd.DataFrame(events, columns=columns)
    if table.empty:
        reason = f"No loss among {len(entries):,} stands more than {SPIKE_SIGMAS:.0f} robust "
        return Check(name, run, number=0, reason=reason + "deviations above those before it.",
                     table=table)  # fmt: skip
    worst = table.loc[table.sigmas.idxmax()]
    open_end = bool(table.steps_to_recover.isna().iloc[-1])
    many = len(table) > max(1.0, TOLERATED_SPIKES * len(entries))
    plural = "spikes" if len(table) > 1 else "spike"
    reason = (
        f"{len(table)} loss {plural}, the largest at step {worst.peak_step:,.0f} to "
        f"{worst.loss:.3g} ({worst.sigmas:.0f} robust deviations above {worst.before:.3g})"
    )
    reason += ", and the loss has not come back since." if open_end else ", all recovered."
    advice = (
        "Go back to the checkpoint before it, skip the data in between, and lower the learning "
        "rate if it happens again." if open_end else
        "Look at the gradient norm and the data at those steps; a lower learning rate, longer "
        "warmup or z-loss makes spikes rarer."
    )  # fmt: skip
    return Check(name, run, open_end or many, float(len(table)), reason, advice,
                 float(worst.step), table=table)  # fmt: skip


def spike_score(
    metrics: pd.DataFrame, run: str, window: int = WINDOW, rolling: int = 10_000
) -> Check:
    """The share of steps at which loss or gradient norm spikes, as OLMo-core counts it.

    A value is a spike when it exceeds the mean of the `window` values before it by more than six
    of their standard deviations (of the population; none below 1e-10); spikes are not taken out
    of the window. The score is the count by all steps, the first `window` included; `table` has
    the running score over the last `rolling` steps too, once there are so many. Source: OLMo-core,
    train/callbacks/stability_monitor.py. It counts logged lines, so it is OLMo-core's number when
    every step is logged.
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
    raised = found > 1 and score > TOLERATED_SPIKES
    reason = f"SpikeScore {100 * score:.3f}%: {found} of {len(table):,} logged steps spike."
    advice = "Lower the learning rate, warm up longer or clip the gradient tighter."
    last = float(table.step[table.spike].iloc[-1]) if found else math.nan
    return Check(name, run, raised, score, reason, advice, last, table=table)


def plateau(metrics: pd.DataFrame, run: str) -> Check:
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
    raised = p < ALPHA
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


def returns(metrics: pd.DataFrame, run: str, budget_tokens: float = math.nan) -> Check:
    """What the tokens that are left will bring, at the rate of the last doubling.

    A loss curve flattens against log tokens, so the straight line promises too much: the alarm
    (null hypothesis: the rest brings at least `WORTH_SHARE` of the loss) is on the safe side,
    except that a learning rate yet to decay brings a fall that no trend foresees; the reason says
    so then and no alarm is raised.

    Args:
      metrics: The logged steps of one run.
      run: Its name.
      budget_tokens: Tokens at the end of the planned run; NaN for twice those seen.
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
    reason = (
        f"At the present rate {planned} ({(budget - now) / now:.0%} more) lowers the loss by "
        f"{fall:.3g} or {fall / line.end:.1%}, {fall / (budget - now) * 1e9:.2g} per billion tokens"
    )
    rates = logged(metrics, "learning_rate").value
    waiting = len(rates) > 0 and rates.iloc[-1] > 0.5 * rates.max() > 0
    if waiting:
        reason += "; the learning rate has not decayed yet, which usually lowers it further"
    advice = "Consider stopping here: the rest buys little. See the expected gains of the tasks."
    return Check(name, run, p < ALPHA and not waiting, fall, reason + ".", advice,
                 p_value=p, table=table)  # fmt: skip


def gradient_drift(metrics: pd.DataFrame, run: str) -> Check:
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
    return Check(name, run, p < ALPHA, factor, reason, advice, p_value=p,
                 table=table.assign(value=2.0**table.value))  # fmt: skip


def logged(metrics: pd.DataFrame, column: str) -> pd.DataFrame:
    """`step, tokens, value` of the finite entries of a column, by step."""
    if column not in metrics:
        return pd.DataFrame({"step": [], "tokens": [], "value": []}, dtype="float64")
    known = "tokens" in metrics and metrics["tokens"].notna().any()
    tokens = metrics["tokens" if known else "step"]
    frame = pd.DataFrame({"step": metrics["step"], "tokens": tokens, "value": metrics[column]})
    frame = frame.apply(pd.to_numeric, errors="coerce").astype("float64")
    frame = frame[np.isfinite(frame).all(axis=1)]
    return frame.drop_duplicates("step", keep="last").sort_values("step", ignore_index=True)


def _recent(
    metrics: pd.DataFrame, column: str, log: bool = False
) -> tuple[Trend, pd.DataFrame] | str:
    """The trend of the last doubling of tokens and its blocks, or why there is none."""
    entries = logged(metrics, column)
    entries = entries[entries.tokens > 0]
    if log:
        entries = entries[entries.value > 0].assign(value=lambda rows: np.log2(rows.value))
    if entries.empty:
        return f"no {column} was logged"
    recent = entries[entries.tokens >= entries.tokens.max() / 2]
    if len(recent) < 3 * BLOCKS or recent.tokens.min() == recent.tokens.max():
        return f"it takes {3 * BLOCKS} logged steps in the last doubling of tokens"
    rates = logged(metrics, "learning_rate")
    if len(rates) and rates.value.iloc[-1] == rates.value.max() > rates.value[
        rates.tokens >= entries.tokens.max() / 2
    ].min() * 1.01:  # fmt: skip
        return "the learning rate is still warming up"
    doublings = np.log2(recent.tokens)
    bins = np.minimum((doublings - doublings.min()) / np.ptp(doublings) * BLOCKS, BLOCKS - 0.5)
    blocks = recent.assign(x=doublings).groupby(bins.astype(int)).mean()
    line = trend(blocks.x.to_numpy(), blocks.value.to_numpy())
    if line is None:
        return f"it takes {3 * BLOCKS} logged steps in the last doubling of tokens"
    return line, blocks[["step", "tokens", "value"]].reset_index(drop=True)


def _above_six_sigma(metrics: pd.DataFrame, column: str, window: int) -> np.ndarray:
    if column not in metrics:
        return np.zeros(len(metrics), bool)
    values = pd.to_numeric(metrics[column], errors="coerce").astype("float64")
    before = values.shift(1).rolling(window)
    deviation = before.std(ddof=0)
    spikes = values > before.mean() + SPIKE_SIGMAS * deviation
    return (spikes & (deviation >= 1e-10)).to_numpy()


def _running_medians(values: np.ndarray, window: int) -> tuple[np.ndarray, np.ndarray]:
    """Median and 1.4826 MAD of the `window` values before each; NaN for the first `window`."""
    median, deviation = np.full(len(values), np.nan), np.full(len(values), np.nan)
    before = np.lib.stride_tricks.sliding_window_view(values, window)[:-1]
    for at in range(0, len(before), 8192):  # bounds the memory of long logs
        part = before[at : at + 8192]
        middle = np.median(part, axis=1)
        spread = 1.4826 * np.median(np.abs(part - middle[:, None]), axis=1)
        rows = slice(window + at, window + at + len(part))
        median[rows], deviation[rows] = middle, np.maximum(spread, 1e-6 * np.abs(middle))
    return median, deviation
