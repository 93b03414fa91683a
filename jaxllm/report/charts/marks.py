"""Three forms for all findings: values with intervals, a matrix, and points along a law."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import altair as alt
import numpy as np
import pandas as pd

from jaxllm.report.charts.specs import Chart

_ROW_HEIGHT = 21
_COUNT = "replace(replace(format(datum.value, '~s'), 'G', 'B'), 'k', 'K')"


def dots(
    table: pd.DataFrame,
    y: str,
    x: str,
    title: str,
    *,
    low: str = "",
    high: str = "",
    series: str = "",
    order: Sequence[str] = (),
    number: str = ".3~f",
    log: bool = False,
    reference: float | None = None,
) -> Chart:
    """A row per `y` with its value `x`, the interval `low` to `high`, coloured by `series`.

    `order` is the order of the colours, `reference` where a line stands for no effect.
    """
    shown = table[_distinct(y, x, low, high, series)].dropna(subset=x)
    scale = alt.Scale(zero=False, nice=True)
    axis = alt.Axis(format=number, titleAnchor="end")
    if log:
        scale = alt.Scale(type="log", nice=False, padding=8)
        axis = alt.Axis(labelExpr=_COUNT, titleAnchor="end")
    rows = alt.Y(
        f"{y}:N",
        sort=_distinct(*shown[y]),
        title=None,
        axis=alt.Axis(labelLimit=190, domain=False, grid=True, ticks=False),
    )
    colour: Any = alt.Undefined
    if series:
        names = list(order) or _distinct(*shown[series])
        colour = alt.Color(f"{series}:N", scale=alt.Scale(domain=names), legend=None)
    base = alt.Chart().encode(y=rows, color=colour)
    named = [alt.Tooltip(f"{name}:N") for name in (y, series) if name]
    points = base.mark_circle(size=60, opacity=0.9).encode(
        x=alt.X(f"{x}:Q", scale=scale, axis=axis, title=title),
        tooltip=[*named, *_numbers(*filter(None, (x, low, high)))],
    )
    layers = [points]
    if low:
        span = alt.X(f"{low}:Q", scale=scale, axis=axis)
        rule = base.mark_rule(style="interval").encode(x=span, x2=alt.X2(f"{high}:Q"))
        layers.insert(0, rule)
    if reference is not None:
        line = alt.Chart(alt.InlineData(values=[{"reference": reference}]))
        layers.insert(0, line.mark_rule(style="chance").encode(x=alt.X("reference:Q", axis=axis)))
    return _by_rows(layers, shown, y, title)


def matrix(
    table: pd.DataFrame,
    x: str,
    y: str,
    value: str,
    title: str,
    *,
    text: str = "",
    domain: tuple[float, float] | None = None,
    order: Sequence[str] = (),
) -> Chart:
    """A cell per `x` and `y`, darker for larger `value` over `domain`; or blank, for no value.

    `order` is that of both axes where they stand for the same; else that of the rows.
    """
    shown = table[_distinct(x, y, value, text)]
    finite = shown[value][np.isfinite(shown[value])]
    if domain is None:  # where all cells are blank any will do
        domain = (float(finite.min()), float(finite.max())) if len(finite) else (0.0, 1.0)
    low, high = domain
    columns = alt.Axis(labelLimit=120, domain=False, labelAngle=_angle(shown[x]))
    rows = alt.Axis(labelLimit=150, domain=False)
    base = alt.Chart().encode(
        x=alt.X(f"{x}:N", sort=list(order) or _distinct(*shown[x]), title=None, axis=columns),
        y=alt.Y(f"{y}:N", sort=list(order) or _distinct(*shown[y]), title=None, axis=rows),
    )
    scale = alt.Scale(domain=[low, high], clamp=True)
    told = alt.Tooltip(f"{text or value}:{'N' if text else 'Q'}", title=title)
    cells = base.transform_filter(f"isValid(datum['{value}'])").mark_rect(cornerRadius=1)
    layers = [
        cells.encode(
            color=alt.Color(f"{value}:Q", scale=scale, legend=None),
            tooltip=[alt.Tooltip(f"{y}:N"), alt.Tooltip(f"{x}:N"), told],
        )
    ]
    if text:
        half = low + 0.55 * (high - low)
        for style, test in (("cell-text", "<"), ("cell-text-on-dark", ">=")):
            words = base.transform_filter(f"datum['{value}'] {test} {half}").mark_text(style=style)
            layers.append(words.encode(text=alt.Text(f"{text}:N")))
    return _by_rows(layers, shown, y, title)


def law(table: pd.DataFrame, x: str, y: str, titles: tuple[str, str]) -> Chart:
    """Points `y` over `x` and the law `fitted` through them, both axes logarithmic."""
    shown = table[_distinct(x, y, "fitted")].sort_values(x)
    scale = alt.Scale(type="log", nice=False, padding=8)
    base = alt.Chart().encode(
        x=alt.X(f"{x}:Q", scale=scale, title=titles[0], axis=_amounts(shown[x]))
    )

    def over(field: str) -> alt.Y:
        return alt.Y(f"{field}:Q", scale=scale, title=titles[1], axis=_amounts(shown[y]))

    line = base.mark_line(style="chance").encode(y=over("fitted"))
    points = base.mark_circle(size=45, opacity=0.75)
    points = points.encode(y=over(y), tooltip=_numbers(*_distinct(x, y, "fitted")))
    return alt.layer(
        line,
        points,
        data=shown,
        width="container",
        height=190,
        description=f"{titles[1]} against {titles[0]}.",
    )


def _by_rows(layers: Sequence[Any], shown: pd.DataFrame, y: str, title: str) -> Chart:
    height = max(_ROW_HEIGHT * shown[y].nunique(), 60)
    return alt.layer(*layers, data=shown, width="container", height=height, description=title)


def _distinct(*names: str) -> list[str]:
    return [name for name in dict.fromkeys(names) if name]


def _numbers(*fields: str) -> list[alt.Tooltip]:
    return [alt.Tooltip(f"{field}:Q", format=".4~g") for field in fields]


def _amounts(values: pd.Series) -> alt.Axis:
    """An axis that counts in K, M, B, and large FLOPs as powers of ten."""
    if values.max() > 1e15:
        return alt.Axis(labelExpr="replace(format(datum.value, '~e'), 'e+', 'e')")
    if values.max() < 1000:
        return alt.Axis(format="~g")
    return alt.Axis(labelExpr=_COUNT)


def _angle(names: pd.Series) -> int:
    """Long or many names stand at an angle, so that none is left out."""
    words = names.astype(str).drop_duplicates()
    return -50 if len(words) > 6 or words.str.len().max() > 14 else 0
