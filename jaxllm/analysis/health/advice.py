"""Expected gain from the remaining budget, and whether to go on or stop."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from jaxllm.analysis.curves import Curve, is_share
from jaxllm.analysis.finding import Finding
from jaxllm.analysis.health import loss, tasks
from jaxllm.analysis.registry import AHEAD, Study, analysis
from jaxllm.analysis.stats import Interval, Line

GO_ON, STOP, UNCLEAR = "go on", "stop", "unclear"
# A mean gain over the tasks below this, half a point of accuracy, is not worth a budget.
WORTH_GAIN = 0.005
LEVEL = 0.9
_UNKNOWN: Interval = (math.nan,) * 3


@dataclasses.dataclass(frozen=True)
class Advice(Finding):
    """Expected gain from the remaining budget of one run.

    The table has a row per task: `task, metric, now, gain, low, high`, higher is better.

    Attributes:
      row: the run in the table of several runs, see `advice`.
      loss_gain: expected relative decrease of the loss, low and high at `LEVEL`; NaN where unknown.
    """

    row: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    loss_gain: Interval = _UNKNOWN


@analysis(
    AHEAD,
    "The rest of the budget",
    place=10,
    caption="The trend of the run's last doubling of tokens, extended to the end of its plan, or "
    "to twice the tokens where there is no plan. A coming decay of the learning rate, which lowers "
    "the loss further, is not counted.",
)
def advice(study: Study) -> Finding:
    """Expected gain from more tokens, for every run; see `advise`.

    Returns:
      The `Advice` of a single run; else a row per run: `run, verdict` (`GO_ON`, `STOP` or
      `UNCLEAR`), `seen_tokens`, `budget_tokens` in total, `tasks`, the number of those that are
      shares, and `gain, low, high`, the expected gain of their mean at `LEVEL`.
    """
    every = advise(study)
    given = [one for one in every if not one.refused]
    if not given:
        return every[0] if every else Finding("No run is known.", refused="no run is known")
    if len(given) == 1:
        return given[0]
    table = pd.DataFrame([one.row for one in given])
    table = table.sort_values("gain", ascending=False, ignore_index=True)
    counts = table.verdict.value_counts()
    verdicts = ", ".join(f"{count} {verdict}" for verdict, count in counts.items())
    sentence = (
        f"Of {len(table)} runs: {verdicts}. The mean over a run's tasks is expected to change by "
        f"{100 * table.gain.min():+.2f} to {100 * table.gain.max():+.2f} points."
    )
    return Finding(sentence, table)


def advise(study: Study) -> list[Advice]:
    """Judge whether the remaining budget is worth spending, for each run.

    Extrapolates the trend of each task in the last doubling of tokens, a straight line in log
    tokens, to the planned total (without a plan: twice the tokens seen). Curves flatten, so this
    rather overestimates the gain. "stop" requires the upper bounds for the mean over tasks and the
    loss (where known) to be below `WORTH_GAIN` and `loss.WORTH_SHARE`; "go on" requires one of the
    lower bounds to be above.
    """
    judged = tasks.judged(study.curves)
    return [of_run(study, run, [c for c in judged if c.run == run]) for run in study.runs]


def of_run(study: Study, run: str, own: list[Curve]) -> Advice:
    """Judge the remaining budget of one run by its curves; see `advise`."""
    log = study.log_of(run)
    clocks = [curve.tokens[-1] for curve in own] + list(log.get("tokens", []))
    if not clocks or not np.nanmax(clocks) > 0:
        return _refused(run, "nothing was scored or logged after a known number of tokens")
    seen = float(np.nanmax(clocks))
    planned = study.planned_tokens.get(run, math.nan)
    budget = planned if planned > 0 else 2 * seen
    if budget <= seen:
        return _refused(run, "the budget is spent")
    doublings = math.log2(budget / seen)
    rows = [
        (curve.task, curve.metric, line.end, *line.gain(doublings, LEVEL))
        for curve in own
        if (line := tasks.recent_trend(curve)) is not None
    ]
    table = pd.DataFrame(rows, columns=["task", "metric", "now", "gain", "low", "high"])
    row = {"run": run, "verdict": UNCLEAR, "seen_tokens": seen, "budget_tokens": budget}
    mean_gain = loss_gain = _UNKNOWN
    known, parts = [], []
    mean, count = _mean_trend(own)
    if mean is not None:
        mean_gain = mean.gain(doublings, LEVEL)
        known.append((mean_gain, WORTH_GAIN))
        gain, low, high = (100 * value for value in mean_gain)
        parts.append(
            f"the mean over {count} tasks by {gain:+.2f} points ({LEVEL:.0%} interval {low:+.2f} "
            f"to {high:+.2f})"
        )
    trend = loss.recent_trend(log, "loss")
    if not isinstance(trend, str):
        gain, high, low = (change / -trend.end for change in trend.gain(doublings, LEVEL))
        loss_gain = gain, low, high
        known.append((loss_gain, loss.WORTH_SHARE))
        parts.append(f"the loss by {-100 * gain:+.2f}% ({-100 * high:+.2f}% to {-100 * low:+.2f}%)")
    if not known:
        return _refused(run, "too few checkpoints and logged steps for a trend")
    words = "too uncertain to tell"
    if all(high < worth for (_, _, high), worth in known):
        row["verdict"], words = STOP, "stopping costs little"
    elif any(low > worth for (_, low, _), worth in known):
        row["verdict"], words = GO_ON, "worth going on"
    sentence = (
        f"{run}: {budget / seen - 1:.0%} more tokens are expected to change "
        f"{' and '.join(parts)}: {words}."
    )
    row |= {"tasks": count, **dict(zip(("gain", "low", "high"), mean_gain, strict=True))}
    return Advice(sentence, table, row=row, loss_gain=loss_gain)


def _refused(run: str, reason: str) -> Advice:
    return Advice(f"{run}: no advice on stopping: {reason}.", refused=reason)


def _mean_trend(own: list[Curve]) -> tuple[Line | None, int]:
    """Trend of the mean over the tasks that are shares, and their number.

    Checkpoints without all of these tasks are left out, since the mean would jump there.
    """
    shares = [pd.Series(c.scores, c.tokens) for c in own if is_share(c.metric)]
    shares = [share for share in shares if (share.index > 0).sum() >= 4]
    if not shares:
        return None, 0
    mean = pd.concat(shares, axis=1).dropna().mean(axis=1)
    line = tasks.recent_line(mean.index.to_numpy(np.float64), mean.to_numpy())
    return line, len(shares) if line is not None else 0
