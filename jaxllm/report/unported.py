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


_READINGS = {
    "Forecast": (
        "Made from the run's own past and from finished runs, if there are any; the interval "
        "holds the value of the final checkpoint, its sampling noise included."
    ),
    "Backtest of the forecasts": (
        "Of a tested run only its first part is known, and no run of its size; the others are "
        "known to their end."
    ),
}


def register() -> None:
    always = lambda study: True
    known = {one.name for one in registry.analyses()}
    for place, (question, title, function, needs) in enumerate(
        (
            (AHEAD, "Forecast", forecasts, Study.in_progress),
            (AHEAD, "Backtest of the forecasts", backtest, lambda study: study.backtested),
        )
    ):
        if function.__name__ not in known:
            registry.analysis(
                question, title, needs=needs, place=place, caption=_READINGS.get(title, "")
            )(function)
