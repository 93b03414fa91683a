"""When a task leaves chance: the definition used by the page, the terminal and the checks.

A task leaves chance at the first checkpoint whose score is more than two standard errors above a
guess, if those of the next one and of nine tenths of all later ones are too: by chance this holds
for one checkpoint in 40, for two in a row in 1,600. At the last checkpoint alone it is provisional.

A guess scores the chance level, or the untrained model's score where that is higher: an untrained
model may happen to prefer the right answers. A model is untrained up to a ten-thousandth of the
run's tokens.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import pandas as pd

from jaxllm.analysis.curves import Array, Curve, Curves, with_gaps

STANDARD_ERRORS = 2.0
_UNTRAINED = 1e-4
_DURABLE = 0.9

LEFT = "left chance"
PROVISIONAL = "left chance at the last checkpoint"
AT_CHANCE = "at chance"
NO_CHANCE_LEVEL = "no chance level"
NO_STANDARD_ERROR = "no standard error"
NO_VALUE = "no value"
STATES = (LEFT, PROVISIONAL, NO_CHANCE_LEVEL, AT_CHANCE, NO_STANDARD_ERROR, NO_VALUE)

Mask = npt.NDArray[np.bool_]


def guess_score(clock: Array, scores: Array, chance: float) -> float:
    """Score of a guess, by chance or the untrained model; NaN where there is no chance level.

    `clock` is tokens or steps, ascending.
    """
    untrained = scores[(clock <= _UNTRAINED * clock[-1]) & (clock[-1] > 0)]
    return max(chance, float(untrained.mean())) if len(untrained) else chance


def guess(curve: Curve) -> float:
    """Compute `guess_score` of a curve."""
    clock = curve.tokens if np.isfinite(curve.tokens).all() else curve.steps
    return guess_score(clock, curve.scores, curve.chance_score)


def above_guess(curve: Curve) -> Mask:
    """Whether each point is more than `STANDARD_ERRORS` above a guess; False for unknown stderr."""
    return curve.scores - guess(curve) > STANDARD_ERRORS * curve.score_stderr


def durable(above: Mask) -> int | None:
    """First position that is above, as are the next and nine tenths of those from it on."""
    for at in np.flatnonzero(above[:-1] & above[1:]):
        if above[at:].mean() >= _DURABLE:
            return int(at)
    return None


def onset(curve: Curve, until: int | None = None) -> tuple[str, int | None]:
    """State of a curve, one of `STATES`, and the position of its onset.

    `until` limits the curve to its first points.
    """
    if math.isnan(curve.chance_score):
        return NO_CHANCE_LEVEL, None
    if np.isnan(curve.score_stderr).all():
        return NO_STANDARD_ERROR, None
    above = above_guess(curve)[:until]
    at = durable(above)
    if at is not None:
        return LEFT, at
    return (PROVISIONAL, len(above) - 1) if above[-1] else (AT_CHANCE, None)


def trajectories(main: Curves, records: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Charted points of `Curves.main` of `records`, and when each task left chance.

    Returns:
      The rows of `with_gaps` with `above` (whether the point is above a guess) and `left_chance`
      (whether it is the onset); and a row per run and task, ordered by state and onset: `run, task,
      domain, metric, state, step, tokens, flops, first, final, stderr, n, chance, shots,
      task_version`, with the `step, tokens, flops` of the onset.
    """
    rows, above, left = [], [np.zeros(0, bool)], [np.zeros(0, bool)]
    names, scoring = ["run", "task", "domain", "metric"], ["n", "chance", "shots", "task_version"]
    onset_columns = ["state", "step", "tokens", "flops", "first", "final", "stderr"]
    columns = [*names, *onset_columns, *scoring]
    for curve in main:
        state, at = onset(curve)
        above.append(above_guess(curve))
        left.append(np.arange(len(curve.steps)) == (-1 if at is None else at))
        clock = [curve.steps, curve.tokens, curve.flops]
        step, tokens, flops = (math.nan if at is None else float(of[at]) for of in clock)
        row = {name: getattr(curve, name) for name in names + scoring}
        row |= {"state": state, "step": step, "tokens": tokens, "flops": flops}
        row |= {"first": curve.values[0], "final": curve.values[-1], "stderr": curve.stderr[-1]}
        rows.append(row)
    marks = {"above": np.concatenate(above), "left_chance": np.concatenate(left)}
    shown = with_gaps(Curves(main.points.assign(**marks)), records)
    shown = shown.assign(**{mark: shown[mark].eq(True) for mark in marks})
    scored = shown.groupby(["run", "task"]).value.transform("count") > 0
    unknown = dict.fromkeys(("first", "final", "step", "tokens", "flops"), math.nan)
    valueless = shown[~scored].drop_duplicates(["run", "task"], keep="last")
    rows += valueless.assign(state=NO_VALUE, **unknown)[columns].to_dict("records")
    table = pd.DataFrame(rows, columns=columns)
    rank = table.state.map(STATES.index)
    table = table.assign(rank=rank).sort_values(["rank", "tokens", "task"], kind="stable")
    return shown, table.drop(columns="rank").reset_index(drop=True)


def gain_share(shown: pd.DataFrame, findings: pd.DataFrame) -> pd.DataFrame:
    """Share of its total gain that each task has reached at each checkpoint.

    The gain is in score, from chance, or from the first checkpoint where there is no chance level,
    to the best value of the run. Tasks at chance have a share of 0, so that their noise is not
    scaled up. The arguments are the results of `trajectories`.

    Returns:
      `shown` with the columns `share` (0 to 1; NaN where the value is) and `state`.
    """
    key = ["run", "task"]
    state = shown[key].merge(findings[[*key, "state"]], how="left").state.to_numpy()
    grouped = shown.groupby(key, sort=False)
    start = grouped.chance_score.transform("last").fillna(grouped.score.transform("first"))
    gain = shown.score - start
    most = gain.groupby([shown.run, shown.task], sort=False).transform("max")
    grew = (most > 0) & (state != AT_CHANCE)
    share = (gain / most.where(grew)).clip(0, 1).where(grew, gain * 0.0)
    return shown.assign(share=share, state=state)
