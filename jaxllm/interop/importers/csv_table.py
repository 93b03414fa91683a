"""Import any CSV table of results through a mapping of its columns.

    csv:runs.csv                                    the columns have the names of record fields
    csv:t.csv?run=Model&params=Size (B)*1e9&tokens=Data (T)*1e12&values=MMLU,HellaSwag&shots='5'
    csv:t.csv?task=task_metric&values=gptj_6b,llama_7b&over=run&tokens='2e11'

A setting with the name of a trajectory column is the source of its values: a column of the file, a
column times a number, or a constant in single quotes. `values` lists the value columns of a wide
table, and `over` their dimension: task, run or metric; without it the values are in the column
`value`. `scale` multiplies the values; per cent are recognized.
"""

from __future__ import annotations

import math

import pandas as pd
from etils import epath

from jaxllm.errors import UserError
from jaxllm.interop.importers import known_tasks
from jaxllm.interop.importers.table import COMMON, Settings, read_table, to_results
from jaxllm.run.records import COLUMNS, Results

_NUMBERS = (
    "params", "step", "tokens", "flops", "shots", "value", "stderr", "n", "chance", "majority",
    "unigram",
)  # fmt: skip
_OVER = ("task", "run", "metric")


def read(path: epath.Path, settings: Settings) -> Results:
    """Read a CSV or Parquet file as a trajectory table.

    Unmapped columns are filled in: `family` from the run's name, `params` from the size in that
    name, `flops` as 6 x params x tokens, `step` by counting the checkpoints of a run, `domain` and
    `chance` from the table of known tasks. A task named `name/acc` also sets its metric. UserError
    if it is no table, or the mapping names a column that it does not have.
    """
    settings.check((*dict.fromkeys([*COLUMNS, *COMMON]), "values", "over", "scale"))
    problems: list[str] = []
    table = read_table(path)
    frame = _mapped(table, settings, path)
    for name in [name for name in ("task", "value") if name not in frame]:
        columns = ", ".join(map(str, table.columns[:12]))
        raise UserError(f"{settings.where}: no column {name}: set ?{name}= to one of {columns}")
    for name in set(_NUMBERS) & set(frame):
        numbers = pd.to_numeric(frame[name], errors="coerce")
        wrong = frame[name].notna() & numbers.isna()
        if wrong.any():
            problems.append(
                f"{int(wrong.sum())} entries of {name} are no numbers (first: "
                f"{frame[name][wrong].iloc[0]!r})"
            )
        frame[name] = numbers.astype("float64")
    for name in {"value", "stderr"} & set(frame):
        frame[name] *= settings.number("scale", 1.0)
    if empty := int(frame.value.isna().sum()):
        problems.append(f"{empty} of {len(frame)} entries have no value")
    frame = frame.assign(run=frame.run.astype(str), task=frame.task.astype(str))
    if "metric" not in frame:
        named = frame.task.str.rpartition("/")  # `acc` of a task named `TASK/acc`
        known = named[2].isin(known_tasks.METRICS)
        frame["metric"] = named[2].map(known_tasks.METRICS).where(known, "accuracy")
        frame["task"] = named[0].where(known, frame.task)
    if "tokens" not in frame:
        per_step = settings.number("tokens_per_step")
        frame["tokens"] = frame["step"] * per_step if "step" in frame else math.nan
    if "step" not in frame:
        frame["step"] = frame.groupby("run").tokens.rank(method="dense").fillna(0).astype(int)
        problems.append("the table has no step: the checkpoints of a run are counted from 1")
    return to_results(Settings({}, settings.where), frame, problems)  # the settings are applied


def _mapped(table: pd.DataFrame, settings: Settings, path: epath.Path) -> pd.DataFrame:
    """The table with the column names of the trajectory table."""
    frame = pd.DataFrame(index=table.index)
    for column in COLUMNS:
        if expression := settings.values.get(column):
            frame[column] = _evaluated(table, expression, path)
        elif column in table:
            frame[column] = table[column]
    if values := settings.values.get("values"):
        over = settings.values.get("over", "task")
        if over not in _OVER:
            raise UserError(f"{settings.where}: over={over}; it can be {', '.join(_OVER)}")
        parts = []
        for name in values.split(","):
            part = frame.assign(value=_evaluated(table, name.strip(), path))
            part[over] = name.strip()
            parts.append(part)
        frame = pd.concat(parts, ignore_index=True)
    if "run" not in frame:
        frame["run"] = path.name.split(".")[0]
    return frame


def _evaluated(table: pd.DataFrame, expression: str, path: epath.Path) -> pd.Series | str:
    if expression in table:
        return table[expression]
    if len(expression) > 1 and expression[0] == expression[-1] == "'":
        return expression[1:-1]
    column, star, factor = expression.rpartition("*")
    if star and column.strip() in table:
        try:
            return pd.to_numeric(table[column.strip()], errors="coerce") * float(factor)
        except ValueError:
            raise UserError(f"{path}: {expression}: {factor} is not a number") from None
    known = ", ".join(map(str, table.columns[:12]))
    raise UserError(f"{path}: no column {expression}; it has {known}")
