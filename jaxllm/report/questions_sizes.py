"""How runs of several sizes compare: which axis joins their curves, and the laws of their loss."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator

import numpy as np
import pandas as pd

from jaxllm.analysis import (
    dynamics_sizes,
    emergence,
)
from jaxllm.analysis.scaling import chinchilla, components, kaplan, ladder
from jaxllm.report import charts_findings as charts
from jaxllm.report.charts import Chart
from jaxllm.report.questions import NOW, SIZES, Answer, Study, answer, shares_of
from jaxllm.report.tables import Tables

# `loss_points` of the runs, made by the first study that asks.
LossPoints = Callable[[], tuple[pd.DataFrame, str]]

_TITLES = {"params": "parameters", "tokens": "training tokens", "flops": "training FLOPs"}
# The warm-up follows no law of the rest.
_WARM = 0.01


def studies(tables: Tables) -> Iterator[Study]:
    """The analyses that need three sizes."""
    yield SIZES, "One curve for all sizes", _collapse
    losses = functools.cache(lambda: loss_points(tables))
    for variable in _TITLES:
        yield SIZES, f"Loss and {_TITLES[variable]}", _power_law(losses, variable)
    for title, approach in (
        ("Compute-optimal: envelope", chinchilla.envelope),
        ("Compute-optimal: isoFLOP", chinchilla.isoflop),
        ("Compute-optimal: parametric loss", chinchilla.parametric),
    ):
        yield SIZES, title, _optimum(losses, title, approach)
    yield SIZES, "Task ladders", _ladders
    yield SIZES, "Principal components", _observational
    yield NOW, "Sudden or gradual over sizes", _over_sizes


def loss_points(tables: Tables) -> tuple[pd.DataFrame, str]:
    """`run, params, tokens, flops, loss` of all runs, and what the loss is.

    The logged training loss where three sizes have it; else the bits per byte or the logarithm of
    the perplexity of the task that most runs were scored on.
    """
    params = {overview.run: overview.params for overview in tables.overviews}
    frame = tables.metrics[tables.metrics.name == "loss"]
    frame = frame[["run", "tokens", "flops", "value"]].rename(columns={"value": "loss"})
    told = "the training loss"
    if frame.run.map(params).nunique() < 3:
        scored = tables.records[tables.records.metric.isin(["bits_per_byte", "perplexity"])]
        scored = scored[np.isfinite(scored.value) & (scored.value > 0)]
        if scored.empty:
            return frame.iloc[:0].assign(params=math.nan), "no loss is known of three sizes"
        counts = scored.groupby(["metric", "task"]).run.nunique()
        metric, task = counts.idxmax()
        frame = scored[(scored.metric == metric) & (scored.task == task)]
        value = np.log(frame.value) if metric == "perplexity" else frame.value
        frame = frame.assign(loss=value)
        told = f"{'log perplexity' if metric == 'perplexity' else 'bits per byte'} of {task}"
    frame = frame.assign(params=frame.run.map(params))
    late = frame.tokens > _WARM * frame.groupby("run").tokens.transform("max")
    return frame.loc[late, ["run", "params", "tokens", "flops", "loss"]], told


def _noted(answer: Answer, told: str) -> Answer:
    notes = (f"The loss is {told}, at all checkpoints of the runs.", *answer.notes)
    return Answer(**{**vars(answer), "notes": notes})


def _power_law(points: LossPoints, variable: str) -> Callable[[Tables], Answer]:
    def study(_: Tables) -> Answer:
        losses, told = points()

        def chart(table: pd.DataFrame) -> Chart:
            return charts.law(table, variable, "loss", "fitted", (_TITLES[variable], "loss"))

        found = kaplan.kaplan(losses)[variable]
        return _noted(answer(SIZES, f"Loss and {_TITLES[variable]}", found, chart), told)

    return study


def _optimum(
    points: LossPoints, title: str, approach: Callable[..., chinchilla.ComputeOptimal]
) -> Callable[[Tables], Answer]:
    def study(_: Tables) -> Answer:
        losses, told = points()
        found = approach(losses)

        def chart(table: pd.DataFrame) -> Chart:
            if approach is chinchilla.parametric:
                return charts.law(table, "fitted", "loss", "fitted", ("fitted loss", "loss"))
            fitted = [found.at(flops).params.value for flops in table.flops]
            titles = (_TITLES["flops"], "optimal parameters")
            return charts.law(table.assign(fitted=fitted), "flops", "params", "fitted", titles)

        return _noted(answer(SIZES, title, found, chart), told)

    return study


def _collapse(tables: Tables) -> Answer:
    def chart(table: pd.DataFrame) -> Chart:
        order = table.groupby("task").error.min().sort_values().index
        rows = table.set_index("task").loc[order].reset_index()
        title = "mean absolute error of a left-out size"
        return charts.dots(rows, "task", "error", title, series="axis", reference=0.0)

    logged = tables.metrics[tables.metrics.name == "loss"][["run", "tokens", "value"]]
    everyone = logged.run.nunique() == len(tables.overviews)
    losses = logged.rename(columns={"value": "loss"}) if everyone else None
    found = dynamics_sizes.collapse(tables.records, losses)
    return answer(SIZES, "One curve for all sizes", found, chart)


def _ladders(tables: Tables) -> list[Answer]:
    """For every task with a soft metric beside its accuracy, four at most."""
    records = tables.records[np.isfinite(tables.records.value)]
    made = []
    for task, rows in records.groupby("task", sort=False):
        soft = next((m for m in ("bits_per_byte", "perplexity", "brier", "nll")
                     if (rows.metric == m).any()), None)  # fmt: skip
        if soft is None or not (rows.metric == "accuracy").any():
            continue
        key = ["run", "params", "tokens"]
        wide = rows.pivot_table("value", key, "metric", aggfunc="last").reset_index()
        wide = wide.rename(columns={soft: "soft"})
        if soft == "perplexity":
            wide = wide.assign(soft=np.log(wide.soft))
        chance = float(rows.chance[rows.metric == "accuracy"].iloc[-1])
        found = ladder.ladder(wide, chance=chance)
        made.append(answer(SIZES, f"Task ladder: {task}", found, _ladder_chart))
    told = "No task has bits per byte, perplexity or Brier score beside its accuracy."
    return made[:4] or [Answer(SIZES, "Task ladders", told, refused=True)]


def _ladder_chart(table: pd.DataFrame) -> Chart:
    return charts.law(table, "soft", "accuracy", "fitted", ("soft metric", "accuracy"))


def _observational(tables: Tables) -> Answer:
    shares = shares_of(tables.points)
    last = shares.dropna(subset="value").sort_values("tokens")
    last = last.drop_duplicates(["run", "task"], keep="last")
    wide = last.pivot_table("value", "run", "task")
    flops = last.groupby("run").flops.max()
    family = last.groupby("run").family.last()
    found = components.components(wide, flops=flops, family=family)

    def chart(_: pd.DataFrame) -> Chart:
        rows = found.loadings[["PC1"]].reset_index(names="task").sort_values("PC1")[::-1]
        title = "weight in the first component"
        return charts.dots(rows, "task", "PC1", title, reference=0.0)

    return answer(SIZES, "Principal components", found, chart)


def _over_sizes(tables: Tables) -> Answer:
    found = emergence.emergence(tables.records, over="params")
    return answer(NOW, "Sudden or gradual over sizes", found, lambda _: None)
