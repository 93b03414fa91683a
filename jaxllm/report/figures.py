"""The figures of a report, each with its sentence: for the page, for files and TensorBoard."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import pandas as pd

from jaxllm.report import charts, numbers, questions, summary
from jaxllm.report.axes import Axis, axes, preferred_scale
from jaxllm.report.questions import Answer
from jaxllm.report.tables import HEALTH, Overview, Tables
from jaxllm.report.theme import DISTINCT


@dataclasses.dataclass(frozen=True)
class Figure:
    """A chart of the report.

    Attributes:
      name: What it shows; findings have their title.
      chart: The chart; None where it could not be made.
      sentence: What is to be seen on it.
      final: The last value, where there is one.
      clock: Whether it is drawn against a clock, in the colours of the runs.
      failure: Why there is no chart.
    """

    name: str
    chart: charts.Chart | None
    sentence: str = ""
    final: str = ""
    clock: bool = True
    failure: str = ""

    @functools.cached_property
    def parts(self) -> tuple[dict[str, Any], dict[str, pd.DataFrame]]:
        """The chart's specification and its rows, as of `charts.parts`."""
        assert self.chart is not None
        return charts.parts(self.chart)


def _guarded(make: Callable[..., Figure]) -> Callable[..., Figure]:
    """`make`, or a figure of its first argument's name that says why: no chart costs the others."""

    @functools.wraps(make)
    def guarded(name: str, *args: Any) -> Figure:
        try:
            figure = make(name, *args)
            assert figure.parts
        except Exception as error:
            return Figure(name, None, failure=charts.failure(name, error))
        return figure

    return guarded


def first_axis(tables: Tables) -> Axis:
    """The clock that charts are drawn against unless their reader chooses another."""
    return axes(tables.points, tables.metrics)["tokens"][preferred_scale(tables.points)]


def growth(tables: Tables, axis: Axis) -> Iterator[Figure]:
    """Which capability grew when, of every run; of many the largest of each family."""
    for overview in _typical(tables):
        shares = tables.shares[tables.shares.run == overview.run]
        if len(shares):
            name = overview.run if tables.several_runs else "Share of the gain"
            yield _gains(name, tables, axis, overview.run, shares)


@_guarded
def _gains(name: str, tables: Tables, axis: Axis, run: str, shares: pd.DataFrame) -> Figure:
    of_run = tables.findings[tables.findings.run == run]
    order = list(dict.fromkeys([*of_run.task, *tables.findings.task]))
    return Figure(name, charts.gains(shares, order, axis), summary.headline(of_run))


@_guarded
def trajectory(task: str, tables: Tables, axis: Axis) -> Figure:
    """One task over the checkpoints of all runs."""
    points = tables.points[tables.points.task == task]
    found = tables.findings[tables.findings.task == task]
    chart = charts.capability(points, axis, tables.series)
    return Figure(task, chart, summary.of_task(found))


def losses(tables: Tables, axis: Axis) -> Iterator[Figure]:
    """The training loss, and that of every domain."""
    yield from _curves(tables, axis, {"loss": "Training loss"})
    by_domain = tables.metrics[tables.metrics.name.str.startswith("loss/")]
    if tables.several_runs:
        names = {name: f"Loss on {name.removeprefix('loss/')}" for name in by_domain.name.unique()}
        yield from _curves(tables, axis, names)
    elif len(by_domain):
        yield _domain_losses("Training loss by domain", tables, axis, by_domain)


@_guarded
def _domain_losses(name: str, tables: Tables, axis: Axis, by_domain: pd.DataFrame) -> Figure:
    colours = tables.series  # as the tasks of the domain, where there are colours for all
    if len(colours) > DISTINCT:
        colours = tuple(by_domain.series.unique())
    chart = charts.curve(by_domain, axis, colours, "loss")
    return Figure(name, chart, summary.of_curve(by_domain, "Loss"))


