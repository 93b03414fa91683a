"""Results of a report as sentences."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import pandas as pd

from jaxllm.analysis import onsets
from jaxllm.analysis.curves import lower_is_better
from jaxllm.analysis.finding import amount
from jaxllm.report import numbers

_LISTED = 12  # tasks in a sentence; all are in the table
_UNJUDGED = "No task with a chance level and a standard error has been scored yet."


def headline(findings: pd.DataFrame) -> str:
    """Number of capabilities of a run that left chance, and the first and last of them."""
    left, judged = left_chance(findings), _judged(findings)
    if judged.empty:
        return _UNJUDGED
    if left.empty:
        return "No capability with a chance level has left it yet."
    capabilities = "capability" if len(judged) == 1 else "capabilities"
    share = "All" if len(left) == len(judged) > 1 else f"{len(left)} of"
    timed = left.dropna(subset="step")
    if timed.empty:  # one checkpoint, and nobody knows when
        stand = "stand" if len(left) > 1 else "stands"
        tasks = numbers.join(list(left.task))
        return f"{share} {len(judged)} {capabilities} {stand} above chance: {tasks}."
    first, last = timed.iloc[0], timed.iloc[-1]
    if first.step == last.step:
        when = f", at {moment(first)}: {numbers.join(list(left.task))}."
    else:
        begin, end = (
            numbers.join(list(timed.task[timed.step == one.step])) for one in (first, last)
        )
        when = (
            f", from {begin} at {amount(first.tokens)} tokens{_or_before(first)} to {end} at "
            f"{amount(last.tokens)}{_or_before(last)}."
        )
    return f"{share} {len(judged)} {capabilities} left chance{when}"


def of_many(findings: pd.DataFrame) -> str:
    """Summary over tasks and runs, for too many runs for a line each."""
    left, judged = left_chance(findings), _judged(findings)
    if judged.empty:
        return _UNJUDGED
    text = (
        f"{len(left):,} of {len(judged):,} trajectories of {judged.task.nunique()} capabilities "
        "left chance"
    )
    before = left.or_before.astype(bool)
    if before.any():
        text += f", {before.sum():,} of them at their first checkpoint or before"
    # A median that is an onset, not a mean of two; where checkpoints are far apart they tie.
    dated = left[~before].dropna(subset="tokens")
    median = dated.groupby("task").tokens.quantile(interpolation="lower")
    if len(median):
        first, last = (numbers.join(list(median.index[median == at(median)])) for at in (min, max))
        text += "; of the others" if before.any() else ","
        text += f" first {first} (median {amount(median.min())} tokens)"
        text += f", last {last} ({amount(median.max())})" if median.nunique() > 1 else ""
    never = sorted(set(judged.task) - set(left.task))
    return f"{text}; above it in no run: {numbers.join(never)}." if never else f"{text}."


def of_task(findings: pd.DataFrame) -> str:
    """Result of one task in all runs."""
    valued = findings.dropna(subset="final")
    if valued.empty:
        return "It has no value."
    left, judged = left_chance(findings), _judged(findings)
    if len(findings) == 1:
        row = findings.iloc[0]
        if len(left):
            began = f"Left chance at {moment(row)} and stands" if row.step >= 0 else "Stands"
            return f"{began} at {ending(row)}."
        if len(judged):
            return f"Not above chance: {ending(row)}."
        change = _change(row)
        return f"{change[:1].upper()}{change[1:]}."
    if (findings.state == onsets.NO_DIRECTION).all():
        low, high = (numbers.value(of(valued.final), valued.metric.iloc[0]) for of in (min, max))
        return f"From {low} to {high}, of which neither is better."
    best = valued.sort_values("final", ascending=lower_is_better(valued.metric.iloc[0])).iloc[0]
    name = best.run if valued.final.nunique() > 1 or len(valued) == 1 else "all runs"
    text = f"Best: {name} with {numbers.with_error(best.final, best.stderr, best.metric)}"
    return f"{text}; {len(left)} of {len(judged)} runs left chance." if len(judged) else f"{text}."


def of_curve(points: pd.DataFrame, name: str) -> str:
    """Change of a logged quantity, per run where there are few."""
    by = "run" if points.run.nunique() > 1 else "series"
    changes = {}
    for key, rows in points.dropna(subset="value").groupby(by, sort=False):
        first, last = float(rows.value.iloc[0]), float(rows.value.iloc[-1])
        changes[key] = _went(last > first, numbers.short(first), numbers.short(last))
    if not changes:
        return f"{name} has no finite value."
    if len(changes) == 1:
        steps = rows.step.iloc[-1] - rows.step.iloc[0]
        return f"{name} {changes[key]} over {steps:,.0f} steps."
    if len(changes) > 4:
        return f"{name} of {len(changes)} series."
    return f"{name}: " + "; ".join(f"{key} {change}" for key, change in changes.items()) + "."


def remainder(findings: pd.DataFrame) -> Iterator[str]:
    """A sentence each on tasks not above chance and on tasks that cannot be judged."""

    def rows(state: str) -> Iterator[Any]:
        return findings[findings.state == state].itertuples()

    each = {
        "Not above chance": [f"{row.task} ({ending(row)})" for row in rows(onsets.AT_CHANCE)],
        "Without a chance level": [
            f"{row.task} {_change(row)}" for row in rows(onsets.NO_CHANCE_LEVEL)
        ],
        "Neither better nor worse": [
            f"{row.task} {_change(row)}" for row in rows(onsets.NO_DIRECTION)
        ],
        "Not judged, for want of a standard error": [
            row.task for row in rows(onsets.NO_STANDARD_ERROR)
        ],
        "Without any value": [row.task for row in rows(onsets.NO_VALUE)],
    }
    for text, tasks in each.items():
        rest = [f"{len(tasks) - _LISTED} more"] if len(tasks) > _LISTED + 1 else []
        if tasks:
            yield f"{text}: {numbers.join(tasks[: _LISTED if rest else None] + rest)}."


def moment(row: Any) -> str:
    """Onset of a finding: "655K tokens (step 40)"; the first checkpoint may have come after it."""
    if not row.step >= 0:
        return "its only checkpoint"
    return f"{amount(row.tokens)} tokens (step {row.step:,.0f}){_or_before(row)}"


def _or_before(row: Any) -> str:
    return " or before" if row.or_before else ""


def ending(row: Any) -> str:
    """Final value, marked provisional where only the last checkpoint is above chance."""
    text = numbers.with_error(row.final, row.stderr, row.metric)
    if not math.isnan(row.guess):
        text += f", {guess(row)}"
    provisional = "; the last checkpoint alone, so provisional"
    return text + provisional if row.state == onsets.PROVISIONAL and row.step >= 0 else text


def guess(row: Any) -> str:
    """Level of a guess: "chance 50%", or "best constant answer 63.5%" where that is higher."""
    name = "best constant answer" if row.guess > row.chance else "chance"
    return f"{name} {numbers.chance(row.guess, row.metric)}"


def _change(row: Any) -> str:
    first, final = (numbers.value(value, row.metric) for value in (row.first, row.final))
    return f"{_went(row.final > row.first, first, final)} {numbers.metric_name(row.metric)}"


def _went(up: bool, first: str, last: str) -> str:
    if first == last:
        return f"stayed at {last}"
    return f"{'rose' if up else 'fell'} from {first} to {last}"


def left_chance(findings: pd.DataFrame) -> pd.DataFrame:
    """Rows of the capabilities that left chance, ordered by onset."""
    return findings[findings.state.isin([onsets.LEFT, onsets.PROVISIONAL])]


def _judged(findings: pd.DataFrame) -> pd.DataFrame:
    return findings[findings.state.isin([onsets.LEFT, onsets.PROVISIONAL, onsets.AT_CHANCE])]
