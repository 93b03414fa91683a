"""The report as files for a paper or a slide: PNG or PDF figures, or CSV tables."""

from __future__ import annotations

import re
from collections.abc import Sequence

from etils import epath

from jaxllm.report import charts, page
from jaxllm.report.questions import Answer
from jaxllm.report.tables import Tables


def write(output: epath.Path, tables: Tables, found: Sequence[Answer], kind: str) -> epath.Path:
    """Writes a file per finding, and one of the trajectories, into the directory `output`.

    Args:
      output: Made where it does not exist.
      tables: The trajectories: `trajectories.png`, `trajectories.pdf` or `records.csv`.
      found: The findings; those without a chart, or for "csv" without a table, give no file.
      kind: "png", "pdf" or "csv".

    Returns:
      The directory.
    """
    if kind == "csv":
        page.write(output / "records.csv", tables.records.to_csv(index=False).encode())
    else:
        page.write(output / f"trajectories.{kind}", page.main_figure(tables, kind=kind))
    for answer in found:
        path = output / f"{re.sub('[^a-z0-9]+', '-', answer.title.lower()).strip('-')}.{kind}"
        if kind == "csv" and len(answer.table):
            page.write(path, answer.table.to_csv(index=False).encode())
        elif kind != "csv" and answer.chart is not None:
            page.write(path, charts.picture(answer.chart, kind=kind))
    return output
