"""When a task leaves the level of a guess: one definition for the page, terminal and analyses.

A task leaves the guess at the first checkpoint whose score is above it, if those of the next one
and of nine tenths of all later ones are too. At the last checkpoint alone it is provisional. The
level of a guess is the best of

- chance, such as one in the number of options,
- the best constant answer (the majority class), which a prior for one answer reaches without skill,
- the mean of the untrained model, up to a ten-thousandth of the run's tokens, which may happen to
  prefer the right answers; no checkpoint of that stretch is an onset.

A score is above it by `STANDARD_ERRORS` (1 in 2,000, one-sided) of its own error, or of that of a
guess where it is larger: near 0 or 1 an error is estimated too small. More checkpoints make none
smaller, because all of them answer the same examples. So a model that stays untrained leaves the
guess in at most 1 of 1,000 runs.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import pandas as pd

from jaxllm.analysis.curves import (
    Array,
    Curve,
    Curves,
    counts_examples,
    has_direction,
    is_share,
    with_gaps,
)

STANDARD_ERRORS = 3.29
_UNTRAINED = 1e-4
_DURABLE = 0.9

LEFT = "left chance"
PROVISIONAL = "left chance at the last checkpoint"
AT_CHANCE = "not above chance"
NO_DIRECTION = "no direction"
NO_CHANCE_LEVEL = "no chance level"
NO_STANDARD_ERROR = "no standard error"
NO_VALUE = "no value"
_UNJUDGED = (NO_CHANCE_LEVEL, NO_STANDARD_ERROR)
STATES = (LEFT, PROVISIONAL, NO_CHANCE_LEVEL, AT_CHANCE, NO_STANDARD_ERROR, NO_DIRECTION, NO_VALUE)

Mask = npt.NDArray[np.bool_]


def untrained(clock: Array) -> Mask:
    """Checkpoints of an untrained model; `clock` is tokens or steps, ascending.

    A single checkpoint is a finished model, whatever its clock says.
    """
    return (clock <= _UNTRAINED * clock[-1]) & (clock < clock[-1])


def above(clock: Array, scores: Array, stderr: Array, chance: float, n: int = 0) -> Mask:
    """Whether each point is above `chance`, and above the untrained model's mean by the error of
    their difference; False where the error is unknown.

    `clock` [P] is tokens or steps, ascending; `scores` and `stderr` [..., P] are of one curve or
    several; `n` is the number of examples where a score is the share of right ones, else 0.
    """
    early = untrained(clock)
    first = scores[..., early].mean(axis=-1, keepdims=True) if early.any() else -math.inf
    if n:
        level = np.clip(np.maximum(chance, first), 0.0, 1.0)
        stderr = np.fmax(stderr, np.sqrt(level * (1 - level) / n))
    higher = scores - chance > STANDARD_ERRORS * stderr
    if early.any():
        variance = stderr**2 + (stderr[..., early] ** 2).mean(axis=-1, keepdims=True)
        higher &= (scores - first > STANDARD_ERRORS * np.sqrt(variance)) & ~early
    return higher


def durable(above: Mask) -> int | None:
    """First position that is above, as are the next and nine tenths of those from it on."""
    for at in np.flatnonzero(above[:-1] & above[1:]):
        if above[at:].mean() >= _DURABLE:
            return int(at)
    return None


def _clock(curve: Curve) -> Array:
    return curve.tokens if np.isfinite(curve.tokens).all() else curve.steps


def guess(curve: Curve) -> float:
    """Level of a guess: chance or the untrained model's mean; NaN without a chance level."""
    first = curve.scores[untrained(_clock(curve))]
    return max(curve.chance_score, float(first.mean())) if len(first) else curve.chance_score


def above_guess(curve: Curve) -> Mask:
    """Whether each point of a curve is `above` the level of a guess."""
    n = curve.n if counts_examples(curve.metric) else 0
    return above(_clock(curve), curve.scores, curve.score_stderr, curve.chance_score, n)


def onset(curve: Curve, until: int | None = None) -> tuple[str, int | None]:
    """State of a curve, one of `STATES`, and the position of its onset.

    `until` limits the curve to its first points.
    """
    if not has_direction(curve.metric):
        return NO_DIRECTION, None
    if math.isnan(curve.chance_score):
        return NO_CHANCE_LEVEL, None
    if np.isnan(curve.score_stderr).all():
        return NO_STANDARD_ERROR, None
    higher = above_guess(curve)[:until]
    at = durable(higher)
    if at is not None:
        return LEFT, at
    return (PROVISIONAL, len(higher) - 1) if higher[-1] else (AT_CHANCE, None)


