"""What the records say, as sentences."""

from __future__ import annotations

import math

import pandas as pd

from jaxllm.analysis import capabilities as analysis
from jaxllm.report import numbers


def headline(findings: pd.DataFrame) -> str:
    """How many capabilities left chance, and which were the first and the last."""
    left = _left(findings)
    judged = pd.concat([left, findings[findings.state == analysis.AT_CHANCE]])
    if judged.empty:
        return "No task with a chance level and a standard error has been scored yet."
    if left.empty:
        return f"None of the {len(judged)} capabilities with a chance level has left it yet."
    capabilities = "capability" if len(judged) == 1 else "capabilities"
    share = "All" if len(left) == len(judged) > 1 else f"{len(left)} of"
    text = f"{share} {len(judged)} {capabilities} left chance"
    first, last = left.iloc[0], left.iloc[-1]
    if len(left) == 1 or first.step == last.step:
        return f"{text}, at {moment(first)}: {numbers.join(list(left.task))}."
    return (
        f"{text}, from {first.task} at {numbers.count(first.tokens)} tokens to "
        f"{last.task} at {numbers.count(last.tokens)}."
    )


def milestones(findings: pd.DataFrame) -> list[tuple[str, str, str]]:
    """(when, which task, how it ended) of every capability that left chance, in that order."""
    return [
        (moment(row), row.task, f"{_ending(row)}{_provisional(row)}")
        for row in _left(findings).itertuples()
    ]


def remainder(findings: pd.DataFrame) -> list[str]:
    """A sentence each on the tasks still at chance and on those that cannot be judged."""
    sentences = []
    still = findings[findings.state == analysis.AT_CHANCE]
    if len(still):
        each = [f"{row.task} ({_ending(row)})" for row in still.itertuples()]
        sentences.append(f"Still at chance: {numbers.join(each)}.")
    unanchored = findings[findings.state == analysis.NO_CHANCE_LEVEL]
    if len(unanchored):
        each = [_change(row) for row in unanchored.itertuples()]
        sentences.append(f"Without a chance level: {numbers.join(each)}.")
    for state, text in (
        (analysis.NO_STANDARD_ERROR, "Not judged, for want of a standard error"),
        (analysis.NO_VALUE, "Without any value"),
    ):
        tasks = list(findings.task[findings.state == state])
        if tasks:
            sentences.append(f"{text}: {numbers.join(tasks)}.")
    return sentences


def moment(row: object) -> str:
    """The onset of a finding: "655K tokens (step 40)"."""
    return f"{numbers.count(row.tokens)} tokens (step {row.step:,.0f})"  # type: ignore[attr-defined]


def _ending(row) -> str:  # type: ignore[no-untyped-def]
    text = numbers.with_error(row.final, row.stderr, row.metric)
    return text if math.isnan(row.chance) else f"{text}, chance {_chance(row)}"


def _chance(row) -> str:  # type: ignore[no-untyped-def]
    return numbers.value(row.chance, row.metric).replace(".0%", "%")


def _change(row) -> str:  # type: ignore[no-untyped-def]
    verb = "rose" if row.final > row.first else "fell"
    first, final = (numbers.value(v, row.metric) for v in (row.first, row.final))
    if first == final:
        return f"{row.task} stayed at {final} {numbers.metric_name(row.metric)}"
    return f"{row.task} {verb} from {first} to {final} {numbers.metric_name(row.metric)}"


def _provisional(row) -> str:  # type: ignore[no-untyped-def]
    """A single checkpoint above chance is a hint, and is called one."""
    alone = row.state == analysis.PROVISIONAL
    return "; the last checkpoint alone, so provisional" if alone else ""


def _left(findings: pd.DataFrame) -> pd.DataFrame:
    return findings[findings.state.isin([analysis.LEFT, analysis.PROVISIONAL])]
