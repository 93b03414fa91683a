"""report/index.html: one self-contained page with charts, data and scripts.

It works offline, and its content security policy forbids network access. Charts are Vega-Lite
specifications drawn in the browser; sentences and table are plain HTML. The templates escape all
text from the data.
"""

from __future__ import annotations

import functools
import json
import math
import re
from collections.abc import Sequence
from importlib import resources
from typing import Any

import jinja2
import pandas as pd
import vl_convert
from altair.utils.schemapi import debug_mode
from jinja2.utils import htmlsafe_json_dumps
from markupsafe import Markup, escape

from jaxllm.analysis import registry
from jaxllm.analysis.finding import amount
from jaxllm.analysis.onsets import LEFT, PROVISIONAL
from jaxllm.report import numbers, sentences
from jaxllm.report.charts import axes as chart_axes
from jaxllm.report.items import ReportItem
from jaxllm.report.tables import LOGGED, Overview, Tables
from jaxllm.report.theme import COLOURS, chart_config, style_variables
from jaxllm.run import times

javascript_libraries = functools.cache(vl_convert.javascript_bundle)
"""Vega, Vega-Lite and Vega-Embed as one script; a second of work."""


TOKEN_PAGE = "tokens.html"  # beside it; see `jaxllm.report.microscope`
# Columns of the points that are not in a record.
_INTERNAL = ["score", "score_stderr", "chance_score", "unigram_score", "above", "guess_level"]


@debug_mode(False)  # as in `items.items`
def render(tables: Tables, items: Sequence[ReportItem]) -> str:
    """Render the page as HTML, with the items ordered by question."""
    keyed = {f"chart-{number}": item for number, item in enumerate(items, start=1)}
    charts = {key: _chart(item) for key, item in keyed.items()}
    axes = chart_axes.axes(tables.points, tables.metrics)
    data = {
        "charts": {key: chart for key, chart in charts.items() if len(chart) > 1},
        "axes": {
            clock: {scale: vars(axis) for scale, axis in scales.items()}
            for clock, scales in axes.items()
        },
        "themes": {
            theme: {"clock": chart_config(theme, tables.palette), "finding": chart_config(theme)}
            for theme in COLOURS
        },
        "records": _columns(tables.points.drop(columns=_INTERNAL)),
    }

    def select(question: str, **fields: Any) -> dict[str, ReportItem]:
        fields = {"question": question, "part": "", "domain": "", "refused": False} | fields
        return {
            key: item
            for key, item in keyed.items()
            if all(getattr(item, name) == value for name, value in fields.items())
        }

    template = templates().get_template("page.html")
    return template.render(
        token_page=TOKEN_PAGE if tables.study.token_studies else "",
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
        data=htmlsafe_json_dumps(data, separators=(",", ":"), allow_nan=False),
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


def facts(tables: Tables, overview: Overview) -> dict[str, str]:
    """Key figures of one run, and its settings where the runs differ."""
    wall = overview.wall_seconds
    return {
        "Parameters": amount(overview.params),
        "Tokens": amount(overview.tokens),
        "FLOPs": numbers.flops(overview.flops),
        "Wall time": times.duration(wall) if math.isfinite(wall) else numbers.UNKNOWN,
        "Final loss": numbers.value(overview.final_loss, "loss"),
        "Checkpoints": str(overview.checkpoints),
        "Time in scoring": numbers.value(overview.evaluation_share, "accuracy"),
        "Restarts": f"{overview.restarts:.0f}" if overview.restarts >= 0 else numbers.UNKNOWN,
    } | tables.differing[overview.run]


def asset(name: str) -> str:
    """Text of a file in the template directory."""
    return resources.files("jaxllm.report").joinpath("templates", name).read_text(encoding="utf-8")


@functools.cache
def templates() -> jinja2.Environment:
    """The environment of the report's templates, which escape all text."""
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(asset),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    # Allow line breaks after the underscores of task names and the dots of settings.
    environment.filters["name"] = lambda text: Markup(
        re.sub("[_.]", r"\g<0><wbr>", str(escape(text)))
    )
    environment.globals |= {
        "numbers": numbers,
        "sentences": sentences,
        "left_chance": (LEFT, PROVISIONAL),
        "logged_quantities": numbers.join(list(LOGGED)),
    }
    return environment


def _chart(item: ReportItem) -> dict[str, Any]:
    """The chart of an item, and the table of a finding, for the page's script."""
    data: dict[str, Any] = {"name": item.title}
    if not item.part and not item.refused:
        data["table"] = _columns(item.table)
    if item.chart is not None:
        spec, tables = item.spec
        rows = {name: _columns(table) for name, table in tables.items()}
        data |= {"spec": spec, "data": rows, "series": item.legend[0], "clock": bool(item.part)}
    return data


def _columns(table: pd.DataFrame) -> dict[str, Any]:
    """Table by columns, with dictionary-encoded text and numbers to ten digits."""
    columns = json.loads(table.reset_index(drop=True).to_json(double_precision=10))
    for name, cells in columns.items():
        values = list(cells.values())
        if any(isinstance(value, str) for value in values):
            at = {value: number for number, value in enumerate(dict.fromkeys(values))}
            columns[name] = {"words": list(at), "at": [at[value] for value in values]}
        else:
            columns[name] = [float(f"{v:.10g}") if isinstance(v, float) else v for v in values]
    return columns


def _script_safe(code: str) -> Markup:
    """Code with the sequences escaped that would end or comment out its script element."""
    return Markup(re.sub("<(/script|!--)", r"<\\\1", code, flags=re.IGNORECASE))