def off_guess(curves: Curves) -> Curves:
    """Without the tasks that are at the level of a guess in all runs; a note counts them."""
    at_guess = pd.Series([onset(curve)[0] == AT_CHANCE for curve in curves], curves.table.index)
    never = at_guess.groupby(curves.table.task).all()
    if not never.any():
        return curves
    note = f"Left out as noise, as they never score above a guess: {int(never.sum())} of the tasks."
    points = curves.points[~curves.points.task.isin(never.index[never])]
    return Curves(points, (*curves.notes, note))


def trajectories(main: Curves, records: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Charted points of `Curves.main` of `records`, and when each task left chance.

    The rows of `with_gaps` with `above` (whether above a guess), `left_chance` (whether it is the
    onset) and `guess_level` (the score of a guess); and a row per run and task, ordered by state
    and onset, with the `step, tokens, flops` of the onset, unknown where there is one checkpoint;
    `or_before`, whether it is the first one; and `guess`, the larger of chance and the best
    constant answer.
    """
    rows, above, left, level = [], [np.zeros(0, bool)], [np.zeros(0, bool)], [np.zeros(0)]
    names, scoring = ["run", "task", "domain", "metric"], ["n", "chance", "shots", "task_version"]
    onset_columns = ["state", "step", "tokens", "flops", "first", "final", "stderr"]
    columns = [*names, *onset_columns, *scoring, "or_before", "guess"]
    for curve in main:
        state, at = onset(curve)
        at = at if len(curve.steps) > 1 else None
        above.append(above_guess(curve))
        left.append(np.arange(len(curve.steps)) == (-1 if at is None else at))
        level.append(np.full(len(curve.steps), guess(curve)))
        clock = [curve.steps, curve.tokens, curve.flops]
        step, tokens, flops = (math.nan if at is None else float(of[at]) for of in clock)
        row = {name: getattr(curve, name) for name in names + scoring}
        row |= {"state": state, "step": step, "tokens": tokens, "flops": flops}
        row |= {"first": curve.values[0], "final": curve.values[-1], "stderr": curve.stderr[-1]}
        row["or_before"] = at == 0
        row["guess"] = curve.chance_score if is_share(curve.metric) else curve.chance
        rows.append(row)
    marks = {"above": np.concatenate(above), "left_chance": np.concatenate(left)}
    points = main.points.assign(**marks, guess_level=np.concatenate(level))
    shown = with_gaps(Curves(points), records)
    shown = shown.assign(**{mark: shown[mark].eq(True) for mark in marks})
    scored = shown.groupby(["run", "task"]).value.transform("count") > 0
    unknown = dict.fromkeys(("first", "final", "step", "tokens", "flops"), math.nan)
    valueless = shown[~scored].drop_duplicates(["run", "task"], keep="last")
    valueless = valueless.assign(state=NO_VALUE, or_before=False, guess=valueless.chance, **unknown)
    rows += valueless[columns].to_dict("records")
    table = pd.DataFrame(rows, columns=columns)
    rank = lambda of: of.map(STATES.index) if of.name == "state" else of
    return shown, table.sort_values(["state", "tokens", "task"], key=rank, ignore_index=True)


def gain_share(shown: pd.DataFrame, findings: pd.DataFrame) -> pd.DataFrame:
    """The results of `trajectories`, with the `share` of its gain that a task has reached, and
    `state`.

    The gain is in score, from a guess, or from the first checkpoint where there is no chance level,
    to the best value of the run. Tasks at chance have a share of 0, as have those of which it is
    not known whether they left it and that did not grow, so that noise is not scaled up.
    """
    key = ["run", "task"]
    state = shown[key].merge(findings[[*key, "state"]], how="left").state.to_numpy()
    grouped = shown.groupby(key, sort=False)
    start = grouped["guess_level"].transform("last").fillna(grouped.score.transform("first"))
    gain = shown.score - start
    most = gain.groupby([shown.run, shown.task], sort=False).transform("max")
    grown = grouped.score.transform(_grew).astype(bool) & np.isin(state, _UNJUDGED)
    grew = (most > 0) & (grown | np.isin(state, (LEFT, PROVISIONAL)))
    share = (gain / most.where(grew)).clip(0, 1).where(grew, gain * 0.0)
    return shown.assign(share=share, state=state)


def _grew(scores: pd.Series) -> bool:
    """Whether the later half of the scores is above the earlier one, by the noise of its steps."""
    known = scores.dropna().to_numpy()
    half = len(known) // 2
    if half < 2:
        return True  # too few to tell
    noise = float(np.diff(known).std(ddof=1)) / math.sqrt(half)
    return bool(known[-half:].mean() - known[:half].mean() > STANDARD_ERRORS * noise)
