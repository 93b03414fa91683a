"""Tasks that belong together as one: MMLU's 57 exams become the mean `mmlu`.

A published suite scores hundreds of tasks. A reader wants a page of them, and the mean of a
benchmark is known far better than any of its parts.
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
    """The records with the tasks of every benchmark as one task, where there are more than `most`.

    A benchmark's value is the mean over its tasks at checkpoints that have all that the run was
    scored on; its standard error takes the tasks' examples as different ones. Benchmarks are told
    by the first word of the tasks' names (`benchmarks`).

    Returns:
      Records, and a note for the reader on what became of them.
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
    """The benchmark of each task: the first word of its name, where five or more tasks share it."""
    words = {task: re.split(r"[_\-:. ]", task)[0] for task in tasks}
    counts = pd.Series(list(words.values()), dtype=object).value_counts()
    return {
        task: word if counts[word] >= ENOUGH_TASKS else OTHER_TASKS for task, word in words.items()
    }
