"""Charts against a clock: the trajectory of a task, the gains of all, a logged quantity.

Every chart holds its data and has an `Axis` as its x axis, which the page replaces when the reader
chooses another clock. Colours come from the theme; `series` are the names that they stand for.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any

import altair as alt
import numpy as np
import pandas as pd

from jaxllm.analysis.curves import is_share
from jaxllm.report.charts.axes import COUNT_LABEL, FLOPS_LABEL, Axis
from jaxllm.report.charts.specs import LABEL_LIMIT, Chart, label_width, layered, reference_line
from jaxllm.report.numbers import metric_name, with_error
from jaxllm.report.theme import DISTINCT

_CLOCKS = ["step", "tokens", "flops", "loss"]
_CLOCK_TOOLTIPS = [
    alt.Tooltip("step:Q", format=",d"),
    alt.Tooltip("tokens:Q", format=".3~s"),
    alt.Tooltip("flops:Q", title="FLOPs", format=".2e"),
]


def trajectory(points: pd.DataFrame, axis: Axis, series: Sequence[str]) -> Chart:
    """One task: value with its ±1.96 SE band against the clock, a guess dashed, onset ringed.

    `points` have `low`, `high` (the band), `left_chance` and `series`; without a value: a gap.
    """
    task, metric = str(points.task.iloc[0]), str(points.metric.iloc[0])
    share = is_share(metric)
    number = ".1%" if share else ".3f"
    guess = _finite(points.chance_score if share else points.chance)
    y_scale = alt.Scale(domain=_value_range(points, guess, share), nice=False, zero=False)
    y_axis = alt.Axis(format=".0%" if share else ".4~g", title=None)
    y = alt.Y("value:Q", scale=y_scale, axis=y_axis)
    base = _base(axis, series, "run", "task_version")
    many = points.run.nunique() > DISTINCT  # their bands would hide each other
    line = base.mark_line(strokeWidth=1.1 if many else 2, interpolate="linear", clip=True)
    dots = base.mark_circle(size=9 if many else 22, opacity=1)
    tooltip = [
        alt.Tooltip("value:Q", title=metric_name(metric), format=number),
        alt.Tooltip("low:Q", title="95% from", format=number),
        alt.Tooltip("high:Q", title="to", format=number),
        alt.Tooltip("n:Q", title="examples"),
    ]
    layers = [line.encode(y=y), dots.encode(y=y), _hover(base, y, task, "run", tooltip)]
    if not many:
        low = alt.Y("low:Q", scale=y_scale, axis=y_axis)
        band = base.mark_area(opacity=0.16, clip=True).encode(y=low, y2=alt.Y2("high:Q"))
        onset = base.mark_point(style="onset", size=110, filled=False)
        onset = onset.encode(y=y, color=alt.Undefined).transform_filter("datum.left_chance")
        layers = [band, *layers[:2], onset, *layers[2:]]
    if len(guess):
        layers.insert(0, reference_line("y", "chance", float(guess.iloc[-1]), y_axis))
    columns = ["run", "task", *_CLOCKS, "metric", "value", "stderr", "low", "high", "n", "chance",
               "left_chance", "series", "task_version"]  # fmt: skip
    valued = points.dropna(subset="value")
    description = f"{task}: no values."
    if len(valued):
        last = valued.iloc[-1]
        description = (
            f"{task}, {metric_name(metric)}, {len(valued)} checkpoints, "
            f"final {with_error(last.value, last.stderr, metric)}."
        )
    return layered(layers, points[columns], 150, description)


def gains(shares: pd.DataFrame, order: Sequence[str], axis: Axis) -> Chart:
    """Which capability grew when: a row per task, darker as more of its gain is made; a dot where
    chance was left. `shares` has the start of each cell on every clock (`step_from`, …) and
    `final_text`.
    """
    rows = alt.Axis(labelLimit=LABEL_LIMIT, domain=False, labelFontSize=12)
    spacing = alt.Scale(paddingInner=0.14)
    y = alt.Y("task:N", sort=list(order), title=None, axis=rows, scale=spacing)
    base = alt.Chart().encode(x=_x(axis), y=y)
    cells = base.mark_rect(cornerRadius=1).encode(
        x=_x(axis, f"{axis.field}_from"),
        x2=alt.X2(f"{axis.field}:Q"),
        color=alt.Color(
            "share:Q",
            scale=alt.Scale(domain=[0, 1]),
            title="share of its gain",
            legend=alt.Legend(format=".0%", tickCount=2),
        ),
        tooltip=[
            alt.Tooltip("task:N"),
            alt.Tooltip("domain:N"),
            *_CLOCK_TOOLTIPS,
            alt.Tooltip("share:Q", title="share of its gain", format=".0%"),
            alt.Tooltip("value:Q", format=".3f"),
            alt.Tooltip("state:N", title="state"),
        ],
    )
    dots = base.mark_circle(style="onset-tick", size=70, opacity=1, strokeWidth=1.5)
    dots = dots.transform_filter("datum.left_chance")
    final = base.mark_text(style="row-value", align="left", dx=7)
    final = final.encode(text=alt.Text("final_text:N")).transform_filter("datum.is_last")
    columns = ["run", "task", "domain", *_CLOCKS, "value", "stderr", "share", "state",
               "left_chance", "final_text", "is_last", *(f"{c}_from" for c in _CLOCKS)]  # fmt: skip
    tasks, width = shares.task.nunique(), label_width(shares.task) + 200
    description = f"Share of the gain above chance of {tasks} tasks against {axis.axis['title']}."
    return layered([cells, dots, final], shares[columns], max(26 * tasks, 60), description, width)


def curve(
    points: pd.DataFrame, axis: Axis, series: Sequence[str], name: str, height: int = 170
) -> Chart:
    """A logged quantity (`value`, by `series`) against the clock."""
    small = points.value.abs().max() < 0.01
    labels = alt.Axis(labelExpr=FLOPS_LABEL if small else COUNT_LABEL, title=None)
    y = alt.Y("value:Q", scale=alt.Scale(zero=False, nice=True), axis=labels)
    base = _base(axis, series, "run", "series")
    count = points.series.nunique()
    # One point alone is no line.
    dots: Any = alt.OverlayMarkDef(size=20) if len(points) < 20 * count else False
    line = base.mark_line(strokeWidth=1.6 if count < 3 else 1.2, clip=True, point=dots)
    tooltip = [alt.Tooltip("value:Q", title=name, format=".4~g")]
    layers = [line.encode(y=y), _hover(base, y, name, "series", tooltip)]
    shown = points[["run", "series", *_CLOCKS, "value"]]
    return layered(layers, shown, height, f"{name} against {axis.axis['title']}.")


def side_by_side(charts: Sequence[tuple[str, Chart]], columns: int) -> Chart:
    """Titled charts as one picture, `columns` wide."""
    panels = [
        chart.properties(title=alt.TitleParams(name, frame="group"), width=300, height=140)
        for name, chart in charts
    ]
    spacing = {"row": 76, "column": 56}
    picture = alt.concat(*panels, columns=columns, spacing=spacing, bounds="flush")
    rows = -(-len(panels) // columns)
    return picture.properties(usermeta={"least_width": 380 * columns, "height": 216 * rows})


def _base(axis: Axis, series: Sequence[str], *detail: str) -> alt.Chart:
    colour = alt.Color("series:N", scale=alt.Scale(domain=list(series)), legend=None)
    lines = [alt.Detail(f"{name}:N") for name in detail]
    return alt.Chart().encode(x=_x(axis), color=colour, detail=lines)


def _hover(
    base: alt.Chart, y: alt.Y, name: str, owner: str, tooltip: list[alt.Tooltip]
) -> alt.Chart:
    """The point nearest to the pointer, which alone is seen, with its tooltip.

    Its parameter is named after the chart, so that the panels of a picture stay apart.
    """
    nearest = alt.selection_point(
        name="nearest_" + re.sub(r"\W", "_", name), fields=[owner, "step"], on="pointermove",
        nearest=True, clear="pointerout", empty=False,
    )  # fmt: skip
    seen = {"param": nearest.name, "empty": False, "value": 1}
    dots = base.transform_filter("isValid(datum.value)").mark_circle(style="hover", size=85)
    return dots.encode(
        y=y,
        opacity=alt.OpacityValue(0, condition=seen),
        tooltip=[alt.Tooltip(f"{owner}:N"), *_CLOCK_TOOLTIPS, *tooltip],
    ).add_params(nearest)


def _x(axis: Axis, field: str = "") -> alt.X:
    scale, labels = alt.Scale(**axis.scale), alt.Axis(**axis.axis)
    return alt.X(f"{field or axis.field}:Q", scale=scale, axis=labels)


def _value_range(points: pd.DataFrame, guess: pd.Series, share: bool) -> list[float]:
    """The y range: band and guess with a margin; shares span 10 points or more, within 0 to 1."""
    bounds = _finite(pd.concat([points.low, points.high, points.value, guess]))
    if bounds.empty:
        return [0.0, 1.0]
    low, high = float(bounds.min()), float(bounds.max())
    half = 0.56 * max(high - low, 0.1 if share else 0.02 * abs(high), 1e-6)
    least, most = (0.0, 1.0) if share else (-math.inf, math.inf)
    return [max((low + high) / 2 - half, least), min((low + high) / 2 + half, most)]


def _finite(values: pd.Series) -> pd.Series:
    return values[np.isfinite(values)]
