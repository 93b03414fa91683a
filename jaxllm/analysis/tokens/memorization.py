"""What checkpoints have memorized, from the per-example results of the task `memorization`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd


def by_age(examples: pd.DataFrame, step: int, bins: int = 8) -> pd.DataFrame:
    """Mean `extractible` and `score` of the checkpoint at `step`, with n and standard errors, in
    `bins` of equally many sequences by the steps since they were read; of age NaN are those not
    read yet, the control.
    """
    age = (step - examples.trained_at).where(lambda age: age >= 0).astype(float)
    group = pd.qcut(age, bins, labels=False, duplicates="drop").fillna(-1)
    table = examples.assign(age=age).groupby(group)[["age", "extractible", "score"]]
    errors = table.sem()[["extractible", "score"]].add_suffix("_stderr")
    return table.mean().join(errors).assign(n=table.size()).reset_index(drop=True)


def prediction(early: pd.DataFrame, late: pd.DataFrame) -> dict[str, Any]:
    """Precision and recall of what one checkpoint has memorized for what another has.

    As of a small or early model for a large or late one (Biderman et al. 2023, arXiv 2304.11158,
    section 4), over the sequences of both; with standard errors. NaN where there is none.
    """
    both = early.merge(late, on="id", suffixes=("", "_late"))
    hits = both[both.extractible.astype(bool) & both.extractible_late.astype(bool)]
    result: dict[str, Any] = {"n": len(both)}
    for name, column in ("precision", "extractible"), ("recall", "extractible_late"):
        total = int(both[column].sum())
        share = len(hits) / total if total else np.nan
        error = np.sqrt(share * (1 - share) / total) if total else np.nan
        result |= {name: share, f"{name}_stderr": float(error)}
    return result


def predictions(early: Mapping[int, pd.DataFrame], late: pd.DataFrame) -> pd.DataFrame:
    """The `prediction` of `late` from each of the checkpoints `early`, a row per step."""
    return pd.DataFrame([{"step": step} | prediction(of, late) for step, of in early.items()])
