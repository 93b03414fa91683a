"""Common parts of the importers: settings, and conversion of rows to a trajectory table."""

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
    """The settings after `?`."""

    values: Mapping[str, str]
    where: str

    def text(self, name: str, default: str = "") -> str:
        """A setting as text."""
        return self.values.get(name, default)

    def number(self, name: str, default: float = math.nan) -> float:
        """A setting as a number; `default` if it is not set.

        Raises:
          UserError: it is not a number.
        """
        if name not in self.values:
            return default
        try:
            return float(self.values[name].replace("_", ""))
        except ValueError:
            raise UserError(f"{self.where}: {name}={self.values[name]} is not a number") from None

    def check(self, known: Sequence[str]) -> None:
        """Check that all settings are known.

        Raises:
          UserError: a setting is unknown.
        """
        for name in self.values.keys() - set(known):
            raise UserError(f"{self.where}: no setting {name}; known: {', '.join(known)}")

    def checkpoint(
        self, run: str, family: str, params: float, step: float, tokens: float
    ) -> dict[str, Any]:
        """The columns shared by all records of a checkpoint; settings override the arguments."""
        params = self.number("params", params)
        return {
            "run": self.text("run", run), "family": self.text("family", family), "params": params,
            "step": step, "tokens": tokens, "flops": 6.0 * params * tokens,
        }  # fmt: skip


# The training metrics of a source without any.
_NO_METRICS = pd.DataFrame({"run": pd.Series(dtype=str), "step": pd.Series(dtype="int64")})

# Settings of every kind.
COMMON = ("run", "family", "params", "tokens_per_step")


def to_frame(rows: Iterable[Mapping[str, Any]], problems: list[str]) -> pd.DataFrame:
    """Convert rows of a source to a trajectory table without duplicates.

    Missing fields get the defaults of `Record`; a missing n is derived from the standard error of
    an accuracy, se² = p(1 - p)/(n - 1), the harness' formula. Of records that agree in run, task,
    step, metric and version the last one wins; contradictory values are reported.
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
    """The results of a source without training metrics, from its records."""
    frame = to_frame(rows, problems)
    return Results(settings.where, frame, _NO_METRICS, tuple(problems))


def task_columns(task: str, shots: int, metric: str) -> Row:
    """The columns of a task and metric, except the value."""
    known = known_tasks.lookup(task)
    chance = known.chance if known_tasks.has_chance(metric) else math.nan
    return {
        "task": named(task, shots), "domain": known.domain, "shots": shots, "metric": metric,
        "chance": chance, "primary": False,
    }  # fmt: skip


def named(task: str, shots: int) -> str:
    """The task's name in the table, which includes the number of shots unless it is 0."""
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
    """The size in a model's name, "opt-1.3b" -> 1.3e9; NaN if there is none."""
    match = _SIZE.search(name)
    if not match:
        return math.nan
    number = float(match[1] + ("." + match[3] if match[3] else ""))
    return number * UNITS[match[2].lower()]


def family_of(run: str) -> str:
    """A run's name without its size: the runs of a suite differ only in that."""
    short = _SIZE.sub("", run)
    return re.sub(r"([-_])[-_]+", r"\1", short).strip("-_ ") or run
