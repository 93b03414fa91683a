"""report/index.html: one page that holds its charts, its data and the code that draws them.

The page needs no network, and its content security policy forbids it any. Charts are Vega-Lite
specifications drawn in the browser; the sentences and the table are plain HTML, so that they are
readable without scripts too.
"""

from __future__ import annotations

import dataclasses
import functools
import html
import json
import os
from collections.abc import Iterator, Sequence
from importlib import resources
from string import Template
from typing import Any

import pandas as pd
from altair.utils.schemapi import debug_mode
from etils import epath

from jaxllm.report import charts, numbers, sections
from jaxllm.report.axes import axes, preferred_scale
from jaxllm.report.tables import HEALTH, Tables, gather
from jaxllm.report.theme import COLOURS, chart_config, style_variables
from jaxllm.trajectory.run import Run


def build(
    run_dirs: Sequence[str | os.PathLike[str]], output: str | os.PathLike[str] | None = None
) -> epath.Path:
    """Writes the report of one or several runs and returns the path of its index.html.

    Args:
      run_dirs: Run directories, local or `gs://`.
      output: The directory for index.html; default: report/ in the run's directory, or in the
        working directory when there are several runs.

    Raises:
      UserError: a directory is no run.
    """
    runs, folder = open_runs(run_dirs, output)
    return write(folder / "index.html", render(gather(runs)).encode())


def open_runs(
    run_dirs: Sequence[str | os.PathLike[str]], output: str | os.PathLike[str] | None
) -> tuple[list[Run], epath.Path]:
    """The runs of `run_dirs` and the directory for their report; arguments as of `build`."""
    runs = [Run(directory) for directory in run_dirs]
    if output is None:
        output = runs[0].path / "report" if len(runs) == 1 else "report"
    return runs, epath.Path(output)


