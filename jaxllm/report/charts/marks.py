"""Three forms for all findings: values with intervals, a matrix, and points along a law."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import altair as alt
import numpy as np
import pandas as pd

from jaxllm.report.charts.axes import COUNT_LABEL, FLOPS_LABEL
from jaxllm.report.charts.specs import LABEL_LIMIT, Chart, label_width, layered, reference_line
from jaxllm.report.theme import DISTINCT

_ROW_HEIGHT = 21


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
    apart: bool = False,
) -> Chart | None:
    """A row per `y` with its value `x`, the interval `low` to `high`, coloured by `series` in an
    `order`; None without values. `reference` is the line of no effect; `apart` puts each series of
    a row on a line of its own.
    """
    shown = table[_distinct(y, x, low, high, series)].dropna(subset=x)
    if shown.empty:
        return None
    scale = alt.Scale(zero=False, nice=True)
    axis = alt.Axis(format=number, titleAnchor="end")
    if log:
        scale = alt.Scale(type="log", nice=False, padding=8)
        axis = alt.Axis(labelExpr=COUNT_LABEL, titleAnchor="end")
    rows = alt.Axis(labelLimit=LABEL_LIMIT, domain=False, grid=True, ticks=False)
    base = alt.Chart().encode(y=alt.Y(f"{y}:N", sort=_distinct(*shown[y]), title=None, axis=rows))
    if series:
        names = alt.Scale(domain=list(order) or _distinct(*shown[series]))
        base = base.encode(color=alt.Color(f"{series}:N", scale=names, legend=None))
        if apart:
            base = base.encode(yOffset=alt.YOffset(f"{series}:N", sort=names.domain))
    points = base.mark_circle(size=60, opacity=0.9).encode(
        x=alt.X(f"{x}:Q", scale=scale, axis=axis, title=title),
        tooltip=[*_tooltips(":N", y, series), *_tooltips(":Q", x, low, high)],
    )
    layers: list[Any] = [points]
    if low:
        span = alt.X(f"{low}:Q", scale=scale, axis=axis)
        rule = base.mark_rule(style="interval").encode(x=span, x2=alt.X2(f"{high}:Q"))
        layers.insert(0, rule)
    if reference is not None:
        layers.insert(0, reference_line("x", "reference", reference, axis))
    height = _height(shown[y]) * (1 + 0.4 * (shown[series].nunique() - 1) if apart else 1)
    return layered(
        layers, shown, round(height), title, max(label_width(shown[y]) + 190, 6 * len(title))
    )


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
    diverging: bool = False,
    legend: str = "format(datum.value, '.2~g')",
) -> Chart | None:
    """A cell per `x` and `y`, darker for larger `value` over `domain`; or blank, for no value.

    `order` is that of both axes where they stand for the same; else that of the rows. `diverging`
    colours tell the two sides of 0 apart, blue the lower. `legend` is the Vega expression of its
    labels.
    """
    shown = table[_distinct(x, y, value, text)]
    if shown.empty:
        return None
    finite = shown[value][np.isfinite(shown[value])]
    if domain is None:  # where all cells are blank any will do
        domain = (float(finite.min()), float(finite.max())) if len(finite) else (0.0, 1.0)
    if diverging:
        most = max(map(abs, domain)) or 1.0
        domain = (-most, most)
    # Long or many names stand upright, so that none is left out.
    names = _distinct(*shown[x])
    upright = len(names) * label_width(names) > 330
    widest = max(10 if upright else label_width(names), label_width(shown[text] if text else ()))
    columns = alt.Axis(
        labelLimit=LABEL_LIMIT, domain=False, labelAngle=-90 if upright else 0, labelOverlap=False
    )
    rows = alt.Axis(labelLimit=LABEL_LIMIT, domain=False)
    base = alt.Chart().encode(
        x=alt.X(f"{x}:N", sort=list(order) or _distinct(*shown[x]), title=None, axis=columns),
        y=alt.Y(f"{y}:N", sort=list(order) or _distinct(*shown[y]), title=None, axis=rows),
    )
    described = alt.Tooltip(f"{text or value}:{'N' if text else 'Q'}", title=title)
    cells = base.transform_filter(f"isValid(datum['{value}'])").mark_rect(cornerRadius=1)
    scale = alt.Scale(domain=list(domain), clamp=True)
    key = alt.Legend(labelExpr=legend, tickCount=3)
    if diverging:
        ends = [domain[0], 0, domain[1]]
        scale = alt.Scale(domain=ends, range="diverging", interpolate="rgb", clamp=True)
        key = alt.Legend(labelExpr=legend, values=ends)
    layers = [
        cells.encode(
            color=alt.Color(f"{value}:Q", scale=scale, title=title, legend=key),
            tooltip=[*_tooltips(":N", y, x), described],
        )
    ]
    dark = domain[0] + 0.55 * (domain[1] - domain[0])
    shade = f"datum['{value}']"
    if diverging:
        shade, dark = f"abs({shade})", 0.6 * domain[1]
    for style, test in (("cell-text", "<"), ("cell-text-on-dark", ">=")) if text else ():
        label = base.transform_filter(f"{shade} {test} {dark}").mark_text(style=style)
        layers.append(label.encode(text=alt.Text(f"{text}:N")))
    width = label_width(shown[y]) + max((widest + 4) * len(names), 6 * len(title))
    return layered(layers, shown, _height(shown[y]), title, width)


def law(
    table: pd.DataFrame, x: str, y: str, titles: tuple[str, str], series: str = "", log: bool = True
) -> Chart:
    """Points `y` over `x` and the line `fitted` through them, both axes logarithmic if `log`.

    Points are coloured by `series`, if there are few of them.
    """
    shown = table[_distinct(x, y, "fitted", series, "run" if series else "")].sort_values(x)
    kind: Any = {"type": "log"} if log else {"zero": False}
    scale = alt.Scale(**kind, nice=False, padding=8)

    def over(field: str) -> alt.Y:
        return alt.Y(f"{field}:Q", scale=scale, title=titles[1], axis=_amounts(shown[y]))

    x_axis = alt.X(f"{x}:Q", scale=scale, title=titles[0], axis=_amounts(shown[x]))
    base = alt.Chart().encode(x=x_axis)
    line = base.mark_line(style="chance").encode(y=over("fitted"))
    points = base.mark_circle(size=45, opacity=0.75)
    about = _tooltips(":N", "run", series) if series else []
    points = points.encode(y=over(y), tooltip=[*about, *_tooltips(":Q", x, y, "fitted")])
    if series and len(names := _distinct(*shown[series])) <= DISTINCT:
        colours = alt.Scale(domain=names)
        points = points.encode(color=alt.Color(f"{series}:N", scale=colours, legend=None))
    return layered([line, points], shown, 190, f"{titles[1]} against {titles[0]}.")


def lines(
    table: pd.DataFrame, x: str, y: str, titles: tuple[str, str], falling: Any = (), dash: str = ""
) -> Chart:
    """A line per run of `y` over `x`, coloured by its `size`, of at most `DISTINCT` sizes.

    x and perplexities are logarithmic, the axes of `falling` go down, lines differ by `dash`. Dots
    are of `y`, lines of the column `smoothed` if there is one; a dashed vertical where `begins` is.
    """
    sizes = _distinct(*table["size"])
    chosen = np.unique(np.linspace(0, len(sizes) - 1, DISTINCT).round().astype(int))
    colours = alt.Scale(domain=[sizes[number] for number in chosen])

    def place(name: str, title: str) -> dict[str, Any]:
        kind: Any = "log" if name == x or "perplexity" in name else "linear"
        zero = alt.Undefined if kind == "log" else False
        scale = alt.Scale(type=kind, zero=zero, nice=False, padding=8, reverse=name in falling)
        return {"scale": scale, "title": title, "axis": _amounts(table[name])}

    base = alt.Chart().encode(
        x=alt.X(f"{x}:Q", **place(x, titles[0])),
        color=alt.Color("size:N", scale=colours, legend=None),
        detail=alt.Detail("run:N"),
        tooltip=[*_tooltips(":N", "run", dash), *_tooltips(":Q", x, y)],
    )
    dashes = alt.StrokeDash(f"{dash}:N", legend=None) if dash else alt.Undefined
    value = alt.Y(f"{y}:Q", **place(y, titles[1]))
    level = alt.Y(f"{'smoothed' if 'smoothed' in table else y}:Q", **place(y, titles[1]))
    line = base.mark_line(strokeWidth=1.4).encode(y=level, strokeDash=dashes)
    layers = [line, base.mark_circle(size=18).encode(y=value)]
    if "begins" in table:
        layers.insert(0, base.transform_filter("datum.begins").mark_rule(style="chance"))
    columns = table.columns.intersection([x, y, "smoothed", "begins", "size", "run", dash])
    shown = table.loc[table["size"].isin(colours.domain), columns]
    return layered(layers, shown, 230, f"{titles[1]} against {titles[0]}.")


def bands(
    table: pd.DataFrame, x: str, y: str, series: str, titles: tuple[str, str], order: Sequence[str]
) -> Chart:
    """A line per `series`, with its interval `low` to `high`; a value alone is a dot."""
    shown = table[_distinct(x, y, series, "run", "low", "high")]
    alone = shown[_distinct(series, "run")].value_counts()[lambda n: n == 1].reset_index()[series]
    place = f"indexof({json.dumps([*alone])}, datum['{series}'])"
    scale = alt.Scale(zero=False, nice=True)
    axis = alt.Axis(format=".3~g")
    base = alt.Chart().encode(
        x=alt.X(f"{x}:Q", title=titles[0], scale=alt.Scale(nice=False), axis=_amounts(shown[x])),
        color=alt.Color(f"{series}:N", scale=alt.Scale(domain=list(order)), legend=None),
        detail=alt.Detail("run:N"),
    )
    low = alt.Y("low:Q", scale=scale, axis=axis, title=titles[1])
    value = alt.Y(f"{y}:Q", scale=scale, axis=axis, title=titles[1])
    tooltip = [*_tooltips(":N", "run", series), *_tooltips(":Q", x, y, "low", "high")]
    lines, dots = (base.transform_filter(f"{place} {of} 0") for of in ("<", ">="))
    layers = [
        lines.mark_line(strokeWidth=1.6).encode(y=value, tooltip=tooltip),
        lines.mark_area(opacity=0.16).encode(y=low, y2=alt.Y2("high:Q")),
    ]
    if len(alone):
        layers += [
            dots.mark_rule(strokeWidth=2, opacity=0.55).encode(y=low, y2=alt.Y2("high:Q")),
            dots.mark_circle(size=60, opacity=0.9).encode(y=value, tooltip=tooltip),
        ]
    return layered(layers, shown, 190, f"{titles[1]} against {titles[0]}.")


def _height(rows: pd.Series) -> int:
    return max(_ROW_HEIGHT * rows.nunique(), 60)


def _distinct(*names: str) -> list[str]:
    return [name for name in dict.fromkeys(names) if name]


def _tooltips(kind: str, *fields: str) -> list[alt.Tooltip]:
    number: dict[str, Any] = {"format": ".4~g"} if kind == ":Q" else {}
    return [alt.Tooltip(f"{field}{kind}", **number) for field in _distinct(*fields)]


def _amounts(values: pd.Series) -> alt.Axis:
    """An axis that counts in K, M, B, and FLOPs as powers of ten."""
    if values.max() < 1000:
        return alt.Axis(format=".6~g")
    return alt.Axis(labelExpr=FLOPS_LABEL if values.name == "flops" else COUNT_LABEL)
