"""What the importers share: settings, files, and the completion of rows to a trajectory table."""

from __future__ import annotations

import dataclasses
import functools
import io
import math
import re
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import pandas as pd
from etils import epath

from jaxllm.analysis.curves import counts_examples, is_share, of_metric
from jaxllm.errors import UserError
from jaxllm.interop.importers import known_tasks
from jaxllm.io import gunzip, parquet
from jaxllm.run.records import COLUMNS, Record, Results, shown_name, split_shots

COMMON = ("run", "family", "params", "tokens_per_step")  # settings of every kind
# Column -> the problem of a source that does not state it, for some runs.
NOT_KNOWN = {
    "step": "step not known for {}: set ?step=",
    "tokens": "tokens not known for {}: set ?tokens_per_step=, or ?tokens= of a CSV file",
    "params": "parameters not known for {}: set ?params=",
}
UNITS = {"k": 1e3, "m": 1e6, "b": 1e9, "t": 1e12}
_SIZE = re.compile(r"(?<![a-zA-Z0-9.])(\d+(?:\.\d+)?)([mb])(\d?)(?![a-zA-Z0-9])", re.IGNORECASE)
_DTYPES: Mapping[str, Any] = {"str": str, "bool": bool, "int": "float64", "float": "float64"}

Row = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Settings:
    """The settings `values` of a source, which the user wrote as `where`."""

    values: Mapping[str, str]
    where: str

    def number(self, name: str, default: float = math.nan) -> float:
        """A setting as a number, or `default`; a UserError if it is not a number."""
        if name not in self.values:
            return default
        try:
            return float(self.values[name].replace("_", ""))
        except ValueError:
            raise UserError(f"{self.where}: {name}={self.values[name]} is not a number") from None

    def check(self, known: Sequence[str]) -> None:
        """Check that all settings are known; a UserError names one that is not."""
        for name in self.values.keys() - set(known):
            raise UserError(f"{self.where}: no setting {name}; known: {', '.join(known)}")


def files_below(path: epath.Path, matches: Callable[[str], bool]) -> list[epath.Path]:
    """`path` if it is a file, or the files below it whose names match; a directory's own first."""
    if not path.is_dir():
        return [path]
    entries = sorted(path.iterdir(), key=str)
    files = [entry for entry in entries if matches(entry.name) and not entry.is_dir()]
    return files + [f for entry in entries if entry.is_dir() for f in files_below(entry, matches)]


def read_table(path: epath.Path) -> pd.DataFrame:
    """A table in CSV, plain or gzip, or Parquet; UserError if it is none, or has no rows."""
    if not path.is_file():
        raise UserError(f"{path}: there is no such table")
    try:
        data = path.read_bytes()
        if data[:4] == b"PAR1":
            table = parquet(data).read().to_pandas()
        else:
            table = pd.read_csv(io.BytesIO(gunzip(data)))
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise UserError(f"{path}: neither a CSV nor a Parquet table ({error})") from None
    if table.empty:
        raise UserError(f"{path}: a table without rows")
    return table


def first(names: Sequence[str]) -> str:
    """The first three names, and how many more there are."""
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more


def to_results(
    settings: Settings,
    rows: Iterable[Row] | pd.DataFrame,
    problems: list[str],
    metrics: pd.DataFrame | None = None,
) -> Results:
    """Complete the rows of a source to trajectory records, without duplicates.

    Rows have a run, step, task, metric and value. The settings run, family and params override
    those of the rows; columns that no row has are filled in (`_ABSENT`, then the defaults of
    `Record`). A missing n is derived from the standard error of an accuracy by the harness'
    formula, se² = p(1 - p)/(n - 1), and a missing standard error from the known n of a task. Shares
    in per cent are divided by 100. Of records that agree in run, task, step, metric and version the
    last one wins; contradictory values are reported. UserError if values are neither shares nor per
    cent.
    """
    if metrics is None:
        metrics = pd.DataFrame({"run": pd.Series(dtype=str), "step": pd.Series(dtype="int64")})
    frame = pd.DataFrame(rows)
    if frame.empty:
        frame = pd.DataFrame(columns=COLUMNS)
    else:
        frame = _without_duplicates(_typed(_completed(frame, settings, problems)), problems)
    return Results(settings.where, frame, metrics, tuple(dict.fromkeys(problems)))


