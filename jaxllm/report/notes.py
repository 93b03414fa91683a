"""Notes on missing or inconsistent data of a report."""

from __future__ import annotations

from collections.abc import Iterator

import pandas as pd

from jaxllm.analysis.curves import lower_is_better
from jaxllm.report import numbers
from jaxllm.report.theme import DISTINCT
from jaxllm.run.records import OK

NO_RECORD = "no record"
"""The status of a point whose task was not scored at a checkpoint of its run."""


def trajectory_notes(
    records: pd.DataFrame, points: pd.DataFrame, findings: pd.DataFrame, runs: int
) -> Iterator[str]:
    """A sentence for each gap of the trajectories; arguments as in `tables.Tables`."""
    several, many = runs > 1, runs > DISTINCT
    key = ["run", "task", "step"]
    scored = pd.MultiIndex.from_frame(records[key])
    missing = ~pd.MultiIndex.from_frame(points[key]).isin(scored)
    unsure = points.value.notna() & points.stderr.isna()
    if many:  # one line per task, not one per run
        for lacking, what in ((missing, "record"), (unsure, "standard error")):
            for task, rows in points[lacking].groupby("task", sort=False):
                at = f"{len(rows):,} checkpoints of {rows.run.nunique()} runs"
                yield f"{task} has no {what} at {at}."
    main = records[(records.status == OK) & records.primary.astype(bool)]
    has_main = set(zip(main.run, main.task, strict=True))
    of_task = records.groupby(["run", "task"]).task_version.unique()
    kinds = (
        ("failed", ~points.status.isin([OK, NO_RECORD])),
        ("has no record", pd.Series(missing & (not many), points.index)),
        ("is not a finite number", (points.status == OK) & points.value.isna()),
        ("has no standard error", unsure & (not many)),
    )
    for (run, task), rows in points.groupby(["run", "task"], sort=False):
        name = f"{run}: {task}" if several else str(task)
        for what, mask in kinds:
            lacking = rows[mask[rows.index]]
            if len(lacking):
                end = f": {lacking.status.iloc[-1]}" if what == "failed" else "."
                yield f"{name} {what} at {_steps(lacking)}{end}"
        good = rows.dropna(subset="value")
        if len(good) and good.chance.isna().all() and not lower_is_better(
            good.metric.iloc[0]
        ):  # fmt: skip
            yield f"{name} states no chance level, so it is not said when it left chance."
        if len(versions := of_task.get((run, task), ())) > 1:
            named = numbers.join(sorted(versions))
            yield f"{name} was scored as versions {named}, which are not comparable."
        if (run, task) not in has_main and (rows.status == OK).any():
            yield f"{name} has no primary metric; {rows.metric.iloc[0]} is shown."
    for task, rows in findings.groupby("task", sort=False):
        for column in ("task_version", "metric", "domain"):
            if several and rows[column].nunique() > 1:
                named = numbers.join(sorted(rows[column].astype(str).unique()))
                yield f"{task} differs between the runs in its {column}: {named}."
    for run, steps in points.groupby("run", sort=False).step.nunique().items():
        if steps == 1:
            yield f"{run}: one checkpoint has been scored, which shows no growth yet."


def _steps(rows: pd.DataFrame) -> str:
    steps = sorted(int(step) for step in rows.step)
    shown = ", ".join(f"{step:,}" for step in steps[:6]) + (", …" if len(steps) > 6 else "")
    return f"step {shown}" if len(steps) == 1 else f"{len(steps)} checkpoints (steps {shown})"
