"""report/index.html: one page that holds its charts, its data and the code that draws them.

The page needs no network, and its content security policy forbids it any. Charts are Vega-Lite
specifications drawn in the browser; the sentences and the table are plain HTML, so that they are
readable without scripts too.
"""

from __future__ import annotations

import dataclasses
import html
import json
import re
from collections.abc import Sequence
from importlib import resources
from string import Template
from typing import Any

import pandas as pd
from altair.utils.schemapi import debug_mode
from etils import epath

from jaxllm.report import charts, figures, libraries, numbers, questions, sections
from jaxllm.report.axes import LOSS, axes, preferred_scale
from jaxllm.report.figures import Figure
from jaxllm.report.questions import Answer
from jaxllm.report.tables import HEALTH, Tables
from jaxllm.report.theme import COLOURS, chart_config, style_variables


def write(path: epath.Path, content: bytes) -> epath.Path:
    """Writes a file of the report, with the directories above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


@debug_mode(False)  # the tests validate the charts; here it would cost most of the time
def render(tables: Tables, found: Sequence[Answer] = ()) -> str:
    """The whole page as HTML, with the findings in the order of a reader's questions."""
    book = _Charts(tables)
    logged = [("loss", "Loss", _loss), ("curves", "Gradients and speed", _vitals)]
    imported = tables.logged.empty and tables.points.value.notna().any()
    more = {
        questions.HEALTH: [] if imported else logged,
        questions.NOW: [("growth", "Which capability grew when", _growth),
                        ("trajectories", "Capability trajectories", _trajectories)],
        questions.AHEAD: [], questions.EARLY: [], questions.SIZES: [],
    }  # fmt: skip
    parts = [sections.glance(tables)]
    for question, title in questions.QUESTIONS.items():
        mine = [answer for answer in found if answer.question == question]
        cards = [book.answer(answer) for answer in mine if not answer.refused]
        content = [sections.part(name, text, made(book)) for name, text, made in more[question]]
        if question == questions.NOW:
            content.append(sections.part("table", "Final values", sections.final_table(tables)))
        if cards:  # what the charts show comes before what was computed, but for alarms
            at = 0 if question == questions.HEALTH else len(content)
            content.insert(at, sections.grid(cards, "medium"))
        content.append(sections.unanswered([answer for answer in mine if answer.refused]))
        if any(content):
            parts.append(sections.section(question, title, "".join(content)))
    body = "\n".join([*parts, sections.data_notes(tables)])
    palette = tables.palette
    page = Template(_asset("page.html"))
    data = {
        "charts": book.specifications,
        "axes": {
            clock: {kind: dataclasses.asdict(axis) | {"title": axis.title}
                    for kind, axis in of_clock.items()}
            for clock, of_clock in book.axes.items()
        },
        "themes": {theme: {"clock": chart_config(theme, palette), "finding": chart_config(theme)}
                   for theme in COLOURS},
        "records": _columns(tables.points),
    }  # fmt: skip
    return page.substitute(
        title=html.escape(f"{sections.heading(tables)} · jaxllm report"),
        style=style_variables(palette) + _asset("page.css"),
        legend=sections.legend([(name, at) for at, name in enumerate(tables.series)])
        if tables.several_runs
        else "",
        log="checked" if preferred_scale(tables.points) == "log" else "",
        linear="checked" if preferred_scale(tables.points) == "linear" else "",
        loss="" if LOSS in book.axes else "disabled",
        body=body,
        data=_json(data),
        libraries=_script_safe(libraries.script()),
        script=_asset("page.js"),
    )


class _Charts:
    """Numbers the charts of a page and keeps their specifications."""

    def __init__(self, tables: Tables):
        self.tables = tables
        self.axes = axes(tables.points, tables.metrics)
        self.axis = figures.first_axis(tables)
        self.specifications: dict[str, dict[str, Any]] = {}

    def figure(self, figure: Figure, **texts: str) -> str:
        """The HTML of one chart against a clock; `texts` as in `sections.figure`."""
        if figure.chart is None:
            return sections.failed(figure.name, figure.failure)
        drawn = _drawn(figure)
        key = self._keep({"name": figure.name, "clock": True, **drawn})
        legend = "" if self.tables.several_runs else _legend(drawn)
        texts = {"final": figure.final, "sentence": figure.sentence, "extra": legend, **texts}
        return sections.figure(key, figure.name, int(figure.chart.height), **texts)

    def answer(self, found: Answer) -> str:
        """The HTML of one finding."""
        kept: dict[str, Any] = {"name": found.title, "table": _columns(found.table)}
        legend = ""
        figure = figures.of_answer(found.title, found) if found.chart is not None else None
        if figure and figure.failure:
            found = dataclasses.replace(found, chart=None, notes=(figure.failure, *found.notes))
        elif figure:
            kept |= _drawn(figure)
            legend = _legend(kept, "finding")
        return sections.answer(self._keep(kept), found, legend)

    def _keep(self, chart: dict[str, Any]) -> str:
        key = f"chart-{len(self.specifications) + 1}"
        self.specifications[key] = chart
        return key


