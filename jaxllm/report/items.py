"""Items of a report, one per chart or finding, for the page, files and TensorBoard."""

from __future__ import annotations

import dataclasses
import functools
import logging
import math
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pandas as pd
from altair.utils.schemapi import debug_mode

from jaxllm.analysis.curves import has_direction, lower_is_better
from jaxllm.analysis.registry import HEALTH, NOW, Analysis, Study, analyses
from jaxllm.errors import one_line
from jaxllm.report import numbers, sentences
from jaxllm.report.charts import findings, specs, trajectories
from jaxllm.report.charts.axes import Axis, default_axis
from jaxllm.report.charts.specs import Chart
from jaxllm.report.tables import LOGGED, Overview, Tables
from jaxllm.report.theme import DISTINCT

# Parts of the page's sections, for charts over a clock; findings have no part.
LOSS, CURVES, GROWTH, TRAJECTORIES = "loss", "curves", "growth", "trajectories"
_TIMELESS = "No answer: no record says how many tokens were seen."
_HALF_PAGE = 560  # pixels inside a card of page.css's two columns


@dataclasses.dataclass(frozen=True)
class ReportItem:
    """One chart or finding of the report."""

    question: str  # key of `registry.QUESTIONS`
    title: str
    sentence: str = ""  # the result, or why there is none
    caption: str = ""  # how to read the chart, and its assumptions
    method: str = ""  # of a finding, with its source
    chart: Chart | None = None
    table: pd.DataFrame = dataclasses.field(default_factory=pd.DataFrame)  # offered as CSV
    notes: tuple[str, ...] = ()  # missing data and errors
    lines: tuple[str, ...] = ()  # further sentences, such as one for each check
    refused: bool = False
    part: str = ""  # of the section; empty for a finding
    domain: str = ""  # of a trajectory
    final: str = ""  # the last value, if there is a single one

    @functools.cached_property
    def spec(self) -> tuple[dict[str, Any], dict[str, pd.DataFrame]]:
        """Specification and data of the chart; see `specs.split`."""
        assert self.chart is not None
        return specs.split(self.chart)

    @property
    def height(self) -> int:
        """Pixels of the chart, without its axis."""
        spec = self.spec[0]
        return spec.get("height") or spec["usermeta"]["height"]

    @property
    def least_width(self) -> int:
        """Pixels below which the page scrolls the chart; 0 if it fits any width."""
        return self.spec[0].get("usermeta", {}).get("least_width", 0)

    @property
    def wide(self) -> bool:
        """Whether the chart needs more than a card of half the page's width."""
        return self.chart is not None and self.least_width > _HALF_PAGE

    @functools.cached_property
    def legend(self) -> tuple[str, list[tuple[str, int]]]:
        """The field that the colours of the chart stand for, and its values; see `specs.legend`."""
        return specs.legend(*self.spec) if self.chart is not None else ("", [])

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
    """All items of a report, `backtested` with a backtest of the forecasts on finished runs.

    `progress` is called with a line after each analysis.
    """
    axis = default_axis(tables.points, tables.metrics)
    result = [
        *training_curves(tables, axis), *growth(tables, axis), *all_trajectories(tables, axis)
    ]  # fmt: skip
    study = dataclasses.replace(tables.study, backtested=backtested)
    if tables.points.value.notna().any() or not study.logged.empty:
        for analysis in analyses():
            if analysis.needs(study):
                began = time.monotonic()
                result += answers(analysis, study)
                progress(f"{analysis.title}: {time.monotonic() - began:.1f} s")
    return result


def answers(analysis: Analysis, study: Study) -> Iterator[ReportItem]:
    """Findings of one analysis with their charts; a failure becomes a refused item."""
    chart = getattr(findings, analysis.name, None)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            results = analysis.run(study)
    except Exception as error:  # a failed analysis must not fail the report
        reason = f"This analysis failed: {type(error).__name__}: {error}."
        logging.warning("%s: %s", analysis.title, one_line(reason))
        logging.debug("Its traceback:", exc_info=error)
        yield ReportItem(analysis.question, analysis.title, reason, refused=True)
        return
    timeless = study.logged.empty and study.records.tokens.isna().all()
    for finding in results:
        item = ReportItem(
            analysis.question,
            finding.title or analysis.title,
            _TIMELESS if finding.refused and timeless else finding.sentence,
            analysis.caption,
            analysis.method,
            table=finding.table,
            notes=finding.notes,
            lines=finding.lines,
            refused=bool(finding.refused),
        )
        if chart and not finding.refused and len(finding.table):
            item = item.draw(functools.partial(chart, finding, study))
        yield item


def training_curves(tables: Tables, axis: Axis) -> Iterator[ReportItem]:
    """Charts of the training loss, total and by domain, and of the other logged quantities."""
    metrics, several = tables.metrics, tables.several_runs
    by_domain = metrics[metrics.name.str.startswith("loss/")]
    # A single run has one colour, but in the chart of its domains.
    single = metrics if several else metrics.assign(series=metrics.run)
    series = tables.series if several else tuple(overview.run for overview in tables.overviews)
    yield from _curve(single[single.name == "loss"], axis, series, "Training loss", LOSS)
    if several:
        for name, points in by_domain.groupby("name", sort=False):
            title = f"Loss on {name.removeprefix('loss/')}"
            yield from _curve(points, axis, series, title, LOSS)
    else:
        colours = tables.series  # those of the domain's tasks, if there are enough
        if len(colours) > DISTINCT:
            colours = tuple(by_domain.series.unique())
        yield from _curve(by_domain, axis, colours, "Training loss by domain", LOSS, "Loss")
    for name, title in LOGGED.items():
        yield from _curve(single[single.name == name], axis, series, title, CURVES)


def _curve(
    points: pd.DataFrame, axis: Axis, series: Sequence[str], title: str, part: str, name: str = ""
) -> Iterator[ReportItem]:
    """Chart of a logged quantity over the clock, where it was logged."""
    if points.empty:
        return
    lines = points.dropna(subset="value").groupby(["run", "series"], sort=False)["value"].last()
    final = numbers.short(float(lines.iloc[0])) if len(lines) == 1 else ""
    sentence = sentences.of_curve(points, name or title)
    unit = numbers.UNITS.get(str(points.name.iloc[0]).split("/")[0], "")
    item = ReportItem(HEALTH, title, sentence, unit, part=part, final=final)
    height = 120 if part == CURVES else 170
    yield item.draw(lambda: trajectories.curve(points, axis, series, name or title, height))


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


def _typical(tables: Tables) -> list[Overview]:
    """All runs; of many, the largest of each family with two or more checkpoints."""
    if not tables.many_runs:
        return list(tables.overviews)
    by_size = sorted(tables.overviews, key=lambda o: o.params if o.params > 0 else 0.0)
    largest = {o.family: o for o in by_size if o.checkpoints > 1}
    return list(largest.values())[-DISTINCT:]


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
                part=TRAJECTORIES,
                domain=domain,
                final="" if len(of_task) > 1 else numbers.value(last.final, last.metric),
            )
            draw = functools.partial(trajectories.trajectory, points, axis, tables.series)
            yield item.draw(draw)


def _task_caption(last: pd.Series) -> str:
    parts = [numbers.metric_name(last.metric)]
    if math.isfinite(last.guess):
        parts.append(sentences.guess(last))
    elif has_direction(last.metric) and not lower_is_better(last.metric):
        parts.append("chance unknown")
    parts += ([f"n {last.n:,}"] if last.n else []) + ([f"{last.shots}-shot"] if last.shots else [])
    return " · ".join(parts)
