"""Notes on missing or inconsistent data of a report."""

from __future__ import annotations

from collections.abc import Iterator

import pandas as pd

from jaxllm.report import numbers
from jaxllm.report.theme import DISTINCT
from jaxllm.run.records import OK

# The status of a point whose task was not scored at a checkpoint of its run.
NO_RECORD = "no record"


def trajectory_notes(
    records: pd.DataFrame, points: pd.DataFrame, findings: pd.DataFrame, runs: int
) -> Iterator[str]:
    """A sentence for equal gaps of trajectories; arguments as in `tables.Tables`."""
    key = ["run", "task", "step"]
    scored = pd.MultiIndex.from_frame(records[key])
    unscored = ~pd.MultiIndex.from_frame(points[key]).isin(scored)
    gaps = {
        "failed": ~points.status.isin([OK, NO_RECORD]),
        "has no record": pd.Series(unscored, points.index),
        "is not a finite number": (points.status == OK) & points.value.isna(),
        "has no standard error": points.value.notna() & points.stderr.isna(),
    }
    primary = records[(records.status == OK) & records.primary.astype(bool)]
    has_primary = set(zip(primary.run, primary.task, strict=True))
    versions = records.groupby(["run", "task"]).task_version.unique()
    lacks: dict[str, list[str]] = {}
    for (run, task), rows in points.groupby(["run", "task"], sort=False):
        name = f"{run}: {task}" if runs > 1 else str(task)
        for gap, mask in gaps.items():
            lacking = rows[mask[rows.index]]
            if len(lacking):
                end = f": {lacking.status.iloc[-1]}" if gap == "failed" else "."
                steps = _steps(lacking) if runs <= DISTINCT else f"{len(lacking):,} checkpoints"
                lacks.setdefault(f"{gap} at {steps}{end}", []).append(name)
        if len(versions[run, task]) > 1:
            named = numbers.join(sorted(versions[run, task]))
            yield f"{name} was scored as versions {named}, which are not comparable."
        if (run, task) not in has_primary and (rows.status == OK).any():
            yield f"{name} has no primary metric; {rows.metric.iloc[0]} is shown."
    for text, names in lacks.items():
        more = f" (and {len(names) - 1} more)" if len(names) > 1 else ""
        yield f"{names[0]}{more} {text}"
    for task, rows in findings.groupby("task", sort=False):
        for column in ("task_version", "metric", "domain"):
            if rows[column].nunique() > 1:
                named = numbers.join(sorted(rows[column].astype(str).unique()))
                yield f"{task} differs between the runs in its {column}: {named}."
    for run, steps in points.groupby("run", sort=False).step.nunique().items():
        if steps == 1:
            yield f"{run}: one checkpoint has been scored, which shows no growth yet."


def _steps(rows: pd.DataFrame) -> str:
    steps = sorted(int(step) for step in rows.step)
    shown = ", ".join(f"{step:,}" for step in steps[:6]) + (", …" if len(steps) > 6 else "")
    return f"step {shown}" if len(steps) == 1 else f"{len(steps)} checkpoints (steps {shown})"
