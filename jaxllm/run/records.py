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
    """The fields that all records of a run share.

    Attributes:
      run: name of the run; runs compared in one report need different names.
      family: suite of the run; runs of one family differ only in size.
      params: number of parameters.
    """

    run: str
    family: str
    params: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Record:
    """One tidy row of the trajectory table.

    Attributes:
      run: name of the run.
      family: name of its suite.
      params: number of parameters of the model.
      step: training step of the checkpoint.
      tokens: training tokens seen so far.
      flops: training FLOPs spent so far.
      task: name of the SeqIO task.
      domain: domain of the task, such as reading, math or code.
      shots: number of few-shot examples in the prompt.
      metric: name of the metric; `primary` marks the task's main one.
      value: value of the metric; NaN when the task failed or has no such value.
      stderr: standard error of `value` over the examples; NaN when unknown.
      n: number of examples.
      chance: chance level; NaN where there is none (perplexity).
      task_version: version of the task; records of different versions are not comparable.
      seconds: wall time of scoring the task at this checkpoint.
      primary: whether this is the task's main metric, the one that is charted.
      status: "ok", or one line with the reason why there is no value.
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
      name: name of the source.
      records: the trajectory table, with the columns of `Record`. Numbers that a source does not
        state are missing, and their integer columns are floating point.
      metrics: a row per logged step (loss, grad_norm, …) with the column `run`; may be empty.
      problems: a line per unreadable, missing, repeated or guessed item.
    """

    name: str
    records: pd.DataFrame
    metrics: pd.DataFrame
    problems: tuple[str, ...] = ()
