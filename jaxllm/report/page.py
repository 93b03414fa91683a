"""report/index.html: one self-contained page with charts, data and scripts.

The page works offline, and its content security policy forbids network access. Charts are Vega-Lite
specifications drawn in the browser; the sentences and the table are plain HTML, readable without
scripts. The templates escape all text from the data.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import re
from collections.abc import Sequence
from importlib import resources
from typing import Any, NamedTuple

import jinja2
import pandas as pd
import vl_convert
from altair.utils.schemapi import debug_mode
from etils import epath
from markupsafe import Markup, escape

from jaxllm.analysis import registry
from jaxllm.analysis.onsets import LEFT, PROVISIONAL
from jaxllm.report import numbers, sentences
from jaxllm.report.charts import axes as chart_axes
from jaxllm.report.charts import specs
from jaxllm.report.items import ReportItem
from jaxllm.report.tables import LOGGED, Overview, Tables
from jaxllm.report.theme import COLOURS, chart_config, style_variables

javascript_libraries = functools.cache(vl_convert.javascript_bundle)
"""Vega, Vega-Lite and Vega-Embed as one script; a second of work."""


# Columns of the points that are not in a record.
_INTERNAL = ["score", "score_stderr", "chance_score", "above"]


class Card(NamedTuple):
    """Card of an item on the page.

    Attributes:
      item: the item.
      key: key of its chart and table in the page's data.
      legend: names and indices of the colours, where there are several.
      height: height of its chart in pixels; 0 without a chart.
    """

    item: ReportItem
    key: str
    legend: list[tuple[str, int]]
    height: int


def write(path: epath.Path, content: bytes) -> epath.Path:
    """Write a file of the report, creating its directory."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


@debug_mode(False)  # as in `items.items`
def render(tables: Tables, items: Sequence[ReportItem]) -> str:
    """Render the page as HTML, with the items ordered by question."""
    keys = [f"chart-{number}" for number, _ in enumerate(items, start=1)]
    shown = {key: _shown(item) for key, item in zip(keys, items, strict=True)}
    cards = [
        Card(item, key, [] if item.part and tables.several_runs else _legend(shown[key]),
             int(item.chart.height) if item.chart is not None else 0)
        for key, item in zip(keys, items, strict=True)
    ]  # fmt: skip
    axes = chart_axes.axes(tables.points, tables.metrics)
    data = {
        "charts": {key: chart for key, chart in shown.items() if len(chart) > 1},
        "axes": {
            clock: {scale: dataclasses.asdict(axis) | {"title": axis.title}
                    for scale, axis in of_clock.items()}
            for clock, of_clock in axes.items()
        },
        "themes": {
            theme: {"clock": chart_config(theme, tables.palette), "finding": chart_config(theme)}
            for theme in COLOURS
        },
        "records": _columns(tables.points.drop(columns=_INTERNAL)),
    }  # fmt: skip

    def select(
        question: str, part: str = "", domain: str = "", refused: bool = False
    ) -> list[Card]:
        wanted = (question, part, domain, refused)
        return [card for card in cards if wanted == (
            card.item.question, card.item.part, card.item.domain, card.item.refused)]  # fmt: skip

    template = _templates().get_template("page.html")
    return template.render(
        tables=tables,
        heading=heading(tables),
        series=[(name, number) for number, name in enumerate(tables.series)],
        questions=registry.QUESTIONS,
        select=select,
        scored=tables.points.value.notna().any(),
        facts=facts,
        scale=chart_axes.preferred_scale(tables.points),
        loss_axis=chart_axes.LOSS in axes,
        style=Markup(style_variables(tables.palette) + asset("page.css")),
        data=_json(data),
        libraries=_script_safe(javascript_libraries()),
        script=Markup(asset("page.js")),
    )


def heading(tables: Tables) -> str:
    """Heading of the page: the names of the runs, or of their families."""
    names = [overview.run for overview in tables.overviews]
    if not tables.many_runs:
        return numbers.join(names)
    families = list(dict.fromkeys(overview.family for overview in tables.overviews))
    named = numbers.join(families) if len(families) <= 6 else f"{len(families)} families"
    return f"{len(names)} runs of {named}"


def facts(overview: Overview) -> dict[str, str]:
    """Key figures of one run."""
    return {
        "Parameters": numbers.count(overview.params),
        "Tokens": numbers.count(overview.tokens),
        "FLOPs": numbers.flops(overview.flops),
        "Wall time": numbers.duration(overview.wall_seconds),
        "Final loss": numbers.value(overview.final_loss, "loss"),
        "Checkpoints": str(overview.checkpoints),
        "Time in scoring": numbers.value(overview.evaluation_share, "accuracy"),
        "Restarts": str(overview.restarts),
    }


def asset(name: str) -> str:
    """Text of a file in the template directory."""
    return resources.files("jaxllm.report").joinpath("templates", name).read_text(encoding="utf-8")


@functools.cache
def _templates() -> jinja2.Environment:
    made = jinja2.Environment(
        loader=jinja2.FunctionLoader(asset),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    # Allow line breaks after the underscores of task names.
    made.filters["name"] = lambda text: escape(text).replace("_", Markup("_<wbr>"))
    made.globals |= {
        "numbers": numbers,
        "sentences": sentences,
        "left_chance": (LEFT, PROVISIONAL),
        "logged_quantities": numbers.join(list(LOGGED)),
    }
    return made


def _shown(item: ReportItem) -> dict[str, Any]:
    """Chart with its data, or table of a finding, for the page's script."""
    shown: dict[str, Any] = {"name": item.title}
    if not item.part and not item.refused:
        shown["table"] = _columns(item.table)
    if item.chart is not None:
        spec, tables = item.spec
        data = {name: _columns(table) for name, table in tables.items()}
        shown |= {"spec": spec, "data": data, "series": specs.series(spec)[0]}
        shown |= {"clock": True} if item.part else {}
    return shown


def _legend(shown: dict[str, Any]) -> list[tuple[str, int]]:
    """Legend of one chart, where there are several colours."""
    if "spec" not in shown:
        return []
    field, names = specs.series(shown["spec"])
    columns = [table[field] for table in shown["data"].values() if field in table]
    seen = {word for column in columns for word in column.get("words", ())}
    labels = [(name, number) for number, name in enumerate(names) if name in seen]
    return labels if len(labels) > 1 else []


def _columns(table: pd.DataFrame) -> dict[str, Any]:
    """Table by columns, with dictionary-encoded text and numbers to ten digits."""
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


def _json(data: object) -> Markup:
    """JSON of `data` with HTML's special characters and all non-ASCII characters escaped."""
    text = json.dumps(data, separators=(",", ":"), allow_nan=False)
    return Markup(text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e"))


def _script_safe(code: str) -> Markup:
    """Code with the sequences escaped that would end or comment out its script element."""
    return Markup(re.sub("<(/script|!--)", r"<\\\1", code, flags=re.IGNORECASE))