def _columns(table: pd.DataFrame) -> dict[str, Any]:
    """A table by columns, every text of a column once, and numbers to ten digits."""
    made = json.loads(table.to_json(orient="split", double_precision=10, index=False))
    columns: dict[str, Any] = {}
    for name, values in zip(
        made["columns"], zip(*made["data"], strict=True), strict=len(table) > 0
    ):
        if any(isinstance(value, str) for value in values):
            at = {value: number for number, value in enumerate(dict.fromkeys(values))}
            columns[name] = {"words": list(at), "at": [at[value] for value in values]}
        else:
            columns[name] = [
                float(f"{value:.10g}") if isinstance(value, float) else value for value in values
            ]
    return columns


def _drawn(figure: Figure) -> dict[str, Any]:
    """A chart and its data, which take a fraction of the place; the page's script unfolds them."""
    spec, tables = figure.parts
    data = {name: _columns(table) for name, table in tables.items()}
    return {"spec": spec, "data": data, "series": charts.series(spec)[0]}


def _legend(drawn: dict[str, Any], palette: str = "series") -> str:
    """What the colours of one chart stand for, where there are several."""
    field, names = charts.series(drawn["spec"])
    columns = [table[field] for table in drawn["data"].values() if field in table]
    seen = {word for column in columns for word in column.get("words", ())}
    shown = [(name, number) for number, name in enumerate(names) if name in seen]
    return sections.legend(shown, palette) if len(shown) > 1 else ""


def _growth(book: _Charts) -> str:
    tables = book.tables
    if tables.points.value.notna().sum() == 0:
        return sections.nothing("No checkpoint has been scored yet.")
    drawn = [book.figure(figure) for figure in figures.growth(tables, book.axis)]
    size = "medium" if tables.many_runs else "wide"
    few = sections.FEW_RUNS if tables.many_runs else ""
    return sections.GROWTH_INTRODUCTION + few + sections.grid(drawn, size)


def _trajectories(book: _Charts) -> str:
    tables = book.tables
    if tables.points.empty:
        return sections.nothing("No checkpoint has been scored yet.")
    parts = []
    for domain, tasks in tables.domains.items():
        drawn = []
        for task in tasks:
            figure = figures.trajectory(task, tables, book.axis)
            drawn.append(book.figure(figure, **sections.capability_texts(tables, task)))
        colour = None if tables.several_runs else tables.series.index(domain)
        parts.append(sections.domain_group(domain, colour, drawn))
    many = tables.many_runs
    introduction = sections.MANY_INTRODUCTION if many else sections.TRAJECTORY_INTRODUCTION
    return f'{introduction}<div class="domains">{"".join(parts)}</div>'


def _loss(book: _Charts) -> str:
    drawn = [book.figure(figure) for figure in figures.losses(book.tables, book.axis)]
    if not drawn:
        return sections.nothing("metrics.jsonl has no loss.")
    if len(drawn) == 1 and not book.tables.several_runs:
        drawn.append(sections.nothing("No loss per domain was logged."))
    return sections.grid(drawn, "medium")


def _vitals(book: _Charts) -> str:
    drawn = [book.figure(figure) for figure in figures.vitals(book.tables, book.axis)]
    if not drawn:
        return sections.nothing(f"metrics.jsonl has none of {numbers.join(list(HEALTH))}.")
    return sections.grid(drawn, "small")


def _asset(name: str) -> str:
    return resources.files("jaxllm.report").joinpath(name).read_text(encoding="utf-8")


def _json(data: object) -> str:
    """`data` as JSON without a letter that means something to HTML; all beyond ASCII is escaped."""
    text = json.dumps(data, separators=(",", ":"), allow_nan=False)
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def _script_safe(code: str) -> str:
    """Our libraries' code, without what ends or hides the script element that holds it."""
    return re.sub("<(/script|!--)", r"<\\\1", code, flags=re.IGNORECASE)
