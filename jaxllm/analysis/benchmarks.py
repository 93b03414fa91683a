"""Benchmark means: MMLU's 57 exams become one task `mmlu`.

A published suite scores hundreds of tasks, more than fit a page, and the mean of a benchmark has a
far smaller standard error than any of its tasks.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
import pandas as pd

from jaxllm.run.records import OK

ENOUGH_TASKS = 5
OTHER_TASKS = "single tasks"
READABLE = 60
"""So many tasks are shown one by one."""


def pooled(records: pd.DataFrame, most: int = READABLE) -> tuple[pd.DataFrame, tuple[str, ...]]:
    """Pool the tasks of every benchmark to one task, where there are more than `most` tasks.

    A benchmark's value is the mean over its tasks, at checkpoints with all tasks that the run was
    scored on; its standard error assumes that the tasks share no examples. Benchmarks are
    identified by `benchmarks`.

    Returns:
      The records, and notes on the pooling for the report.
    """
    tasks = records.task.unique() if len(records) else []
    if len(tasks) <= most:
        return records, ()
    base = records.task.str.replace(r" \d+-shot$", "", regex=True)
    names = benchmarks(base.unique())
    benchmark = base.map(names)
    alone = benchmark == OTHER_TASKS
    ok = (records.status == OK) & np.isfinite(records.value) & ~alone
    parts = records[ok].assign(benchmark=benchmark[ok], variance=records.stderr[ok] ** 2)
    parts = parts.drop_duplicates(["run", "task", "step", "metric"], keep="last")
    key = ["run", "benchmark", "shots", "metric"]
    grouped = parts.groupby([*key, "step"], as_index=False, sort=False)
    pool = grouped.agg(
        family=("family", "last"), params=("params", "last"), tokens=("tokens", "last"),
        flops=("flops", "last"), domain=("domain", "last"), value=("value", "mean"),
        variance=("variance", lambda v: v.sum(skipna=False)), n=("n", "sum"),
        chance=("chance", "mean"), task_version=("task_version", "max"),
        seconds=("seconds", "sum"), primary=("primary", "any"), count=("task", "size"),
    )  # fmt: skip
    whole = pool["count"] == pool.groupby(key)["count"].transform("max")
    pool = pool[whole]
    shots = pool.shots.astype(int)
    names_of = [
        b if s == 0 else f"{b} {s}-shot" for b, s in zip(pool.benchmark, shots, strict=True)
    ]
    pool = pool.assign(task=names_of, stderr=np.sqrt(pool.variance) / pool["count"], status=OK)
    sizes = base[~alone].groupby(benchmark[~alone]).nunique()
    listed = ", ".join(f"{name} ({count} tasks)" for name, count in sizes.items())
    notes = [f"{len(tasks)} tasks are too many for one page: shown are the means of {listed}."]
    if not whole.all():
        notes.append(
            f"{int((~whole).sum()):,} checkpoints of benchmarks lack some of their tasks: left out."
        )
    rest = records[alone]
    return pd.concat([rest, pool[list(records)]], ignore_index=True), tuple(notes)


def benchmarks(tasks: Sequence[str]) -> dict[str, str]:
    """Benchmark of each task: the first word of its name, where five or more tasks share it."""
    words = {task: re.split(r"[_\-:. ]", task)[0] for task in tasks}
    counts = pd.Series(list(words.values()), dtype=object).value_counts()
    return {
        task: word if counts[word] >= ENOUGH_TASKS else OTHER_TASKS for task, word in words.items()
    }
