"""Items of a report, one per chart or finding, for the page, files and TensorBoard."""

from __future__ import annotations

import dataclasses
import functools
import logging
import math
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pandas as pd
from altair.utils.schemapi import debug_mode

from jaxllm.analysis.curves import lower_is_better
from jaxllm.analysis.registry import HEALTH, NOW, Analysis, Study, analyses
from jaxllm.errors import one_line
from jaxllm.report import numbers, sentences
from jaxllm.report.charts import findings, specs, trajectories
from jaxllm.report.charts.axes import Axis, default_axis
from jaxllm.report.charts.specs import Chart
from jaxllm.report.notes import NO_RECORD
from jaxllm.report.tables import LOGGED, Overview, Tables
from jaxllm.report.theme import DISTINCT
from jaxllm.run.records import OK

# Parts of the page's sections, for charts over steps, tokens or FLOPs; findings have no part.
LOSS, CURVES, GROWTH, TRAJECTORIES = "loss", "curves", "growth", "trajectories"


@dataclasses.dataclass(frozen=True)
class ReportItem:
    """One chart or finding of the report.

    Attributes:
      question: key of `registry.QUESTIONS`.
      title: heading of the item.
      sentence: the result, or why there is none.
      caption: how to read the chart, and its assumptions.
      chart: the chart, if any.
      table: numbers of a finding, offered as CSV.
      notes: missing data and errors.
      lines: further sentences, such as one for each check.
      refused: whether there is no answer.
      part: part of the section; empty for a finding.
      domain: domain of a trajectory.
      final: the last value, if there is a single one.
    """

    question: str
    title: str
    sentence: str = ""
    caption: str = ""
    chart: Chart | None = None
    table: pd.DataFrame = dataclasses.field(default_factory=pd.DataFrame)
    notes: tuple[str, ...] = ()
    lines: tuple[str, ...] = ()
    refused: bool = False
    part: str = ""
    domain: str = ""
    final: str = ""

    @functools.cached_property
    def spec(self) -> tuple[dict[str, Any], dict[str, pd.DataFrame]]:
        """Specification and data of the chart; see `specs.split`."""
        assert self.chart is not None
        return specs.split(self.chart)

    def draw(self, chart: Callable[[], Chart | None]) -> ReportItem:
        """Item with its chart; a chart that fails becomes a note."""
        try:
            drawn = dataclasses.replace(self, chart=chart())
            assert drawn.chart is None or drawn.spec
        except Exception as error:
            return dataclasses.replace(self, notes=(specs.failure(self.title, error), *self.notes))
        return drawn


@debug_mode(False)  # the tests validate the charts; validation here would take most of the time
def items(
    tables: Tables, *, backtested: bool = False, progress: Callable[[str], None] = lambda _: None
) -> list[ReportItem]:
    """All items of a report.

    Args:
      tables: result of `jaxllm.report.tables.gather`.
      backtested: whether to backtest the forecasts on the finished runs.
      progress: called with a line after each analysis.
    """
    axis = default_axis(tables.points, tables.metrics)
    found = [*training_curves(tables, axis), *growth(tables, axis), *all_trajectories(tables, axis)]
    if tables.points.value.notna().any() or not tables.logged.empty:
        study = tables.study(backtested)
        for analysis in analyses():
            if analysis.needs(study):
                began = time.monotonic()
                found += answers(analysis, study)
                progress(f"{analysis.title}: {time.monotonic() - began:.1f} s")
    return found


def answers(analysis: Analysis, study: Study) -> list[ReportItem]:
    """Findings of one analysis with their charts; a failure becomes a refused item."""
    chart = getattr(findings, analysis.name, None)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            made = analysis.run(study)
    except Exception as error:  # a failed analysis must not fail the report
        reason = f"{type(error).__name__}: {error}"
        logging.warning("The analysis %s failed: %s", analysis.title, one_line(reason))
        logging.debug("Its traceback:", exc_info=error)
        told = f"This analysis failed: {reason}."
        return [ReportItem(analysis.question, analysis.title, told, refused=True)]
    result = []
    for finding in made:
        item = ReportItem(
            analysis.question,
            finding.title or analysis.title,
            finding.sentence,
            analysis.caption,
            table=finding.table,
            # The notes on the data list records without a value, by task and checkpoint.
            notes=tuple(note for note in finding.notes if "records have no value" not in note),
            lines=finding.lines,
            refused=bool(finding.refused),
        )
        if chart and not finding.refused and len(finding.table):
            item = item.draw(functools.partial(chart, finding, study))
        result.append(item)
    return result


