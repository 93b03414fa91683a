"""A chart as Vega-Lite JSON and data for the page, and as a PNG or PDF."""

from __future__ import annotations

import itertools
import json
import logging
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import altair as alt
import pandas as pd

from jaxllm.errors import one_line
from jaxllm.report.theme import chart_config

Chart = alt.LayerChart | alt.FacetChart | alt.ConcatChart

LABEL_LIMIT = 320  # pixels; longer ones are cut
_SUBTITLE_WIDTH = 105  # letters
_LEGEND = {"orient": "bottom", "title": None, "columns": 4, "labelLimit": 300, "symbolOpacity": 1}


def layered(
    layers: Sequence[Any], data: pd.DataFrame, height: int, description: str, width: int = 0
) -> Chart:
    """Chart of layers over the same data, as wide as its place on the page.

    In a place below `width`, where labels would overlap, the page scrolls.
    """
    chart = alt.layer(*layers, data=data, width="container", height=height, description=description)
    return chart.properties(usermeta={"least_width": width}) if width else chart


def label_width(names: Iterable[Any]) -> int:
    """Pixels that the labels of an axis take."""
    return min(round(6.2 * max((len(str(name)) for name in names), default=0)), LABEL_LIMIT)


def reference_line(channel: str, name: str, value: float, axis: alt.Axis) -> alt.Chart:
    """Dashed line at a `value` of the `channel`, "x" or "y"."""
    encoding = {"x": alt.X, "y": alt.Y}[channel](f"{name}:Q", axis=axis)
    rule = alt.Chart(alt.InlineData(values=[{name: value}])).mark_rule(style="chance")
    return rule.encode(**{channel: encoding})


def split(chart: alt.TopLevelMixin) -> tuple[dict[str, Any], dict[str, pd.DataFrame]]:
    """The specification without the chart's rows, which Altair copies many times over, and these by
    the name that it has for them; ValueError for a number that is not finite, which JSON cannot
    hold.
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


def legend(
    spec: Mapping[str, Any], tables: Mapping[str, pd.DataFrame]
) -> tuple[str, list[tuple[str, int]]]:
    """The field that the colours stand for and, of several values, those of `tables`, numbered."""
    for colour in _colours(spec):
        if colour.get("type") == "nominal" and (names := colour.get("scale", {}).get("domain")):
            field = colour["field"]
            columns = [table[field] for table in tables.values() if field in table]
            seen = set(itertools.chain.from_iterable(columns))
            labels = [(name, number) for number, name in enumerate(names) if name in seen]
            return field, labels if len(labels) > 1 else []
    return "", []


def picture(
    chart: alt.TopLevelMixin,
    title: str,
    sentence: str = "",
    *,
    palette: str = "series",
    scale: float = 2.0,
    kind: str = "png",
) -> bytes:
    """The chart under its title and sentence, as a PNG or PDF in the light theme."""
    import vl_convert

    spec, tables = split(chart)
    # NaN becomes null, and floats keep ten digits.
    rows = {
        name: json.loads(table.to_json(orient="records", double_precision=10))
        for name, table in tables.items()
    }
    spec["datasets"] = {**spec.get("datasets", {}), **rows}
    if spec.get("width") == "container":
        spec["width"] = max(560, spec.get("usermeta", {}).get("least_width", 0))
    _, labels = legend(spec, tables)
    if labels:  # on the page, buttons outside of the charts are the legend
        names = {"values": [name for name, _ in labels]}
        for colour in _colours(spec):
            if "legend" in colour:
                colour["legend"] = {**_LEGEND, **names}
        spec.setdefault("resolve", {})["scale"] = {"color": "shared"}
    if title:
        lines = textwrap.wrap(sentence, _SUBTITLE_WIDTH)
        spec["title"] = {"text": title, "subtitle": lines, "frame": "bounds", "offset": 12}
    config = chart_config("light", palette) | {"padding": 20}
    if kind == "pdf":
        return vl_convert.vegalite_to_pdf(json.dumps(spec), config=config)
    return vl_convert.vegalite_to_png(json.dumps(spec), config=config, scale=scale)


def failure(title: str, error: Exception) -> str:
    """One line on a chart that could not be made, for its card; the terminal gets it, too."""
    reason = f"{type(error).__name__}: {error}"
    logging.warning("The chart %s", one_line(f"{title} could not be drawn: {reason}"))
    logging.debug("Its traceback:", exc_info=error)
    return f"This chart could not be drawn: {reason}."


def _colours(spec: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    for panel in spec.get("concat", [spec]):
        for layer in panel.get("layer", [panel]):
            yield layer.get("encoding", {}).get("color", {})
