"""Milestones of a task's gain: onset, half gain and saturation."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd

from jaxllm.analysis import onsets
from jaxllm.analysis.curves import Array
from jaxllm.analysis.finding import Finding, amount
from jaxllm.analysis.onsets import AT_CHANCE
from jaxllm.analysis.registry import EARLY, Study, analysis
from jaxllm.analysis.stats import Line, line_fit

NO_GAIN = "no gain"
GROWING = "still growing"
SATURATED = "saturated"
FALLING = "falling"
SHORT = "too few checkpoints"
_STATES = (SATURATED, GROWING, FALLING, AT_CHANCE, NO_GAIN, SHORT)

_FEWEST = 4
_LATE = 6


@analysis(
    EARLY,
    "Share of the final gain",
    place=20,
    caption="Of the gain from chance, or from the first checkpoint, to the end; above 100% where a "
    "task has fallen since.",
)
def milestones(
    study: Study, *, fractions: tuple[float, ...] = (0.1, 0.25, 0.5), seed: int = 0
) -> Finding:
    """Find onset, half gain and saturation of every run and task.

    Gains are relative to a guess (see `jaxllm.analysis.onsets`); without a chance level, to the
    first checkpoint, and there is no onset. Intervals of shares are from a parametric bootstrap of
    400 draws with the standard errors of the values.

    Returns:
      A row per run, task and `fraction` of the run's tokens: the `share` of the final gain reached
      there with a 95 % interval. `guess` and `onset_tokens` are those of `jaxllm.analysis.onsets`
      (an upper bound where the onset is the first checkpoint), `half_tokens` and
      `saturation_tokens` the tokens from which half and 90 % of the gain are durably reached.
      `late_slope` is the gain per doubling of tokens over the last half of them (six checkpoints at
      least), with a 95 % interval; the state is "saturated" where it is not significant.
    """
    rng = np.random.default_rng(seed)
    rows = []
    for curve in study.curves:
        tokens, score = curve.tokens, curve.scores
        stderr = np.nan_to_num(curve.score_stderr)
        floor, (state, at) = onsets.guess(curve), onsets.onset(curve)
        line = _late_line(tokens, score)
        has_level = state != onsets.NO_CHANCE_LEVEL
        error = onsets.STANDARD_ERRORS * math.hypot(stderr[0], stderr[-1])
        gained = state == onsets.LEFT if has_level else score[-1] - score[0] > error > 0
        if len(score) < _FEWEST or (gained and line is None):
            state = SHORT
        elif not gained:
            state = AT_CHANCE if has_level else NO_GAIN
        elif line is not None:
            falls = FALLING if line.slope < 0 else GROWING
            state = falls if line.p_trend() < 0.05 else SATURATED
        gain = score - (floor if has_level else score[0])
        level = _final(gain)
        positions = [at, *(onsets.lasting(gain >= share * level) for share in (0.5, 0.9))]
        reached = [math.nan if i is None or not gained else float(tokens[i]) for i in positions]
        slope = half = p = math.nan
        if line is not None:
            slope, half, p = line.slope, line.half_interval(), line.p_trend()
        row = {"run": curve.run, "task": curve.task, "domain": curve.domain, "n": len(score)}
        row |= {"final": curve.values[-1], "chance": curve.chance, "state": state, "guess": floor}
        row |= dict(zip(("onset_tokens", "half_tokens", "saturation_tokens"), reached, strict=True))
        row |= {"late_slope": slope, "late_low": slope - half, "late_high": slope + half}
        noise = stderr * rng.standard_normal((400, len(score)))
        for fraction in fractions:
            share = low = high = math.nan
            if gained and len(score) >= _FEWEST and fraction * tokens[-1] >= tokens[0]:
                low, high = np.quantile(_share(tokens, gain + noise, fraction), (0.025, 0.975))
                (share,) = _share(tokens, gain[None], fraction)
            row |= {"late_p": p, "fraction": fraction, "share": share}
            rows.append(row | {"share_low": low, "share_high": high})
    if not rows:
        return Finding.refuse("no record has a value", study.curves.notes)
    table = pd.DataFrame(rows)
    return Finding(_sentence(table), table, "", study.curves.notes)


def _sentence(table: pd.DataFrame) -> str:
    each = table.drop_duplicates(["run", "task"])
    counts = each.state.value_counts()
    states = ", ".join(f"{counts[s]} {s}" for s in _STATES if s in counts)
    sentence = f"Of {len(each):,} trajectories: {states}"
    left = each.dropna(subset="onset_tokens").groupby("task").onset_tokens.median().sort_values()
    if len(left):
        sentence += f"; {left.index[0]} left chance first, at {amount(left.iloc[0])} tokens"
    if len(left) > 1:
        sentence += f", {left.index[-1]} last, at {amount(left.iloc[-1])} (medians)"
    return sentence + "."


def _final(gain: Array) -> Array:
    """Final gain: mean of the last tenth of the checkpoints, at least three."""
    return np.asarray(gain[..., -max(3, gain.shape[-1] // 10) :].mean(axis=-1))


def _share(tokens: Array, gains: Array, fraction: float) -> Array:
    """Share of the final gain at `fraction` of the tokens, by linear interpolation."""
    x = fraction * tokens[-1]
    right = int(np.clip(np.searchsorted(tokens, x), 1, len(tokens) - 1))
    weight = (x - tokens[right - 1]) / (tokens[right] - tokens[right - 1])
    at = (1 - weight) * gains[:, right - 1] + weight * gains[:, right]
    with np.errstate(all="ignore"):
        return np.nan_to_num(at / _final(gains), posinf=0.0, neginf=0.0)


def _late_line(tokens: Array, score: Array) -> Line | None:
    """Line over log2 tokens through the last half of the tokens; None for too few points."""
    late = (tokens >= tokens[-1] / 2) | (np.arange(len(tokens)) >= len(tokens) - _LATE)
    late &= tokens > 0
    return line_fit(np.log2(tokens[late]), score[late], fewest=_FEWEST)
