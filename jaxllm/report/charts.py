"""Altair charts over tidy tables: one specification serves the page, the PNG and TensorBoard.

Every chart has its data inside and a clock (`jaxllm.report.axes.Axis`) as its x axis. Colours
come from the theme alone; `series` is the list of names that the colours stand for.
"""

from __future__ import annotations

import json
import logging
import re
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import altair as alt
import numpy as np
import pandas as pd

from jaxllm.analysis.capabilities import is_share
from jaxllm.errors import one_line
from jaxllm.report.axes import Axis
from jaxllm.report.numbers import metric_name, with_error
from jaxllm.report.theme import DISTINCT, chart_config

Chart = alt.LayerChart | alt.FacetChart | alt.ConcatChart

# So many letters of a subtitle stand above a chart.
_LINE = 105

_CHART_COLUMNS = [
    "run", "task", "step", "tokens", "flops", "loss", "metric", "value", "stderr", "low", "high",
    "n", "chance", "left_chance", "series", "task_version",
]  # fmt: skip


def capability(points: pd.DataFrame, axis: Axis, series: Sequence[str]) -> Chart:
    """One task: value with its ±1.96 SE band against the clock, chance dashed, onset ringed.

    `points` are rows of one task with `low`, `high` (the band), `left_chance` and `series`; a row
    without a value is a gap in the line.
    """
    metric = str(points.metric.iloc[0])
    share = is_share(metric)
    number = ".1%" if share else ".3f"
    low, high = value_range(points, share)
    y_scale = alt.Scale(domain=[low, high], nice=False, zero=False)
    y_axis = alt.Axis(format=".0%" if share else "~g", title=None)
    base = alt.Chart().encode(
        x=_x(axis),
        color=_colour(series),
        detail=[alt.Detail("run:N"), alt.Detail("task_version:N")],
    )
    y = alt.Y("value:Q", scale=y_scale, axis=y_axis)
    many = points.run.nunique() > DISTINCT  # their bands would hide each other
    band = base.mark_area(opacity=0.16, clip=True).encode(
        y=alt.Y("low:Q", scale=y_scale, axis=y_axis), y2=alt.Y2("high:Q")
    )
    width = 1.1 if many else 2
    line = base.mark_line(strokeWidth=width, interpolate="linear", clip=True).encode(y=y)
    dots = base.mark_circle(size=9 if many else 22, opacity=1).encode(y=y)
    onset = (
        base.mark_point(style="onset", size=110, filled=False)
        .transform_filter("datum.left_chance")
        .encode(y=y, color=alt.Undefined)
    )
    nearest = _nearest(str(points.task.iloc[0]), ["run", "step"])
    hover = (
        base.transform_filter("isValid(datum.value)")
        .mark_circle(style="hover", size=90)
        .encode(
            y=y,
            opacity=_where(nearest),
            tooltip=[
                alt.Tooltip("run:N"),
                *_clock_tooltips(),
                alt.Tooltip("value:Q", title=metric_name(metric), format=number),
                alt.Tooltip("low:Q", title="95% from", format=number),
                alt.Tooltip("high:Q", title="to", format=number),
                alt.Tooltip("n:Q", title="examples"),
            ],
        )
        .add_params(nearest)
    )
    layers = [line, dots, hover] if many else [band, line, dots, onset, hover]
    chance = _finite(points.chance)
    if len(chance):
        rule = alt.Chart(alt.InlineData(values=[{"chance": float(chance.iloc[-1])}]))
        layers.insert(0, rule.mark_rule(style="chance").encode(y=alt.Y("chance:Q", axis=y_axis)))
    return alt.layer(
        *layers,
        data=points[_CHART_COLUMNS],
        width="container",
        height=150,
        description=_describe(points, metric),
    )


