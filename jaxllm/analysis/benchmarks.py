"""Benchmark means: MMLU's 57 exams become one task `mmlu`, with a far smaller standard error."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
import pandas as pd

from jaxllm.run.records import OK

OTHER_TASKS = "single tasks"
_MIN_TASKS = 5
_MAX_SHOWN = 60  # maximum number of tasks that are shown one by one


def pooled(records: pd.DataFrame, most: int = _MAX_SHOWN) -> tuple[pd.DataFrame, tuple[str, ...]]:
    """Pool the tasks of every benchmark to one task, where there are more than `most`; with notes.

    A benchmark's value is the mean over its tasks, at checkpoints with all tasks that the run was
    scored on; its standard error assumes that the tasks share no examples.
    """
    count = records.task.nunique()
    if count <= most:
        return records, ()
    base = records.task.str.replace(r" \d+-shot$", "", regex=True)
    benchmark = base.map(benchmarks(base.unique()))
    alone = benchmark == OTHER_TASKS
    ok = (records.status == OK) & np.isfinite(records.value) & ~alone
    tasks = records[ok].assign(benchmark=benchmark[ok], variance=records.stderr[ok] ** 2)
    tasks = tasks.drop_duplicates(["run", "task", "step", "metric"], keep="last")
    key = ["run", "benchmark", "shots", "metric"]
    by_column = {
        **dict.fromkeys(("family", "params", "tokens", "flops", "domain"), "last"),
        **{"value": "mean", "chance": "mean", "task_version": "max", "primary": "any"},
        **dict.fromkeys({"majority", "unigram"} & set(tasks), "mean"),
        **{"variance": lambda v: v.sum(skipna=False), "n": "sum", "seconds": "sum"},
        "task": "size",
    }
    pool = tasks.groupby([*key, "step"], as_index=False, sort=False).agg(by_column)
    complete = pool.task == pool.groupby(key).task.transform("max")
    pool = pool[complete]
    shots = " " + pool.shots.astype(int).astype(str) + "-shot"
    pool = pool.assign(
        task=pool.benchmark + shots.where(pool.shots > 0, ""),
        stderr=np.sqrt(pool.variance) / pool.task,
        status=OK,
    )
    sizes = base[~alone].groupby(benchmark[~alone]).nunique()
    listed = ", ".join(f"{name} ({size} tasks)" for name, size in sizes.items())
    notes = [f"{count} tasks are too many for one page: shown are the means of {listed}."]
    if not complete.all():
        notes.append(
            f"{int((~complete).sum()):,} checkpoints of benchmarks lack some of their tasks: "
            "left out."
        )
    return pd.concat([records[alone], pool[list(records)]], ignore_index=True), tuple(notes)


def benchmarks(tasks: Sequence[str]) -> dict[str, str]:
    """Benchmark of each task: the first word of its name, where five or more tasks share it."""
    words = pd.Series({task: re.split(r"[_\-:. ]", task)[0] for task in tasks}, dtype=object)
    shared = words.map(words.value_counts()) >= _MIN_TASKS
    return words.where(shared, OTHER_TASKS).to_dict()
