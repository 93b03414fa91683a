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


def of_many(findings: pd.DataFrame) -> str:
    """How far tasks and runs came, where there are too many runs for a line each."""
    left = _left(findings)
    judged = pd.concat([left, findings[findings.state == analysis.AT_CHANCE]])
    if judged.empty:
        return "No task with a chance level and a standard error has been scored yet."
    text = (
        f"{len(left):,} of {len(judged):,} trajectories of {judged.task.nunique()} capabilities "
        "left chance"
    )
    always = judged.groupby("task").state.apply(lambda states: (states == analysis.AT_CHANCE).all())
    never = list(always.index[always])
    first = left.groupby("task").tokens.median().sort_values()
    if len(first):
        text += (
            f", {first.index[0]} the first (median {numbers.count(first.iloc[0])} tokens), "
            f"{first.index[-1]} the last ({numbers.count(first.iloc[-1])})"
        )
    return f"{text}; at chance in every run: {numbers.join(never)}." if never else f"{text}."


def of_task(findings: pd.DataFrame) -> str:
    """What became of one task, in one sentence."""
    valued = findings.dropna(subset="final")
    if valued.empty:
        return "It has no value."
    left = _left(findings)
    if len(findings) == 1:
        row = next(findings.itertuples())
        if len(left):
            return f"Left chance at {moment(row)} and stands at {_ending(row)}{_provisional(row)}."
        if row.state == analysis.AT_CHANCE:
            return f"Still at chance: {_ending(row)}."
        text = _change(row).removeprefix(f"{row.task} ")
        return f"{text[:1].upper()}{text[1:]}."
    best = valued.sort_values("final", ascending=analysis.lower_is_better(valued.metric.iloc[0]))
    top = best.iloc[0]
    text = f"Best: {top.run} with {numbers.with_error(top.final, top.stderr, top.metric)}"
    judged = findings.state.isin([analysis.LEFT, analysis.PROVISIONAL, analysis.AT_CHANCE]).sum()
    return f"{text}; {len(left)} of {judged} runs left chance." if judged else f"{text}."


def of_curve(points: pd.DataFrame, name: str) -> str:
    """How a logged quantity went, run by run where there are few."""
    parts = []
    by = "run" if points.run.nunique() > 1 else "series"
    for run, rows in points.dropna(subset="value").groupby(by, sort=False):
        first, last = float(rows.value.iloc[0]), float(rows.value.iloc[-1])
        steps = f"over {rows.step.iloc[-1] - rows.step.iloc[0]:,.0f} steps"
        went = "rose" if last > first else "fell"
        told = (
            f"{went} from {_short(first)} to {_short(last)}"
            if first != last
            else f"stayed at {_short(last)}"
        )
        parts.append((run, told, steps))
    if not parts:
        return f"{name} has no finite value."
    if len(parts) == 1:
        return f"{name} {parts[0][1]} {parts[0][2]}."
    if len(parts) > 4:
        return f"{name} of {len(parts)} series."
    return f"{name}: " + "; ".join(f"{run} {told}" for run, told, _ in parts) + "."


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


def _short(value: float) -> str:
    return numbers.count(value) if abs(value) >= 1000 else f"{value:.3g}"


def _left(findings: pd.DataFrame) -> pd.DataFrame:
    return findings[findings.state.isin([analysis.LEFT, analysis.PROVISIONAL])]