def gains(shares: pd.DataFrame, order: Sequence[str], axis: Axis) -> Chart:
    """Which capability grew when: a row per task, darker as more of its gain is made.

    `shares` has, beside `share`, the start of each cell on every clock (`step_from`, …) and the
    final value as `final_text`; rows at chance stay blank. A dot marks where chance was left.
    """
    y = alt.Y("task:N", sort=list(order), title=None,
              axis=alt.Axis(labelLimit=150, domain=False, labelFontSize=12),
              scale=alt.Scale(paddingInner=0.14))  # fmt: skip
    columns = ["run", "task", "domain", "step", "tokens", "flops", "loss", "value", "stderr",
               "share", "state", "left_chance", "final_text", "is_last", "step_from",
               "tokens_from", "flops_from", "loss_from"]  # fmt: skip
    base = alt.Chart().encode(y=y)
    cells = base.mark_rect(cornerRadius=1).encode(
        x=_x(axis, f"{axis.field}_from"),
        x2=alt.X2(f"{axis.field}:Q"),
        color=alt.Color("share:Q", scale=alt.Scale(domain=[0, 1]), legend=None),
        tooltip=[
            alt.Tooltip("task:N"),
            alt.Tooltip("domain:N"),
            *_clock_tooltips(),
            alt.Tooltip("share:Q", title="share of its gain", format=".0%"),
            alt.Tooltip("value:Q", format=".3f"),
            alt.Tooltip("state:N", title="state"),
        ],
    )
    dots = (
        base.transform_filter("datum.left_chance")
        .mark_circle(style="onset-tick", size=70, opacity=1, strokeWidth=1.5)
        .encode(x=_x(axis))
    )
    final = (
        base.transform_filter("datum.is_last")
        .mark_text(style="row-value", align="left", dx=7)
        .encode(x=_x(axis), text=alt.Text("final_text:N"))
    )
    tasks = shares.task.nunique()
    return alt.layer(
        cells,
        dots,
        final,
        data=shares[columns],
        width="container",
        height=max(26 * tasks, 60),
        description=f"Share of the gain above chance of {tasks} tasks against {axis.title}.",
    )


def curve(
    points: pd.DataFrame, axis: Axis, series: Sequence[str], name: str, height: int = 170
) -> Chart:
    """A logged quantity (`value`, by `series`) against the clock."""
    columns = ["run", "series", "step", "tokens", "flops", "loss", "value"]
    base = alt.Chart().encode(x=_x(axis), color=_colour(series))
    largest = points.value.abs().max()
    number = "~s" if largest >= 1000 else "~e" if largest < 0.01 else "~g"
    label = f"datum.value == 0 ? '0' : format(datum.value, '{number}')"
    y = alt.Y("value:Q", scale=alt.Scale(zero=False, nice=True),
              axis=alt.Axis(labelExpr=label, title=None))  # fmt: skip
    nearest = _nearest(name, ["series", "step"])
    width = 1.6 if points.series.nunique() < 3 else 1.2
    few = len(points) < 20 * points.series.nunique()  # one point alone is no line
    dots: Any = alt.OverlayMarkDef(size=20) if few else False
    line = base.mark_line(strokeWidth=width, clip=True, point=dots).encode(
        y=y, detail=[alt.Detail("run:N"), alt.Detail("series:N")]
    )
    hover = (
        base.transform_filter("isValid(datum.value)")
        .mark_circle(style="hover", size=80)
        .encode(
            y=y,
            opacity=_where(nearest),
            tooltip=[
                alt.Tooltip("series:N", title="series"),
                *_clock_tooltips(),
                alt.Tooltip("value:Q", title=name, format=".4~g"),
            ],
        )
        .add_params(nearest)
    )
    return alt.layer(
        line,
        hover,
        data=points[columns],
        width="container",
        height=height,
        description=f"{name} against {axis.title}.",
    )


def figure(charts: Sequence[tuple[str, Chart]], columns: int) -> Chart:
    """Titled charts as one picture, `columns` wide."""
    panels = [
        chart.properties(title=alt.TitleParams(name, frame="group"), width=250, height=140)
        for name, chart in charts
    ]
    spacing = {"row": 76, "column": 56}
    return alt.concat(*panels, columns=columns, spacing=spacing, bounds="flush")


def picture(
    chart: alt.TopLevelMixin, title: str = "", sentence: str = "", *, theme: str = "light",
    palette: str = "series", scale: float = 2.0, kind: str = "png",
) -> bytes:  # fmt: skip
    """The chart under its title and sentence, as a PNG or PDF on the card colour of `theme`."""
    import vl_convert

    spec = specification(chart)
    if spec.get("width") == "container":
        spec["width"] = 560
    _add_legend(spec)
    if title:
        lines = textwrap.wrap(sentence, _LINE)
        spec["title"] = {"text": title, "subtitle": lines, "frame": "bounds", "offset": 12}
    config = chart_config(theme, palette) | {"padding": 20}
    if kind == "pdf":
        return vl_convert.vegalite_to_pdf(json.dumps(spec), config=config)
    return vl_convert.vegalite_to_png(json.dumps(spec), config=config, scale=scale)


def series(spec: Mapping[str, Any]) -> tuple[str, list[str]]:
    """The field that the colours of a specification stand for and its values, in their order."""
    for layer in _layers(spec):
        colour = layer.get("encoding", {}).get("color", {})
        if colour.get("type") == "nominal" and colour.get("scale", {}).get("domain"):
            return colour["field"], colour["scale"]["domain"]
    return "", []


