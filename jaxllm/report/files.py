"""The files of a report: its pages, or PNG or PDF figures, or CSV tables."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Iterator, Sequence

import pandas as pd
from etils import epath

from jaxllm.io import atomic_write
from jaxllm.report import microscope, page
from jaxllm.report.charts import specs
from jaxllm.report.charts.trajectories import side_by_side
from jaxllm.report.items import TRAJECTORIES, ReportItem
from jaxllm.report.tables import Tables

_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def write_page(output: epath.Path, tables: Tables, items: Sequence[ReportItem]) -> epath.Path:
    """Write the page, with that of the tokens where they were scored; return its path."""
    token_page, content = output / page.TOKEN_PAGE, b""
    if tables.study.token_studies:
        try:
            content = microscope.render(tables.study.token_studies).encode()
        except Exception as error:  # which must not cost the report
            note = specs.failure(page.TOKEN_PAGE, error)
            study = dataclasses.replace(tables.study, token_studies=())
            tables = dataclasses.replace(tables, notes=(*tables.notes, note), study=study)
    if content:
        atomic_write(token_page, content)
    else:  # that of an earlier report would be taken for this one's
        token_page.unlink(missing_ok=True)
    atomic_write(index := output / "index.html", page.render(tables, items))
    return index


def write(output: epath.Path, tables: Tables, items: Sequence[ReportItem], kind: str) -> epath.Path:
    """Write a file for every figure ("png", "pdf") or table ("csv") of the report into `output`.

    The trajectories are `trajectories-<domain>.png` and, all, `trajectories.png`; or `records.csv`.
    """
    if kind == "csv":
        named = [("records", tables.study.records), ("metrics", tables.metrics)]
        for name, table in [*named, *((item.title, item.table) for item in items)]:
            if len(table):
                content = spreadsheet_safe(table.round({"tokens": 0})).to_csv(index=False).encode()
                atomic_write(output / f"{file_name(name)}.csv", content)
        return output
    tasks = [item for item in items if item.part == TRAJECTORIES and item.chart is not None]
    for item, content in pictures(tables, [*_panels("", tasks, 4), *figures(items)], kind):
        name = f"{item.part} {item.title}" if item.part == TRAJECTORIES else item.title
        atomic_write(output / f"{file_name(name)}.{kind}", content)
    return output


def figures(items: Sequence[ReportItem]) -> Iterator[ReportItem]:
    """All items with a chart, with the trajectories of each domain as one item."""
    charted = [item for item in items if item.chart is not None]
    yield from (item for item in charted if item.part != TRAJECTORIES)
    tasks = [item for item in charted if item.part == TRAJECTORIES]
    for domain in dict.fromkeys(item.domain for item in tasks):
        yield from _panels(domain, [item for item in tasks if item.domain == domain], 2)


def pictures(
    tables: Tables, items: Iterable[ReportItem], kind: str = "png", scale: float = 2.0
) -> Iterator[tuple[ReportItem, bytes]]:
    """Render the charts of `items`; failures are logged and left out."""
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
    return table.assign(**{name: table[name].map(safe) for name in texts}).rename(columns=safe)


def file_name(title: str) -> str:
    """File name of a title: "Sudden or gradual" -> "sudden-or-gradual"."""
    return re.sub("[^a-z0-9]+", "-", title.lower()).strip("-")


def _panels(title: str, tasks: Sequence[ReportItem], columns: int) -> Iterator[ReportItem]:
    """The charts of `tasks`, if any, as one item, up to `columns` wide."""
    if tasks:
        panels = [(item.title, item.chart) for item in tasks if item.chart is not None]
        columns = min(len(panels), columns)
        item = dataclasses.replace(tasks[0], title=title, sentence="", chart=None)
        yield item.draw(lambda: side_by_side(panels, columns))