def _completed(frame: pd.DataFrame, settings: Settings, problems: list[str]) -> pd.DataFrame:
    for name in settings.values.keys() & {"run", "family", "params"}:
        frame[name] = settings.number(name) if name == "params" else settings.values[name]
    frame["metric"] = frame.metric.map(lambda metric: known_tasks.METRICS.get(metric, metric))
    stated = frame.task.map(lambda task: split_shots(str(task))[1])
    shots = frame.get("shots", stated)
    frame["shots"] = shots.where(shots > 0, stated).fillna(0).astype(int)
    frame["task"] = frame.task.map(lambda task: split_shots(str(task))[0])
    for name, fill in _ABSENT.items():
        if name not in frame:
            frame[name] = fill(frame)
    frame = _with_errors(_as_shares(frame, settings.where, problems), problems)
    names = zip(frame.task, frame.shots, strict=True)
    frame["task"] = [shown_name(known_tasks.canonical(task), n) for task, n in names]
    for name, message in NOT_KNOWN.items():
        if frame[name].isna().any():
            runs = frame.run[frame[name].isna()].unique()
            problems.append(message.format(first(list(runs))))
    frame["step"] = frame["step"].fillna(0)
    unknown = sorted(frame.task[frame.domain == known_tasks.OTHER].unique())
    if unknown:
        problems.append(f"no domain and no chance level are known for {first(unknown)}")
    return frame


def _as_shares(frame: pd.DataFrame, where: str, problems: list[str]) -> pd.DataFrame:
    """Divide the shares that are in per cent by 100: all values of a task and metric, or none.

    A task with values above 1 is in per cent. One without may be close to 0 in a table of per cent:
    it is, unless it has a chance level, or another task has that and no value above 1.
    """
    values = pd.to_numeric(frame.value, errors="coerce")
    share = of_metric(is_share, frame.metric) & values.notna()
    by_task = values.where(share).groupby([frame.task, frame.metric], dropna=False)
    most, least = by_task.transform("max"), by_task.transform("min")
    guess = frame.chance.astype(float).fillna(0) >= 0.02
    per_cent = share & (most > 1 + 1e-9)
    wrong = per_cent & ((most > 100 + 1e-9) | (guess & (least > 0) & (least < 1)))
    if wrong.any():
        row = frame[wrong].iloc[0]
        raise UserError(
            f"{where}: {row.task}: values of {row.metric} from {least[wrong].iloc[0]:g} to "
            f"{most[wrong].iloc[0]:g} are neither shares nor per cent"
        )
    if not per_cent.any():
        return frame
    certain = share & ~per_cent & guess
    per_cent |= share & ~certain & ~certain.any()
    problems.append(f"per cent, divided by 100: {first(list(frame.task[per_cent].unique()))}")
    scale = pd.Series(1.0, frame.index).mask(per_cent, 0.01)
    scaled = {name: frame[name] * scale for name in ("value", "stderr") if name in frame}
    return frame.assign(**scaled)


def _with_errors(frame: pd.DataFrame, problems: list[str]) -> pd.DataFrame:
    """Standard errors from the known numbers of examples, where a source has none."""
    nothing = pd.Series(math.nan, frame.index)
    stderr, n = frame.get("stderr", nothing), frame.get("n", nothing).replace(0, math.nan)
    if stderr.notna().any():
        return frame
    known = n.fillna(frame.task.map(lambda task: known_tasks.lookup(task).n))
    known = known.where(of_metric(counts_examples, frame.metric) & (known > 1))
    if known.any():
        problems.append(
            "standard errors from the known numbers of examples: "
            + first(list(frame.task[known.notna()].unique()))
        )
    p = frame.value.clip(0, 1)
    return frame.assign(stderr=stderr.fillna((p * (1 - p) / (known - 1)) ** 0.5), n=n.fillna(known))


