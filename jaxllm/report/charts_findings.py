"""Three charts for all findings: values with intervals, a matrix, and points along a law."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import altair as alt
import numpy as np
import pandas as pd

from jaxllm.report.charts import Chart

_ROW = 21


def dots(
    table: pd.DataFrame, y: str, x: str, title: str, *, low: str = "", high: str = "",
    series: str = "", order: Sequence[str] = (), number: str = ".3~f", log: bool = False,
    reference: float | None = None,
) -> Chart:  # fmt: skip
    """A row per `y` with its value `x`, the interval `low` to `high`, coloured by `series`.

    `order` is the order of the colours, `reference` where a line stands for no effect.
    """
    columns = [name for name in dict.fromkeys((y, x, low, high, series)) if name]
    shown = table[columns].dropna(subset=x)
    scale = (
        alt.Scale(type="log", nice=False, padding=8) if log else alt.Scale(zero=False, nice=True)
    )
    label = "replace(replace(format(datum.value, '~s'), 'G', 'B'), 'k', 'K')"
    axis = alt.Axis(format="~s" if number == "d" else number, titleAnchor="end")
    if log:
        axis = alt.Axis(labelExpr=label, titleAnchor="end")
    rows = alt.Y(
        f"{y}:N", sort=list(dict.fromkeys(shown[y])), title=None,
        axis=alt.Axis(labelLimit=190, domain=False, grid=True, ticks=False),
    )  # fmt: skip
    colour: Any = alt.Undefined
    if series:
        names = list(order) or list(dict.fromkeys(shown[series]))
        colour = alt.Color(f"{series}:N", scale=alt.Scale(domain=names), legend=None)
    base = alt.Chart().encode(y=rows, color=colour)
    value = alt.X(f"{x}:Q", scale=scale, axis=axis, title=title)
    tooltip = [alt.Tooltip(f"{name}:Q", format=".4~g") for name in (x, low, high) if name]
    named = [alt.Tooltip(f"{name}:N") for name in (y, series) if name]
    points = base.mark_circle(size=60, opacity=0.9).encode(x=value, tooltip=[*named, *tooltip])
    layers = [points]
    if low:
        spans = base.mark_rule(style="interval")
        layers.insert(
            0, spans.encode(x=alt.X(f"{low}:Q", scale=scale, axis=axis), x2=alt.X2(f"{high}:Q"))
        )
    if reference is not None:
        line = alt.Chart(alt.InlineData(values=[{"reference": reference}]))
        layers.insert(0, line.mark_rule(style="chance").encode(x=alt.X("reference:Q", axis=axis)))
    return alt.layer(
        *layers,
        data=shown,
        width="container",
        height=max(_ROW * shown[y].nunique(), 60),
        description=title,
    )


def matrix(
    table: pd.DataFrame, x: str, y: str, value: str, title: str, *, text: str = "",
    domain: tuple[float, float] | None = None, order: Sequence[str] = (),
) -> Chart:  # fmt: skip
    """A cell per `x` and `y`, darker for larger `value` over `domain`; or blank, for no value.

    `order` is that of both axes where they stand for the same; else that of the rows.
    """
    columns = [name for name in dict.fromkeys((x, y, value, text)) if name]
    shown = table[columns]
    finite = shown[value][np.isfinite(shown[value])]
    if domain is None:  # where all cells are blank any will do
        domain = (float(finite.min()), float(finite.max())) if len(finite) else (0.0, 1.0)
    low, high = domain
    base = alt.Chart().encode(
        x=alt.X(f"{x}:N", sort=list(order or dict.fromkeys(shown[x])), title=None,
                axis=alt.Axis(labelLimit=120, domain=False, labelAngle=_angle(shown[x]))),
        y=alt.Y(f"{y}:N", sort=list(order or dict.fromkeys(shown[y])), title=None,
                axis=alt.Axis(labelLimit=150, domain=False)),
    )  # fmt: skip
    cells = (
        base.transform_filter(f"isValid(datum['{value}'])")
        .mark_rect(cornerRadius=1)
        .encode(
            color=alt.Color(
                f"{value}:Q", scale=alt.Scale(domain=[low, high], clamp=True), legend=None
            ),
            tooltip=[alt.Tooltip(f"{y}:N"), alt.Tooltip(f"{x}:N"),
                     alt.Tooltip(f"{text or value}:{'N' if text else 'Q'}", title=title)],
        )
    )  # fmt: skip
    layers = [cells]
    if text:
        half = low + 0.55 * (high - low)
        for style, test in (("cell-text", "<"), ("cell-text-on-dark", ">=")):
            words = base.transform_filter(f"datum['{value}'] {test} {half}").mark_text(style=style)
            layers.append(words.encode(text=alt.Text(f"{text}:N")))
    return alt.layer(
        *layers,
        data=shown,
        width="container",
        height=max(_ROW * shown[y].nunique(), 60),
        description=title,
    )


def law(table: pd.DataFrame, x: str, y: str, fitted: str, titles: tuple[str, str]) -> Chart:
    """Points `y` over `x` and the law `fitted` through them, both axes logarithmic."""
    shown = table[list(dict.fromkeys((x, y, fitted)))].sort_values(x)
    scale = alt.Scale(type="log", nice=False, padding=8)
    base = alt.Chart().encode(
        x=alt.X(f"{x}:Q", scale=scale, title=titles[0], axis=_amounts(shown[x]))
    )
    y_axis = _amounts(shown[y])
    points = base.mark_circle(size=45, opacity=0.75).encode(
        y=alt.Y(f"{y}:Q", scale=scale, title=titles[1], axis=y_axis),
        tooltip=[alt.Tooltip(f"{name}:Q", format=".4~g") for name in (x, y, fitted)],
    )
    line = base.mark_line(style="chance").encode(
        y=alt.Y(f"{fitted}:Q", scale=scale, title=titles[1], axis=y_axis)
    )
    return alt.layer(
        line,
        points,
        data=shown,
        width="container",
        height=190,
        description=f"{titles[1]} against {titles[0]}.",
    )


def _amounts(values: pd.Series) -> alt.Axis:
    """An axis that counts in K, M, B, and large FLOPs as powers of ten."""
    if values.max() > 1e15:
        return alt.Axis(labelExpr="replace(format(datum.value, '~e'), 'e+', 'e')")
    if values.max() < 1000:
        return alt.Axis(format="~g")
    return alt.Axis(labelExpr="replace(replace(format(datum.value, '~s'), 'G', 'B'), 'k', 'K')")


def _angle(names: pd.Series) -> int:
    """Long or many names stand at an angle, so that none is left out."""
    words = names.astype(str).drop_duplicates()
    return -50 if len(words) > 6 or words.str.len().max() > 14 else 0
