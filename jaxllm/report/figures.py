"""The figures of a report, each with its sentence: for the page, for files and TensorBoard."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence

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
      chart: The chart.
      sentence: What is to be seen on it.
      final: The last value, where there is one.
      clock: Whether it is drawn against a clock, in the colours of the runs.
    """

    name: str
    chart: charts.Chart
    sentence: str = ""
    final: str = ""
    clock: bool = True


def first_axis(tables: Tables) -> Axis:
    """The clock that charts are drawn against unless their reader chooses another."""
    return axes(tables.points, tables.metrics)["tokens"][preferred_scale(tables.points)]


def growth(tables: Tables, axis: Axis) -> Iterator[Figure]:
    """Which capability grew when, of every run; of many the largest of each family."""
    for overview in _typical(tables):
        shares = tables.shares[tables.shares.run == overview.run]
        if len(shares):
            name = overview.run if tables.several_runs else "Share of the gain"
            of_run = tables.findings[tables.findings.run == overview.run]
            order = list(dict.fromkeys([*of_run.task, *tables.findings.task]))
            chart = charts.gains(shares, order, axis)
            yield Figure(name, chart, summary.headline(of_run))


def trajectory(tables: Tables, axis: Axis, task: str) -> Figure:
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
        colours = tables.series  # as the tasks of the domain, where there are colours for all
        if len(colours) > DISTINCT:
            colours = tuple(by_domain.series.unique())
        chart = charts.curve(by_domain, axis, colours, "loss")
        sentence = summary.of_curve(by_domain, "Loss")
        yield Figure("Training loss by domain", chart, sentence)


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
        yield "trajectories", Figure(domain, trajectories(tables, tasks))
    for answer in found:
        if answer.chart is not None:
            yield answer.question, of_answer(answer)


def of_answer(answer: Answer) -> Figure:
    """The chart of a finding.

    Raises:
      ValueError: it has none.
    """
    if answer.chart is None:
        raise ValueError(f"{answer.title} has no chart")
    return Figure(answer.title, answer.chart, answer.sentence, clock=False)


def picture(tables: Tables, figure: Figure, kind: str = "png", scale: float = 2.0) -> bytes:
    """A figure with its name and its sentence as a PNG or PDF."""
    palette = tables.palette if figure.clock else "series"
    return charts.picture(
        figure.chart, figure.name, figure.sentence, kind=kind, scale=scale, palette=palette
    )


def trajectories(tables: Tables, tasks: Sequence[str]) -> charts.Chart:
    """The trajectories of `tasks` as one chart with a panel each."""
    axis = first_axis(tables)
    panels = [(task, trajectory(tables, axis, task).chart) for task in tasks]
    return charts.figure(panels, columns=min(len(panels), 4) if len(panels) != 4 else 2)


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
            series: Sequence[str] = tables.series
            if not tables.several_runs:
                points, series = points.assign(series=points.run), (tables.overviews[0].run,)
            chart = charts.curve(points, axis, series, title, height)
            yield Figure(title, chart, summary.of_curve(points, title), _last_value(points))


def _last_value(points: pd.DataFrame) -> str:
    values = points.dropna(subset="value").groupby("run", sort=False)["value"].last()
    if len(values) != 1:
        return ""
    last = float(values.iloc[0])
    return numbers.count(last) if last >= 1000 else f"{last:.3g}"