def _add_legend(spec: dict[str, Any]) -> None:
    """What the colours stand for; the page says so outside of its charts, in buttons."""
    field, names = series(spec)
    rows = (row for table in spec["datasets"].values() for row in table)
    seen = {row.get(field) for row in rows}
    values = [name for name in names if name in seen]
    if len(values) < 2:
        return
    legend = {"orient": "bottom", "title": None, "columns": 4, "labelLimit": 300, "values": values}
    for layer in _layers(spec):
        if "legend" in (colour := layer.get("encoding", {}).get("color", {})):
            colour["legend"] = legend
    spec.setdefault("resolve", {})["scale"] = {"color": "shared"}


def _layers(spec: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    for panel in spec.get("concat", [spec]):
        yield from panel.get("layer", [panel])


def specification(chart: alt.TopLevelMixin) -> dict[str, Any]:
    """The chart as a Vega-Lite specification without configuration, which the theme gives."""
    spec, tables = parts(chart)
    spec["datasets"] = {**spec.get("datasets", {}), **{k: _rows(t) for k, t in tables.items()}}
    return spec


def parts(chart: alt.TopLevelMixin) -> tuple[dict[str, Any], dict[str, pd.DataFrame]]:
    """The specification without the chart's rows, and these by the name that it has for them.

    Altair copies what a specification holds many times over, so rows of any number stay outside.

    Raises:
      ValueError: a number of the specification is not finite, which JSON cannot hold.
    """
    panels = chart.concat if isinstance(chart, alt.ConcatChart) else []
    owners = [owner for owner in (chart, *panels) if isinstance(owner.data, pd.DataFrame)]
    tables = {f"rows-{number}": owner.data for number, owner in enumerate(owners)}
    try:
        for owner, name in zip(owners, tables, strict=True):
            owner.data = alt.NamedData(name=name)
        spec = chart.to_dict(validate=False)
    finally:
        for owner, table in zip(owners, tables.values(), strict=True):
            owner.data = table
    spec.pop("config", None)
    json.dumps(spec, allow_nan=False)
    return spec, tables


def failure(name: str, error: Exception) -> str:
    """One line on a chart that could not be made, for its card; the terminal gets it, too."""
    reason = f"{type(error).__name__}: {error}"
    logging.warning("The chart %s", one_line(f"{name} could not be drawn: {reason}"))
    logging.debug("Its traceback:", exc_info=error)
    return f"This chart could not be drawn: {reason}."


def value_range(points: pd.DataFrame, share: bool) -> tuple[float, float]:
    """The y range: band and chance with a margin; shares span 10 points or more, within 0 to 1."""
    bounds = _finite(pd.concat([points.low, points.high, points.value, points.chance]))
    if bounds.empty:
        return 0.0, 1.0
    low, high = float(bounds.min()), float(bounds.max())
    span = max(high - low, 0.1 if share else 0.02 * abs(high), 1e-6)
    middle = (low + high) / 2
    low, high = middle - 0.56 * span, middle + 0.56 * span
    return (max(low, 0.0), min(high, 1.0)) if share else (low, high)


def _finite(values: pd.Series) -> pd.Series:
    return values[np.isfinite(values)]


def _nearest(name: str, fields: list[str]) -> alt.Parameter:
    """The point nearest to the pointer; named, so that the panels of a figure stay apart."""
    return alt.selection_point(
        name="nearest_" + re.sub(r"\W", "_", name), fields=fields, on="pointermove",
        nearest=True, clear="pointerout", empty=False,
    )  # fmt: skip


def _where(selection: alt.Parameter) -> alt.OpacityValue:
    """Seen where the selection is, and nowhere else."""
    return alt.OpacityValue(0, condition={"param": selection.name, "empty": False, "value": 1})


def _x(axis: Axis, field: str | None = None) -> alt.X:
    return alt.X(
        f"{field or axis.field}:Q",
        scale=alt.Scale(**axis.scale),
        axis=alt.Axis(**axis.axis, title=axis.title),
    )


def _colour(series: Sequence[str]) -> alt.Color:
    return alt.Color("series:N", scale=alt.Scale(domain=list(series)), legend=None)


def _clock_tooltips() -> list[alt.Tooltip]:
    return [
        alt.Tooltip("step:Q", format=",d"),
        alt.Tooltip("tokens:Q", format=".3~s"),
        alt.Tooltip("flops:Q", title="FLOPs", format=".2e"),
    ]


def _rows(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """The rows as plain JSON values: NaN becomes null, and floats keep ten digits."""
    return json.loads(frame.to_json(orient="records", double_precision=10))


def _describe(points: pd.DataFrame, metric: str) -> str:
    valid = points.dropna(subset="value")
    if valid.empty:
        return f"{points.task.iloc[0]}: no values."
    last = valid.iloc[-1]
    return (
        f"{last.task}, {metric_name(metric)}, {len(valid)} checkpoints, "
        f"final {with_error(last.value, last.stderr, metric)}."
    )