def write(path: epath.Path, content: bytes) -> epath.Path:
    """Writes a file of the report, with the directories above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


@debug_mode(False)  # the tests validate the charts; here it would cost most of the time
def render(tables: Tables) -> str:
    """The whole page as HTML."""
    book = _Charts(tables)
    body = "\n".join(
        [
            sections.glance(tables),
            sections.section("growth", "Which capability grew when", _growth(book)),
            sections.section("trajectories", "Capability trajectories", _trajectories(book)),
            sections.section("loss", "Loss", _loss(book)),
            sections.section("health", "Health of the run", _health(book)),
            sections.section("table", "Final values", sections.final_table(tables)),
            sections.data_notes(tables),
        ]
    )
    names = [overview.run for overview in tables.overviews]
    page = Template(_asset("page.html"))
    data = {
        "charts": book.specifications,
        "axes": {
            clock: {kind: dataclasses.asdict(axis) | {"title": axis.title}
                    for kind, axis in of_clock.items()}
            for clock, of_clock in book.axes.items()
        },
        "themes": {theme: chart_config(theme) for theme in COLOURS},
        "records": json.loads(tables.points.to_json(orient="records", double_precision=10)),
    }  # fmt: skip
    return page.substitute(
        title=html.escape(f"{numbers.join(names)} · jaxllm report"),
        style=style_variables() + _asset("page.css"),
        legend=sections.legend(list(tables.series)) if tables.several_runs else "",
        log="checked" if preferred_scale(tables.points) == "log" else "",
        linear="checked" if preferred_scale(tables.points) == "linear" else "",
        body=body,
        data=_script_safe(json.dumps(data, separators=(",", ":"), allow_nan=False)),
        libraries=_script_safe(_libraries()),
        script=_asset("page.js"),
    )


def main_figure(tables: Tables, theme: str = "light") -> bytes:
    """The capability trajectories of all tasks as one PNG, for a README or a slide."""
    return charts.png(_figure(tables, list(tables.findings.task.unique())), theme)


def domain_figure(tables: Tables, domain: str) -> bytes:
    """The capability trajectories of one domain as a PNG."""
    return charts.png(_figure(tables, tables.domains[domain]), scale=1.5)


@debug_mode(False)
def _figure(tables: Tables, tasks: Sequence[str]) -> Any:
    axis = axes(tables.points, tables.metrics)["tokens"][preferred_scale(tables.points)]
    panels = []
    for task in tasks:
        points = tables.points[tables.points.task == task]
        panels.append((task, charts.capability(points, axis, tables.series)))
    return charts.figure(panels, columns=min(len(panels), 4) if len(panels) != 4 else 2)


class _Charts:
    """Numbers the charts of a page and keeps their specifications."""

    def __init__(self, tables: Tables):
        self.tables = tables
        self.axes = axes(tables.points, tables.metrics)
        self.axis = self.axes["tokens"][preferred_scale(tables.points)]
        self.specifications: dict[str, dict[str, Any]] = {}

    def figure(self, name: str, chart: charts.Chart, **parts: str) -> str:
        """The HTML of one chart; `parts` as in `sections.figure`."""
        key = f"chart-{len(self.specifications) + 1}"
        self.specifications[key] = {"name": name, "spec": charts.specification(chart)}
        return sections.figure(key, name, height=int(chart.height), **parts)


def _growth(book: _Charts) -> str:
    tables = book.tables
    if tables.points.value.notna().sum() == 0:
        return sections.nothing("No checkpoint has been scored yet.")
    order = list(dict.fromkeys(tables.findings.task))
    figures = []
    for overview in tables.overviews:
        shares = tables.shares[tables.shares.run == overview.run]
        if len(shares):
            name = overview.run if tables.several_runs else "Share of the gain"
            figures.append(book.figure(name, charts.gains(shares, order, book.axis)))
    return sections.GROWTH_INTRODUCTION + sections.grid(figures, "wide")


def _trajectories(book: _Charts) -> str:
    tables = book.tables
    if tables.points.empty:
        return sections.nothing("No checkpoint has been scored yet.")
    parts = []
    for domain, tasks in tables.domains.items():
        figures = []
        for task in tasks:
            points = tables.points[tables.points.task == task]
            chart = charts.capability(points, book.axis, tables.series)
            figures.append(book.figure(task, chart, **sections.capability_texts(tables, task)))
        colour = None if tables.several_runs else tables.series.index(domain)
        parts.append(sections.domain_group(domain, colour, figures))
    introduction = sections.TRAJECTORY_INTRODUCTION
    return f'{introduction}<div class="domains">{"".join(parts)}</div>'


def _loss(book: _Charts) -> str:
    tables = book.tables
    losses = tables.metrics[tables.metrics.name == "loss"]
    by_domain = tables.metrics[tables.metrics.name.str.startswith("loss/")]
    if losses.empty and by_domain.empty:
        return sections.nothing("metrics.jsonl has no loss.")
    figures = list(_curves(book, {"loss": "Training loss"}))
    if tables.several_runs:
        names = {name: f"Loss on {name.removeprefix('loss/')}" for name in by_domain.name.unique()}
        figures += list(_curves(book, names))
    elif len(by_domain):
        chart = charts.curve(by_domain, book.axis, tables.series, "loss")
        labels = list(by_domain.series.unique())
        legend = sections.legend(labels, [tables.series.index(label) for label in labels])
        figures.append(book.figure("Training loss by domain", chart, extra=legend))
    else:
        figures.append(sections.nothing("No loss per domain was logged."))
    return sections.grid(figures, "medium")


def _health(book: _Charts) -> str:
    figures = list(_curves(book, HEALTH, height=120))
    if not figures:
        return sections.nothing(f"metrics.jsonl has none of {numbers.join(list(HEALTH))}.")
    return sections.grid(figures, "small")


def _curves(book: _Charts, names: dict[str, str], height: int = 170) -> Iterator[str]:
    """A chart per logged quantity; one colour per run."""
    tables = book.tables
    runs = [overview.run for overview in tables.overviews]
    for name, title in names.items():
        points = tables.metrics[tables.metrics.name == name]
        if len(points):
            points = points.assign(series=points.run)
            chart = charts.curve(points, book.axis, runs, title).properties(height=height)
            yield book.figure(title, chart, final=_last_values(points))


def _last_values(points: pd.DataFrame) -> str:
    values = points.dropna(subset="value").groupby("run", sort=False)["value"].last()
    if len(values) != 1:
        return ""
    last = float(values.iloc[0])
    return numbers.count(last) if last >= 1000 else f"{last:.3g}"


@functools.cache
def _libraries() -> str:
    """Vega, Vega-Lite and Vega-Embed as one script."""
    import vl_convert

    return vl_convert.javascript_bundle()  # type: ignore[call-arg]


def _asset(name: str) -> str:
    return resources.files("jaxllm.report").joinpath(name).read_text(encoding="utf-8")


def _script_safe(text: str) -> str:
    """No `</script` or `<!--` may end or hide the script element that holds `text`."""
    return text.replace("</script", "<\\/script").replace("<!--", "<\\!--")