def training_curves(tables: Tables, axis: Axis) -> Iterator[ReportItem]:
    """Charts of the training loss, total and by domain, and of the other logged quantities."""
    yield from _curves(tables, axis, LOSS, {"loss": "Training loss"})
    by_domain = tables.metrics[tables.metrics.name.str.startswith("loss/")]
    if tables.several_runs:
        names = {name: f"Loss on {name.removeprefix('loss/')}" for name in by_domain.name.unique()}
        yield from _curves(tables, axis, LOSS, names)
    elif len(by_domain):
        colours = tables.series  # those of the domain's tasks, if there are enough
        if len(colours) > DISTINCT:
            colours = tuple(by_domain.series.unique())
        item = ReportItem(HEALTH, "Training loss by domain", part=LOSS)
        item = dataclasses.replace(item, sentence=sentences.of_curve(by_domain, "Loss"))
        yield item.draw(lambda: trajectories.curve(by_domain, axis, colours, "loss"))
    yield from _curves(tables, axis, CURVES, LOGGED, height=120)


def _curves(
    tables: Tables, axis: Axis, part: str, titles: Mapping[str, str], height: int = 170
) -> Iterator[ReportItem]:
    """Chart of each logged quantity, with a colour per run."""
    for name, title in titles.items():
        points = tables.metrics[tables.metrics.name == name]
        series = tables.series
        if points.empty:
            continue
        if not tables.several_runs:
            points, series = points.assign(series=points.run), (tables.overviews[0].run,)
        item = ReportItem(
            HEALTH, title, sentences.of_curve(points, title), part=part, final=_last_value(points)
        )
        draw = functools.partial(trajectories.curve, points, axis, series, title, height)
        yield item.draw(draw)


def growth(tables: Tables, axis: Axis) -> Iterator[ReportItem]:
    """Gain chart of every run; of many runs, of the largest of each family."""
    for overview in _typical(tables):
        shares = tables.shares[tables.shares.run == overview.run]
        if shares.empty:
            continue
        of_run = tables.findings[tables.findings.run == overview.run]
        order = list(dict.fromkeys([*of_run.task, *tables.findings.task]))
        title = f"Growth of {overview.run}" if tables.several_runs else "Share of the gain"
        item = ReportItem(NOW, title, sentences.headline(of_run), part=GROWTH)
        yield item.draw(functools.partial(trajectories.gains, shares, order, axis))


def all_trajectories(tables: Tables, axis: Axis) -> Iterator[ReportItem]:
    """Trajectory of every task over the checkpoints of all runs."""
    for domain, tasks in tables.domains.items():
        for task in tasks:
            points = tables.points[tables.points.task == task]
            of_task = tables.findings[tables.findings.task == task]
            last = of_task.iloc[0]
            item = ReportItem(
                NOW,
                task,
                sentences.of_task(of_task),
                _task_caption(last),
                notes=tuple(_missing(points)),
                part=TRAJECTORIES,
                domain=domain,
                final="" if len(of_task) > 1 else numbers.value(last.final, last.metric),
            )
            draw = functools.partial(trajectories.trajectory, points, axis, tables.series)
            yield item.draw(draw)


def _typical(tables: Tables) -> list[Overview]:
    """All runs; of many, the largest of each family with two or more checkpoints."""
    if not tables.many_runs:
        return list(tables.overviews)
    largest: dict[str, Overview] = {}
    for overview in sorted(tables.overviews, key=lambda o: o.params if o.params > 0 else 0.0):
        if overview.checkpoints > 1:
            largest[overview.family] = overview
    return list(largest.values())[-DISTINCT:]


def _last_value(points: pd.DataFrame) -> str:
    values = points.dropna(subset="value").groupby("run", sort=False)["value"].last()
    return numbers.short(float(values.iloc[0])) if len(values) == 1 else ""


def _task_caption(last: pd.Series) -> str:
    parts = [numbers.metric_name(last.metric)]
    if math.isfinite(last.chance):
        parts.append(f"chance {numbers.chance(last.chance, last.metric)}")
    elif not lower_is_better(last.metric):
        parts.append("chance unknown")
    parts += ([f"n {last.n:,}"] if last.n else []) + ([f"{last.shots}-shot"] if last.shots else [])
    return " · ".join(parts)


def _missing(points: pd.DataFrame) -> Iterator[str]:
    bad = points[points.value.isna()]
    if len(bad):
        steps = ", ".join(f"{step:,}" for step in sorted(bad.step.unique())[:4])
        failed = bad[~bad.status.isin([OK, NO_RECORD])]
        reason = f": {failed.status.iloc[-1]}" if len(failed) else ""
        yield f"No value at {len(bad)} of {len(points)} checkpoints (step {steps}){reason}"