def vitals(tables: Tables, axis: Axis) -> Iterator[Figure]:
    """Gradient norm, learning rate and speed."""
    yield from _curves(tables, axis, HEALTH, height=120)


def every(tables: Tables, found: Sequence[Answer]) -> Iterator[tuple[str, Figure]]:
    """Every figure with the question that it answers; the tasks of a domain as one."""
    axis = first_axis(tables)
    for figure in (*losses(tables, axis), *vitals(tables, axis)):
        yield questions.HEALTH, figure
    for figure in growth(tables, axis):
        name = f"Growth of {figure.name}" if tables.several_runs else figure.name
        yield questions.NOW, dataclasses.replace(figure, name=name)
    for domain, tasks in tables.domains.items():
        yield "trajectories", trajectories(domain, tables, tasks)
    for answer in found:
        if answer.chart is not None:
            yield answer.question, of_answer(answer.title, answer)


@_guarded
def of_answer(title: str, answer: Answer) -> Figure:
    """The chart of a finding that has one."""
    return Figure(title, answer.chart, answer.sentence, clock=False)


def pictures(
    tables: Tables, figures: Iterable[tuple[str, Figure]], kind: str = "png", scale: float = 2.0
) -> Iterator[tuple[str, Figure, bytes]]:
    """Each figure with its group and its picture; those that fail are left out, and told."""
    for group, figure in figures:
        if figure.chart is None:
            continue
        try:
            content = picture(tables, figure, kind, scale)
        except Exception as error:
            charts.failure(figure.name, error)
        else:
            yield group, figure, content


def picture(tables: Tables, figure: Figure, kind: str = "png", scale: float = 2.0) -> bytes:
    """A figure with its name and its sentence as a PNG or PDF."""
    assert figure.chart is not None
    palette = tables.palette if figure.clock else "series"
    return charts.picture(
        figure.chart, figure.name, figure.sentence, kind=kind, scale=scale, palette=palette
    )


@_guarded
def trajectories(name: str, tables: Tables, tasks: Sequence[str]) -> Figure:
    """The trajectories of `tasks` as one chart with a panel each."""
    axis = first_axis(tables)
    made = [trajectory(task, tables, axis) for task in tasks]
    panels = [(figure.name, figure.chart) for figure in made if figure.chart is not None]
    columns = min(len(panels), 4) if len(panels) != 4 else 2
    return Figure(name, charts.figure(panels, columns))


def _typical(tables: Tables) -> list[Overview]:
    """All runs; of many the largest of each family that has a trajectory."""
    if not tables.many_runs:
        return list(tables.overviews)
    largest: dict[str, Overview] = {}
    for overview in sorted(tables.overviews, key=lambda o: o.params if o.params > 0 else 0.0):
        if overview.checkpoints > 1:
            largest[overview.family] = overview
    return list(largest.values())[-DISTINCT:]


def _curves(
    tables: Tables, axis: Axis, names: Mapping[str, str], height: int = 170
) -> Iterator[Figure]:
    """A chart per logged quantity; one colour per run."""
    for name, title in names.items():
        points = tables.metrics[tables.metrics.name == name]
        if len(points):
            yield _curve(title, tables, axis, points, height)


@_guarded
def _curve(title: str, tables: Tables, axis: Axis, points: pd.DataFrame, height: int) -> Figure:
    series: Sequence[str] = tables.series
    if not tables.several_runs:
        points, series = points.assign(series=points.run), (tables.overviews[0].run,)
    chart = charts.curve(points, axis, series, title, height)
    return Figure(title, chart, summary.of_curve(points, title), _last_value(points))


def _last_value(points: pd.DataFrame) -> str:
    values = points.dropna(subset="value").groupby("run", sort=False)["value"].last()
    if len(values) != 1:
        return ""
    last = float(values.iloc[0])
    return numbers.count(last) if last >= 1000 else f"{last:.3g}"
