"""Export of the report as PNG or PDF figures, or CSV tables."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Sequence

import pandas as pd
from etils import epath

from jaxllm.report import page
from jaxllm.report.charts import specs
from jaxllm.report.charts.trajectories import side_by_side
from jaxllm.report.items import TRAJECTORIES, ReportItem
from jaxllm.report.tables import Tables

_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def write(output: epath.Path, tables: Tables, items: Sequence[ReportItem], kind: str) -> epath.Path:
    """Write a file for every figure or table of the report into the directory `output`.

    Args:
      output: created where it does not exist.
      tables: the trajectories, written as `trajectories-<domain>.png` and, with all tasks,
        `trajectories.png`, or as `records.csv` and `metrics.csv`.
      items: items of the report; those without a chart, or for "csv" a table, are left out.
      kind: "png", "pdf" or "csv".

    Returns:
      `output`.
    """
    if kind == "csv":
        given = [("records", tables.records), ("metrics", tables.metrics)]
        for name, table in [*given, *((item.title, item.table) for item in items)]:
            if len(table):
                content = spreadsheet_safe(table).to_csv(index=False).encode()
                page.write(output / f"{file_name(name)}.csv", content)
        return output
    for item, content in pictures(tables, [*_everything(items), *all_figures(items)], kind):
        name = f"{item.part} {item.title}" if item.part == TRAJECTORIES else item.title
        page.write(output / f"{file_name(name)}.{kind}", content)
    return output


def all_figures(items: Sequence[ReportItem]) -> Iterator[ReportItem]:
    """All items with a chart, with the trajectories of each domain as one item."""
    yield from (item for item in items if item.chart is not None and item.part != TRAJECTORIES)
    yield from domains(items)


def domains(items: Sequence[ReportItem]) -> Iterator[ReportItem]:
    """Trajectories of each domain, as one item with a panel per task."""
    tasks = [item for item in items if item.part == TRAJECTORIES]
    for domain in dict.fromkeys(item.domain for item in tasks):
        yield _panels(domain, [item for item in tasks if item.domain == domain])


def pictures(
    tables: Tables, items: Sequence[ReportItem], kind: str = "png", scale: float = 2.0
) -> Iterator[tuple[ReportItem, bytes]]:
    """Render each item; failures are logged and left out."""
    for item in items:
        if item.chart is None:
            continue
        palette = tables.palette if item.part else "series"
        try:
            content = specs.picture(
                item.chart, item.title, item.sentence, palette=palette, scale=scale, kind=kind
            )
        except Exception as error:
            specs.failure(item.title, error)
        else:
            yield item, content


def spreadsheet_safe(table: pd.DataFrame) -> pd.DataFrame:
    """Prefix text cells that a spreadsheet would run as a formula with an apostrophe."""

    def safe(cell: object) -> object:
        return f"'{cell}" if isinstance(cell, str) and cell.startswith(_FORMULA) else cell

    texts = [name for name in table if not pd.api.types.is_numeric_dtype(table[name])]
    changed = {name: table[name].map(safe) for name in texts}
    return table.assign(**changed).rename(columns=safe)


def file_name(title: str) -> str:
    """File name of a title: "Change points" -> "change-points"."""
    return re.sub("[^a-z0-9]+", "-", title.lower()).strip("-")


def _everything(items: Sequence[ReportItem]) -> Iterator[ReportItem]:
    tasks = [item for item in items if item.part == TRAJECTORIES]
    if tasks:
        yield _panels("", tasks)


def _panels(title: str, tasks: Sequence[ReportItem]) -> ReportItem:
    panels = [(item.title, item.chart) for item in tasks if item.chart is not None]
    columns = 2 if len(panels) == 4 else min(len(panels), 4)
    item = dataclasses.replace(tasks[0], title=title, sentence="", chart=None)
    return item.draw(lambda: side_by_side(panels, columns)) if panels else item
