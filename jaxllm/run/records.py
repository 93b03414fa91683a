"""One point of a trajectory: the value of one metric of one task at one checkpoint."""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd

OK = "ok"


@dataclasses.dataclass(frozen=True)
class RunInfo:
    """What every record of a run has in common.

    Attributes:
      run: The run's name; runs compared in one report need different names.
      family: Runs of one family differ only in size (a suite).
      params: Number of parameters.
    """

    run: str
    family: str
    params: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Record:
    """One tidy row of the trajectory table.

    Attributes:
      run: Name of the run.
      family: Name of its suite.
      params: Number of parameters of the model.
      step: Training step of the checkpoint.
      tokens: Training tokens seen so far.
      flops: Training FLOPs spent so far.
      task: Name of the SeqIO task.
      domain: What the task is about: reading, math, code, …
      shots: Number of worked examples in the prompt.
      metric: Name of the metric; `primary` marks the one that stands for the task.
      value: Value of the metric; NaN when the task failed or has no such value.
      stderr: Standard error of `value` over the examples; NaN when unknown.
      n: Number of examples.
      chance: Value of a guess; NaN where there is none (perplexity).
      task_version: Records of different versions of a task are not comparable.
      seconds: Wall time of scoring the task at this checkpoint.
      primary: Whether this is the task's main metric, the one that is charted.
      status: "ok", or one line that says why the task gave no value.
    """

    run: str
    family: str
    params: int
    step: int
    tokens: int
    flops: float
    task: str
    domain: str
    shots: int
    metric: str
    value: float
    stderr: float = math.nan
    n: int = 0
    chance: float = math.nan
    task_version: str = "1"
    seconds: float = math.nan
    primary: bool = False
    status: str = OK


COLUMNS = tuple(field.name for field in dataclasses.fields(Record))


@dataclasses.dataclass(frozen=True)
class Results:
    """Records of runs from elsewhere, as importers read them.

    Attributes:
      name: What was opened.
      records: The trajectory table, the columns of `Record`. Where a source does not state a
        number of an integer column it is missing, and the column is floating point.
      metrics: A row per logged step (loss, grad_norm, …) with the column `run`; may be empty.
      problems: A line for everything that was unreadable, missing, repeated or guessed.
    """

    name: str
    records: pd.DataFrame
    metrics: pd.DataFrame
    problems: tuple[str, ...] = ()
