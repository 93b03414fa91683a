"""The capability table for the terminal: tasks by domain against a selection of checkpoints."""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np
import pandas as pd

from jaxllm.analysis.curves import is_share
from jaxllm.analysis.onsets import AT_CHANCE
from jaxllm.errors import printable
from jaxllm.report import numbers
from jaxllm.report.tables import Tables, gather
from jaxllm.run.run import Run

MARK = "*"
_CELL = 8


def of_run(model_dir: str | os.PathLike[str], width: int = 100) -> str:
    """The capability table of one run directory; see `capability_table`."""
    tables = gather([Run.open(model_dir)])
    return capability_table(tables, tables.overviews[0].run, width)


def capability_table(tables: Tables, run: str, width: int = 100) -> str:
    """One run's values over its checkpoints, at most `width` columns wide.

    A value is marked where it is more than two standard errors above chance. Checkpoints that do
    not fit are left out evenly, never the first or the last; the last line says so.
    """
    points = tables.points[tables.points.run == run]
    if points.empty:
        return printable(f"{run}: no checkpoint has been scored yet.")
    label = min(max(points.task.str.len().max() + 2, 12), 36)
    clocks = points.groupby("step")["tokens"].max()
    room = max((width - label - 9) // _CELL, 2)
    steps = _selection([int(step) for step in clocks.index], room)
    lines = [run] if tables.several_runs else []
    lines += [
        _line("step", label, [f"{step:,}" if step < 1e6 else numbers.count(step) for step in steps])
        + "   chance",
        _line("tokens", label, [numbers.count(clocks[step]) for step in steps]),
    ]
    for domain, tasks in tables.domains.items():
        of_domain = points[points.domain == domain]
        if of_domain.empty:
            continue
        lines.append(domain)
        for task in tasks:
            rows = of_domain[of_domain.task == task].set_index("step")
            if len(rows):
                name = f"  {task}" if len(task) + 2 <= label else f"  {task[: label - 3]}…"
                cells = [_cell(rows, step) for step in steps]
                lines.append(_line(name, label, cells) + _chance(rows))
    return "\n".join(
        printable(line.rstrip())
        for line in [*lines, *_legend(tables, run, len(steps), len(clocks))]
    )


def _cell(rows: pd.DataFrame, step: int) -> str:
    if step not in rows.index:
        return "– "
    row = rows.loc[[step]].iloc[-1]
    return numbers.value(row.value, row.metric) + (MARK if row.above else " ")


def _chance(rows: pd.DataFrame) -> str:
    chance, metric = rows.chance.iloc[-1], rows.metric.iloc[-1]
    if pd.isna(chance):
        return "" if is_share(metric) else f"{_unit(metric):>9}"
    return f"{numbers.value(chance, metric):>9}"


def _unit(metric: str) -> str:
    return {"bits_per_byte": "bits/B", "perplexity": "ppl"}.get(metric, metric)[:8]


def _legend(tables: Tables, run: str, shown: int, total: int) -> list[str]:
    judged = tables.findings[(tables.findings.run == run) & tables.findings.chance.notna()]
    lines = [f"{MARK} above chance by more than two standard errors"] if len(judged) else []
    at_chance = int((judged.state == AT_CHANCE).sum())
    if at_chance:
        lines.append(f"{at_chance} of {len(judged)} still at chance")
    if shown < total:
        lines.append(f"{shown} of {total} checkpoints shown")
    return lines


def _line(name: str, label: int, cells: Sequence[str]) -> str:
    padded = (cell if cell[-1:] in (MARK, " ") else f"{cell} " for cell in cells)
    return f"{name:<{label}}" + "".join(f"{cell:>{_CELL}}" for cell in padded)


def _selection(steps: Sequence[int], room: int) -> list[int]:
    """At most `room` of `steps`, evenly spread over their order, with the first and the last."""
    if len(steps) <= room:
        return list(steps)
    positions = np.unique(np.linspace(0, len(steps) - 1, room).round().astype(int))
    return [steps[position] for position in positions]
