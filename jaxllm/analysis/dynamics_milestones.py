"""When did a task leave chance, when was it half way, and has it stopped growing?

A guess is not always worth the chance level: a model that has learned nothing may prefer the
answers that happen to be right. The score of the untrained model, where a checkpoint has seen
less than a ten-thousandth of the tokens, therefore raises the level that counts as a guess.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pandas as pd
from scipy import stats

from jaxllm.analysis.capabilities import STANDARD_ERRORS
from jaxllm.analysis.dynamics import Array, Finding, amount, clean, refusal

AT_CHANCE = "at chance"
NO_GAIN = "no gain"
GROWING = "still growing"
SATURATED = "saturated"
FALLING = "falling"
SHORT = "too few checkpoints"
_STATES = (SATURATED, GROWING, FALLING, AT_CHANCE, NO_GAIN, SHORT)

_UNTRAINED = 1e-4
_DURABLE = 0.9
_FEWEST = 4
_LATE = 6
_MILESTONES = (
    "run", "task", "domain", "n", "final", "chance", "state", "guess", "onset_tokens",
    "half_tokens", "saturation_tokens", "late_slope", "late_low", "late_high", "late_p",
    "fraction", "share", "share_low", "share_high",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Milestones(Finding):
    """When each task left chance, was half way, and stopped growing.

    The table has a row per run, task and `fraction` of the run's tokens: the `share` of the final
    gain reached there with a 95 % interval. `guess` is the score of a guess: chance, or that
    of the untrained model where it is higher. `onset_tokens` is the first checkpoint above it
    by two standard errors if the next one and nine tenths of all later ones are too (an upper
    bound where it is the first of the run). `saturation_tokens` is from where 90 % of the gain is
    held. `late_slope` is the score's gain per doubling of tokens over the last half of them (six
    checkpoints at least), with a 95 % interval; `state` is "saturated" where it shows no trend.
    """


def milestones(
    records: pd.DataFrame, *, fractions: tuple[float, ...] = (0.1, 0.25, 0.5), seed: int = 0
) -> Milestones:
    """Onset, half gain and saturation of every run and task; gains count from chance.

    Where there is no chance level the gain counts from the first checkpoint, and there is no
    onset. Intervals of shares are from 400 redraws of all values with their standard errors.
    """
    cleaned, notes = clean(records)
    if cleaned.empty:
        return Milestones(**vars(refusal("no record has a value", _MILESTONES, notes)))
    rng = np.random.default_rng(seed)
    rows: list[dict] = []
    for (run, task), points in cleaned.groupby(["run", "task"], sort=False):
        tokens, score = points.tokens.to_numpy(float), points.score.to_numpy(float)
        doubt = np.nan_to_num(points.doubt.to_numpy(float))
        last, floor = points.iloc[-1], guess_score(tokens, score, float(points.floor.iloc[-1]))
        slope, reach, p = _late_slope(tokens, score)
        onset = onset_at(score, points.doubt.to_numpy(float), floor)
        start = floor if math.isfinite(floor) else score[0]
        curve = score - start
        gained = onset is not None or (not math.isfinite(floor) and _rises(score, doubt))
        if len(score) < _FEWEST or (gained and math.isnan(p)):
            state = SHORT
        elif not gained:
            state = AT_CHANCE if math.isfinite(floor) else NO_GAIN
        else:
            state = SATURATED if not p < 0.05 else GROWING if slope > 0 else FALLING
        known = {
            "run": run, "task": task, "domain": last.domain, "n": len(score),
            "final": last["value"], "chance": last.chance, "state": state,
            "guess": floor, "onset_tokens": tokens[onset] if onset is not None else math.nan,
            "half_tokens": _held(tokens, curve, 0.5) if gained else math.nan,
            "saturation_tokens": _held(tokens, curve, 0.9) if gained else math.nan,
            "late_slope": slope, "late_low": slope - reach, "late_high": slope + reach,
            "late_p": p,
        }  # fmt: skip
        noise = doubt * rng.standard_normal((400, len(score)))
        for fraction in fractions:
            share, low, high = math.nan, math.nan, math.nan
            if gained and len(score) >= _FEWEST and fraction * tokens[-1] >= tokens[0]:
                share = float(_share(tokens, curve[None], fraction)[0])
                drawn = _share(tokens, curve + noise, fraction)
                low, high = np.quantile(drawn, (0.025, 0.975))
            rows.append(
                {**known, "fraction": fraction, "share": share, "share_low": low,
                 "share_high": high}
            )  # fmt: skip
    table = pd.DataFrame(rows, columns=list(_MILESTONES))
    return Milestones(_milestone_sentence(table), table, "", notes)


def _milestone_sentence(table: pd.DataFrame) -> str:
    each = table.drop_duplicates(["run", "task"])
    counts = each.state.value_counts()
    said = ", ".join(f"{counts[s]} {s}" for s in _STATES if s in counts)
    sentence = f"Of {len(each):,} trajectories: {said}"
    left = each.dropna(subset="onset_tokens").groupby("task").onset_tokens.median().sort_values()
    if len(left):
        sentence += f"; {left.index[0]} left chance first, at {amount(left.iloc[0])} tokens"
    if len(left) > 1:
        sentence += f", {left.index[-1]} last, at {amount(left.iloc[-1])} (medians)"
    return sentence + "."


def guess_score(tokens: Array, score: Array, chance: float) -> float:
    """The score of a model that knows nothing; NaN where there is no chance level."""
    untrained = score[tokens <= _UNTRAINED * tokens[-1]]
    return max(chance, float(untrained.mean())) if len(untrained) else chance


def onset_at(score: Array, doubt: Array, floor: float) -> int | None:
    """Position of the first checkpoint durably above a guess; None where there is none."""
    above = np.asarray(score - floor > STANDARD_ERRORS * doubt)
    for at in np.flatnonzero(above[:-1]):
        if above[at + 1] and above[at:].mean() >= _DURABLE:
            return int(at)
    return None


def _rises(score: Array, doubt: Array) -> bool:
    """Whether the last score is beyond the first by two standard errors of their difference."""
    return bool(score[-1] - score[0] > STANDARD_ERRORS * math.hypot(doubt[0], doubt[-1]) > 0)


def _final(curve: Array) -> Array:
    """The final gain: mean of the last tenth of the checkpoints, three at least."""
    return np.asarray(curve[..., -max(3, curve.shape[-1] // 10) :].mean(axis=-1))


def _held(tokens: Array, curve: Array, part: float) -> float:
    """Tokens from which on the curve holds `part` of its final gain, but for noise."""
    reached = curve >= part * _final(curve)
    for at in np.flatnonzero(reached):
        if reached[at:].mean() >= _DURABLE:
            return float(tokens[at])
    return math.nan


def _share(tokens: Array, curves: Array, fraction: float) -> Array:
    """Share of the final gain at `fraction` of the tokens, linear between checkpoints."""
    x = fraction * tokens[-1]
    right = int(np.clip(np.searchsorted(tokens, x), 1, len(tokens) - 1))
    weight = (x - tokens[right - 1]) / (tokens[right] - tokens[right - 1])
    at = (1 - weight) * curves[:, right - 1] + weight * curves[:, right]
    with np.errstate(all="ignore"):
        return np.nan_to_num(at / _final(curves), posinf=0.0, neginf=0.0)


def _late_slope(tokens: Array, score: Array) -> tuple[float, float, float]:
    """Least-squares gain per doubling late in the run: slope, half its interval, p."""
    late = (tokens >= tokens[-1] / 2) | (np.arange(len(tokens)) >= len(tokens) - _LATE)
    late &= tokens > 0
    if late.sum() < _FEWEST:
        return math.nan, math.nan, math.nan
    if np.ptp(score[late]) == 0:
        return 0.0, 0.0, 1.0
    fit = stats.linregress(np.log2(tokens[late]), score[late])
    reach = stats.t.ppf(0.975, late.sum() - 2) * fit.stderr
    return float(fit.slope), float(reach), float(fit.pvalue)
