"""Analyses that are not registered by themselves yet; to be deleted one by one."""

# ruff: noqa
# mypy: ignore-errors

from __future__ import annotations

import math

import numpy as np
import pandas as pd

from jaxllm.analysis import registry
from jaxllm.analysis.finding import Finding
from jaxllm.analysis.registry import AHEAD, EARLY, HEALTH, NOW, SIZES, Study
from jaxllm.report import numbers

_TITLES = {"params": "parameters", "tokens": "training tokens", "flops": "training FLOPs"}


def _finding(found, title: str = "", notes: tuple[str, ...] = ()):
    """An old result as a finding, which keeps its methods."""

    class Old(type(found)):
        pass

    made = object.__new__(Old)
    made.__dict__.update(vars(found))
    sentence = found.sentence
    Old.sentence = sentence
    Old.lines = ()
    Old.title = title
    made.__dict__["notes"] = (*notes, *getattr(found, "notes", ()))
    return made


def forecasts(study: Study) -> list[Finding]:
    from jaxllm.analysis import forecast

    finished = [run for run in study.runs if run not in study.planned_tokens]
    return [
        _finding(
            forecast.forecast(study.records, run, total_tokens=total, finished=finished),
            f"Forecast for {run}" if study.several_runs() else "Forecast",
        )
        for run, total in study.planned_tokens.items()
    ]


def backtest(study: Study):
    from jaxllm.analysis import backtest as module

    return _finding(module.backtest(study.raw_records))


def emergence(study: Study):
    from jaxllm.analysis import emergence as module

    return _finding(module.emergence(study.records))


def emergence_over_sizes(study: Study):
    from jaxllm.analysis import emergence as module

    return _finding(module.emergence(study.records, over="params"))


_READINGS = {
    "Checks": "p: how often a healthy run would look at least as bad by chance.",
    "Sudden or gradual": (
        "Right is sudden: most of the gain came at few checkpoints (B/L as in BIG-bench; 1 for "
        "equal steps). It is the metric's doing where a smoother metric of the task rose before."
    ),
    "Sudden or gradual over sizes": "The last checkpoints of the sizes of a family, as points.",
    "The rest of the budget": (
        "The trend of the run's last doublings of tokens, drawn on; a coming fall of the learning "
        "rate, which lowers the loss further, is not counted."
    ),
    "What twice the tokens would bring": (
        "The trend of the run's last doublings of tokens, drawn on, as if its learning rate were "
        "kept or stretched to the new length."
    ),
    "Forecast": (
        "Made from the run's own past and from finished runs, if there are any; the interval "
        "holds the value of the final checkpoint, its sampling noise included."
    ),
    "Backtest of the forecasts": (
        "Of a tested run only its first part is known, and no run of its size; the others are "
        "known to their end."
    ),
    "Learning-curve fits": (
        "Fitted to the early checkpoints of a run and scored on its late ones; left is better."
    ),
    "Most informative tasks": (
        "How far a task moves, or runs differ on it, in standard deviations of its noise; coloured "
        "where that is beyond chance, empty where the phase has too few checkpoints."
    ),
    "Share of the final gain": (
        "Of the gain from chance, or from the first checkpoint, to the end; above 100% where a "
        "task has fallen since."
    ),
    "Change points": (
        "Where a straight line over log tokens needs another slope: often the start or the end of "
        "a rise. The bar reaches over the checkpoints that would fit about as well."
    ),
    "Correlated gains": (
        "Rank correlations of what each checkpoint adds to the one before it: two rising curves "
        "always correlate, their gains need not. An empty cell was not compared."
    ),
    "Lead-lag between domains": (
        "Right of the line the first domain's gains precede the second's. It is order in time, "
        "and no proof that the one brings the other."
    ),
    "Held-out tasks": (
        "A task predicted from others by a regression that never saw its size; the naive guess "
        "knows the same tokens of other sizes, and no other task."
    ),
    "Efficiency at equal tokens": (
        "Mean over the tasks that all of these runs have. Equal tokens are not equal FLOPs where "
        "sizes differ, and better data, longer schedules and scoring rules all count as efficiency."
    ),
    "One curve for all sizes": (
        "How well the curve of the other sizes predicts a size left out, over each axis; left is "
        "better."
    ),
    "Loss and parameters": (
        "Each size at the most tokens that it saw; sizes that saw fewer lie higher."
    ),
    "Loss and training tokens": (
        "Checkpoints of one size, at which the learning rate had not fallen yet: runs that end "
        "there lie lower."
    ),
    "Loss and training FLOPs": "The runs that no cheaper one beats.",
    "Compute-optimal": (
        "Unfinished runs stand for finished ones of that budget, though their learning rate had "
        "not fallen yet, which biases the optimum (Hoffmann et al. 2022, §2); C = 6ND."
    ),
    "Task ladders": (
        "Assumes that the soft metric follows a power law of parameters and tokens, and accuracy "
        "one sigmoid of it at every size; beyond the largest size neither is tested."
    ),
    "Principal components": (
        "Weights of the tasks in the direction in which the models differ most; models of one "
        "family are no independent evidence."
    ),
}


def register() -> None:
    always = lambda study: True
    known = {one.name for one in registry.analyses()}
    for place, (question, title, function, needs) in enumerate(
        (
            (NOW, "Sudden or gradual", emergence, always),
            (NOW, "Sudden or gradual over sizes", emergence_over_sizes, Study.several_sizes),
            (AHEAD, "Forecast", forecasts, Study.in_progress),
            (AHEAD, "Backtest of the forecasts", backtest, lambda study: study.backtested),
        )
    ):
        if function.__name__ not in known:
            registry.analysis(
                question, title, needs=needs, place=place, caption=_READINGS.get(title, "")
            )(function)
