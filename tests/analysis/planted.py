"""Trajectory tables whose truth is known."""

import numpy as np
import pandas as pd
from scipy import special

from jaxllm.run.records import COLUMNS, Record

LOG_STEPS = (0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1000, 2000, 4000, 8000, 16000, 32000, 64000)


def table(values, *, tokens=None, run="r", params=1000, chance=0.25, stderr=0.01, metric="accuracy",
          domains=None, n=1000, family="f"):  # fmt: skip
    """Records of one run; `values` maps a task to its scores, `domains` a task to its domain."""
    rows = []
    for task, scores in values.items():
        at = tokens if tokens is not None else np.arange(len(scores)) * 100
        errors = np.broadcast_to(stderr, len(scores))
        for step, (token, score, error) in enumerate(zip(at, scores, errors, strict=True)):
            rows.append(
                Record(
                    run=run, family=family, params=params, step=step, tokens=int(token),
                    flops=6.0 * params * token, task=task, domain=(domains or {}).get(task, "d"),
                    shots=0, metric=metric, value=float(score), stderr=float(error), n=n,
                    chance=chance, primary=metric == "accuracy",
                )
            )  # fmt: skip
    return pd.DataFrame(rows, columns=COLUMNS)


def sigmoid(x, middle, width=1.0):
    return special.expit((np.asarray(x) - middle) / width)


def noise(rng, tasks, level=0.25, size=41):
    """Scores of so many tasks that stay at `level`."""
    return {f"t{i}": level + rng.normal(0, 0.01, size) for i in range(tasks)}


def broken(records):
    """The same records with everything wrong that real tables have."""
    again = records.iloc[:3].assign(value=0.9)
    missing = records.assign(
        value=np.where(np.arange(len(records)) % 7 == 3, np.nan, records.value)
    )
    endless = records.iloc[5:6].assign(value=np.inf)
    failed = records.iloc[8:9].assign(value=np.nan, status="it crashed")
    unknown = records.assign(task=records.task + "_open", chance=np.nan, stderr=np.nan)
    return pd.concat([missing, again, endless, failed, unknown], ignore_index=True)
