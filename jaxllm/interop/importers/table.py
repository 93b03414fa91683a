"""What every importer needs: its settings, and rows of a source as a trajectory table."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pandas as pd

from jaxllm.errors import UserError
from jaxllm.interop.importers import known_tasks
from jaxllm.run.records import COLUMNS, Record, Results

_SIZE = re.compile(r"(?<![a-zA-Z0-9.])(\d+(?:\.\d+)?)([mb])(\d?)(?![a-zA-Z0-9])", re.IGNORECASE)
UNITS = {"k": 1e3, "m": 1e6, "b": 1e9, "t": 1e12}
_TEXTS = ("run", "family", "task", "domain", "metric", "task_version", "status")
_INTEGERS = ("params", "step", "tokens", "shots", "n")

Row = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Settings:
    """The settings after `?`, and that each of them is known."""

    values: Mapping[str, str]
    where: str

    def text(self, name: str, default: str = "") -> str:
        """A setting as it was written."""
        return self.values.get(name, default)

    def number(self, name: str, default: float = math.nan) -> float:
        """A setting as a number; `default` where it is not given.

        Raises:
          UserError: it is no number.
        """
        if name not in self.values:
            return default
        try:
            return float(self.values[name].replace("_", ""))
        except ValueError:
            raise UserError(f"{self.where}: {name}={self.values[name]} is not a number") from None

    def check(self, known: Sequence[str]) -> None:
        """Refuses settings that nothing reads.

        Raises:
          UserError: there is such a setting.
        """
        for name in self.values.keys() - set(known):
            raise UserError(f"{self.where}: no setting {name}; known: {', '.join(known)}")

    def checkpoint(
        self, run: str, family: str, params: float, step: float, tokens: float
    ) -> dict[str, Any]:
        """The columns that all records of a checkpoint share; settings replace what is given."""
        params = self.number("params", params)
        return {
            "run": self.text("run", run), "family": self.text("family", family), "params": params,
            "step": step, "tokens": tokens, "flops": 6.0 * params * tokens,
        }  # fmt: skip


# The metrics of a source that has none.
_NO_METRICS = pd.DataFrame({"run": pd.Series(dtype=str), "step": pd.Series(dtype="int64")})

# Settings that every kind knows.
COMMON = ("run", "family", "params", "tokens_per_step")


def to_frame(rows: Iterable[Mapping[str, Any]], problems: list[str]) -> pd.DataFrame:
    """Rows of a source as a trajectory table, without repetitions.

    Missing fields of a row become those of `Record`'s defaults; missing n is worked out from the
    standard error of an accuracy, se² = p(1 - p)/(n - 1), as the harness computes it. Of records
    that agree in run, task, step, metric and version the last one holds; values that contradict
    each other are reported.
    """
    frame = pd.DataFrame(rows)
    if frame.empty:
        return pd.DataFrame(columns=COLUMNS)
    for field in dataclasses.fields(Record):
        default = None if field.default is dataclasses.MISSING else field.default
        if field.name not in frame:
            frame[field.name] = default
        elif default is not None:
            frame[field.name] = frame[field.name].where(frame[field.name].notna(), default)
    for name in ("value", "stderr", "chance", "flops", "seconds"):
        frame[name] = pd.to_numeric(frame[name], errors="coerce").astype("float64")
    frame = frame.astype(dict.fromkeys(_TEXTS, str))
    frame["primary"] = frame["primary"].astype(bool)
    frame["n"] = _examples(frame)
    for name in _INTEGERS:
        numbers = pd.to_numeric(frame[name], errors="coerce")
        frame[name] = numbers.astype("float64" if numbers.isna().any() else "int64")
    key = ["run", "task", "step", "metric", "task_version"]
    repeated = frame.duplicated(key, keep=False)
    if repeated.any():
        again = frame[repeated].groupby(key, sort=False, dropna=False).value
        first = frame[repeated].iloc[0]
        count = int(frame.duplicated(key).sum())
        problems.append(
            f"{count:,} {'record is' if count == 1 else 'records are'} repeated (first: "
            f"{first.task} of {first.run} at step {first.step:,.0f}), "
            f"{int((again.nunique() > 1).sum()):,} of them with another value; the last one read "
            "is used"
        )
        frame = frame.drop_duplicates(key, keep="last")
    unknown = sorted(frame.task[frame.domain == known_tasks.OTHER].unique())
    if unknown:
        more = f" and {len(unknown) - 3} more" if len(unknown) > 3 else ""
        problems.append(
            f"no domain and no chance level are known for {', '.join(unknown[:3])}{more}"
        )
    return frame[list(COLUMNS)].sort_values(["run", "step", "task", "metric"], ignore_index=True)


def from_rows(
    settings: Settings, rows: Iterable[Mapping[str, Any]], problems: list[str]
) -> Results:
    """What a source without logged metrics holds, by its records."""
    frame = to_frame(rows, problems)
    return Results(settings.where, frame, _NO_METRICS, tuple(problems))


def task_columns(task: str, shots: int, metric: str) -> Row:
    """What is known of a metric of a task without its value."""
    known = known_tasks.lookup(task)
    chance = known.chance if known_tasks.has_chance(metric) else math.nan
    return {
        "task": named(task, shots), "domain": known.domain, "shots": shots, "metric": metric,
        "chance": chance, "primary": False,
    }  # fmt: skip


def named(task: str, shots: int) -> str:
    """The task's name in the table: with few-shot examples it is another task."""
    name = known_tasks.canonical(task)
    return f"{name} {shots}-shot" if shots > 0 else name


def _examples(frame: pd.DataFrame) -> pd.Series:
    n = pd.to_numeric(frame["n"], errors="coerce").fillna(0)
    binary = frame.metric.str.startswith("accuracy") & (frame.stderr > 0)
    variance = (frame.value * (1 - frame.value)).where(binary & (n == 0))
    derived = (variance / frame.stderr**2 + 1).round()
    usual = derived.groupby([frame.run, frame.task]).transform("median").round()
    return n.where(n > 0, derived).fillna(usual.where(n == 0)).fillna(n).clip(lower=0)


def size_in_name(name: str) -> float:
    """The size that a model's name states, "opt-1.3b" -> 1.3e9; NaN where there is none."""
    match = _SIZE.search(name)
    if not match:
        return math.nan
    number = float(match[1] + ("." + match[3] if match[3] else ""))
    return number * UNITS[match[2].lower()]


def family_of(run: str) -> str:
    """A run's name without its size: runs of one suite differ in nothing else."""
    short = _SIZE.sub("", run)
    return re.sub(r"([-_])[-_]+", r"\1", short).strip("-_ ") or run
