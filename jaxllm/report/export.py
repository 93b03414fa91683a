"""The report as files for a paper or a slide: PNG or PDF figures, or CSV tables."""

from __future__ import annotations

import re
from collections.abc import Sequence

import pandas as pd
from etils import epath

from jaxllm.report import figures, page
from jaxllm.report.questions import Answer
from jaxllm.report.tables import Tables

_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def write(output: epath.Path, tables: Tables, found: Sequence[Answer], kind: str) -> epath.Path:
    """Writes a file per figure or table of the report into the directory `output`.

    Args:
      output: Made where it does not exist.
      tables: The trajectories: `trajectories-<domain>.png`, all tasks in `trajectories.png`, or as
        tables `records.csv` and `metrics.csv`.
      found: The findings; those without a chart, or for "csv" without a table, give no file.
      kind: "png", "pdf" or "csv".

    Returns:
      The directory.
    """
    if kind == "csv":
        given = [("records", tables.records), ("metrics", tables.metrics)]
        for name, table in [*given, *((answer.title, answer.table) for answer in found)]:
            if len(table):
                content = spreadsheet_safe(table).to_csv(index=False).encode()
                page.write(output / f"{file_name(name)}.csv", content)
        return output
    wanted = list(figures.every(tables, found))
    if not tables.findings.empty:
        everything = figures.trajectories("", tables, list(tables.findings.task.unique()))
        wanted.insert(0, ("trajectories", everything))
    for group, figure, content in figures.pictures(tables, wanted, kind):
        name = f"{group} {figure.name}" if group == "trajectories" else figure.name
        page.write(output / f"{file_name(name)}.{kind}", content)
    return output


def spreadsheet_safe(table: pd.DataFrame) -> pd.DataFrame:
    """`table` with an apostrophe before each text that a spreadsheet would run as a formula."""

    def safe(cell: object) -> object:
        return f"'{cell}" if isinstance(cell, str) and cell.startswith(_FORMULA) else cell

    texts = [name for name in table if not pd.api.types.is_numeric_dtype(table[name])]
    changed = {name: table[name].map(safe) for name in texts}
    return table.assign(**changed).rename(columns=safe)


def file_name(title: str) -> str:
    """ "Telling tasks" -> "telling-tasks"."""
    return re.sub("[^a-z0-9]+", "-", title.lower()).strip("-")
