"""One point of a trajectory: the value of one metric of one task at one checkpoint."""

from __future__ import annotations

import dataclasses
import functools
import math
import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd

OK = "ok"
# Their `n` is of tokens. Earlier records, without `pooled_`, are mostly means over examples.
OPTION_PERPLEXITIES = ("pooled_perplexity_correct", "pooled_perplexity_incorrect")


_WITH_SHOTS = re.compile(r"(.+?)[_ -](\d+)[_-]?shots?")


@functools.cache
def split_shots(task: str) -> tuple[str, int | None]:
    """`arc_easy_5shot` or `arc_easy 5-shot` -> (`arc_easy`, 5); any other name -> (name, None)."""
    match = _WITH_SHOTS.fullmatch(task)
    return (match[1], int(match[2])) if match else (task, None)


@functools.cache
def shown_name(task: str, shots: int) -> str:
    """Name of a task among runs of all sources: `arc_easy 5-shot`, or `arc_easy` at 0 shots."""
    name, stated = split_shots(task)
    shots = shots or stated or 0
    return f"{name} {shots}-shot" if shots > 0 else name


@dataclasses.dataclass(frozen=True)
class RunInfo:
    """The fields that all records of a run share."""

    run: str  # name of the run; runs compared in one report need different names
    family: str  # suite of the run; runs of one family differ only in size
    params: int  # number of parameters


@dataclasses.dataclass(frozen=True, kw_only=True)
class Record(RunInfo):
    """One tidy row of the trajectory table; NaN where a number is unknown or does not exist."""

    step: int  # of the checkpoint
    tokens: int  # seen so far
    flops: float  # spent on training so far
    task: str  # name of the SeqIO task
    domain: str  # of the task, such as reading, math or code
    shots: int  # few-shot examples in the prompt
    metric: str
    value: float
    stderr: float = math.nan  # of `value`, over the examples
    n: int = 0  # number of examples; of OPTION_PERPLEXITIES, of tokens
    chance: float = math.nan
    majority: float = math.nan  # value of the best constant answer (majority-class baseline)
    unigram: float = math.nan  # value of predictions by the frequencies of the scored tokens
    task_version: str = "1"  # records of different versions are not comparable
    seconds: float = math.nan  # wall time of scoring the task at this checkpoint
    primary: bool = False  # whether this is the task's main metric, the one that is charted
    status: str = OK  # or one line with the reason why there is no value


COLUMNS = tuple(field.name for field in dataclasses.fields(Record))


@dataclasses.dataclass(frozen=True)
class Results:
    """Records of runs from elsewhere, as importers read them.

    Numbers that a source does not state are missing, and their integer columns floating point.
    """

    name: str  # of the source
    records: pd.DataFrame  # the trajectory table, with the columns of `Record`
    metrics: pd.DataFrame  # a row per logged step (loss, grad_norm, …) with the column `run`
    problems: tuple[str, ...] = ()  # a line per unreadable, missing, repeated or guessed item