def _typed(frame: pd.DataFrame) -> pd.DataFrame:
    """The columns of `Record` in their types; integers with NaN are floats."""
    typed = pd.DataFrame(index=frame.index)
    for field in dataclasses.fields(Record):
        column = frame.get(field.name, pd.Series(math.nan, frame.index))
        if field.default is not dataclasses.MISSING:
            column = column.where(column.notna(), field.default)
        if field.type in ("int", "float"):
            column = pd.to_numeric(column, errors="coerce")
        typed[field.name] = column.astype(_DTYPES[str(field.type)])
    typed["n"] = _examples(typed)
    integers = [f.name for f in dataclasses.fields(Record) if f.type == "int"]
    return typed.astype({name: "int64" for name in integers if typed[name].notna().all()})


def _without_duplicates(frame: pd.DataFrame, problems: list[str]) -> pd.DataFrame:
    key = ["run", "task", "step", "metric", "task_version"]
    repeated = frame[frame.duplicated(key, keep=False)]
    if len(repeated):
        first, count = repeated.iloc[0], int(frame.duplicated(key).sum())
        differing = repeated.groupby(key, sort=False, dropna=False).value.nunique() > 1
        problems.append(
            f"{count:,} {'record is' if count == 1 else 'records are'} repeated (first: "
            f"{first.task} of {first.run} at step {first.step:,.0f}), {int(differing.sum()):,} of "
            "them with another value; the last one read is used"
        )
        frame = frame.drop_duplicates(key, keep="last")
    return frame.sort_values(["run", "step", "task", "metric"], ignore_index=True)


def _examples(frame: pd.DataFrame) -> pd.Series:
    n = frame["n"].fillna(0)
    binary = frame.metric.str.startswith("accuracy") & (frame.stderr > 0)
    variance = (frame.value * (1 - frame.value)).where(binary & (n == 0))
    derived = (variance / frame.stderr**2 + 1).round()
    usual = derived.groupby([frame.run, frame.task]).transform("median").round()
    return n.where(n > 0, derived).fillna(usual.where(n == 0)).fillna(n).clip(lower=0)


def _level(frame: pd.DataFrame, name: str, metrics: tuple[str, ...]) -> pd.Series:
    """The `chance` or `majority` of the tasks, in rows of metrics that it is a level of."""
    level = frame.task.map(lambda task: getattr(known_tasks.lookup(task), name))
    return level.where(frame.metric.str.startswith(metrics))


def _primary(frame: pd.DataFrame) -> pd.Series:
    """Whether a row's metric is the primary one of those measured in its run and task."""
    keys = ["run", "task", "shots"]
    metrics = frame[[*keys, "metric"]].drop_duplicates().groupby(keys).metric.agg(list)
    primary = metrics.map(known_tasks.primary_metric)
    return frame.metric == primary.reindex(pd.MultiIndex.from_frame(frame[keys])).to_numpy()


@functools.cache
def size_in_name(name: str) -> float:
    """The size in a model's name, "opt-1.3b" -> 1.3e9; NaN if there is none."""
    match = _SIZE.search(name)
    if not match:
        return math.nan
    number = float(match[1] + ("." + match[3] if match[3] else ""))
    return number * UNITS[match[2].lower()]


@functools.cache
def family_of(run: str) -> str:
    """A run's name without its size: the runs of a suite differ only in that."""
    short = _SIZE.sub("", run)
    return re.sub(r"([-_])[-_]+", r"\1", short).strip("-_ ") or run


# Columns that a source may lack -> their values.
_ABSENT: Mapping[str, Callable[[pd.DataFrame], Any]] = {
    "domain": lambda frame: frame.task.map(lambda task: known_tasks.lookup(task).domain),
    "chance": lambda frame: _level(frame, "chance", ("accuracy", "exact_match", "f1")),
    "majority": lambda frame: _level(frame, "majority", ("accuracy", "exact_match")),
    "params": lambda frame: frame.run.map(size_in_name),
    "family": lambda frame: frame.run.map(family_of),
    "tokens": lambda frame: math.nan,
    "flops": lambda frame: 6.0 * frame.params * frame.tokens,
    "primary": _primary,
}
