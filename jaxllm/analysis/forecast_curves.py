"""Trajectories as curves over the share of training, ready to be cut and compared.

Runs are aligned by progress (tokens seen / tokens of the whole run), because the learning-rate
schedule ends with the run: at equal progress two runs of a suite stand at the same point of it.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping

import numpy as np
import pandas as pd

from jaxllm.run.records import OK

Key = tuple[str, int, str, str]
"""Task, shots, metric, task version: what has to agree before two values are comparable."""

KEY_COLUMNS = ["task", "shots", "metric", "task_version"]
SAME_SIZE = 0.10
"""Runs whose parameter counts differ by less than this share are one size: twins of each other."""
RECENT = 3
LATER = 4
"""At so many moments between a forecast and the end finished runs are looked at."""


@dataclasses.dataclass(frozen=True)
class Curve:
    """One metric of one task in one run.

    Attributes:
      run: Name of the run.
      key: What the values are comparable with.
      domain: The task's domain.
      size: Number of the size the run belongs to (runs within `SAME_SIZE` share it).
      log_params: Natural logarithm of the parameter count; 0 where it is unknown.
      progress: Share of the run's training tokens, ascending, each once, [points].
      values: Finite values, [points].
      stderr: Their standard errors; NaN where unknown, [points].
    """

    run: str
    key: Key
    domain: str
    size: int
    log_params: float
    progress: np.ndarray
    values: np.ndarray
    stderr: np.ndarray

    def at(self, positions: np.ndarray) -> np.ndarray:
        """Values at these shares of training, linear in the log of progress between points."""
        return np.interp(np.log(positions), np.log(self.progress), self.values)

    def before(self, cut: float) -> np.ndarray:
        """Shares of training at which the run was scored, up to and with `cut`."""
        return self.progress[self.progress <= cut * (1 + 1e-9)]

    @property
    def final(self) -> float:
        """The last value."""
        return float(self.values[-1])


def curves(
    records: pd.DataFrame, totals: Mapping[str, float] | None = None
) -> tuple[list[Curve], tuple[str, ...]]:
    """The curves of every primary metric, and a line on everything that was left out.

    Args:
      records: The trajectory table.
      totals: Planned training tokens of runs that are not finished; of the others, the largest
        token count in the table is the end.

    Returns:
      The curves in the order of the table's runs, and notes for the reader.
    """
    notes = []
    usable = records[records.primary.astype(bool)] if records.primary.any() else records
    fine = (usable.status == OK) & np.isfinite(usable.value) & np.isfinite(usable.tokens)
    if (~fine).any():
        notes.append(f"{int((~fine).sum()):,} records without a value are left out")
    usable = usable[fine & (usable.tokens > 0)]
    for run, counts in usable.groupby("run").params.nunique().items():
        if counts > 1:
            notes.append(f"{run}: records of {counts} model sizes under one name; is it two runs?")
    repeated = usable.duplicated(["run", *KEY_COLUMNS, "tokens"], keep="last")
    if repeated.any():
        notes.append(f"{int(repeated.sum()):,} repeated records: the last one of each counts")
        usable = usable[~repeated]
    ends = usable.groupby("run").tokens.max().to_dict()
    for run, total in (totals or {}).items():
        if total < ends.get(run, 0):
            notes.append(f"{run} has {ends[run]:,.0f} tokens, more than the {total:,.0f} planned")
        ends[run] = max(total, ends.get(run, 0))
    sizes = _sizes(usable.groupby("run", sort=False).params.first())
    found = []
    ordered = usable.sort_values("tokens", kind="stable")
    for (run, *key), points in ordered.groupby(["run", *KEY_COLUMNS], sort=False):
        params = float(points.params.iloc[0])
        found.append(
            Curve(
                run=run,
                key=tuple(key),
                domain=str(points.domain.iloc[-1]),
                size=sizes[run],
                log_params=math.log(params) if params > 0 else 0.0,
                progress=points.tokens.to_numpy(float) / ends[run],
                values=points.value.to_numpy(float),
                stderr=points.stderr.to_numpy(float),
            )
        )
    return found, tuple(notes)


@dataclasses.dataclass(frozen=True)
class Cut:
    """What some runs looked like at one moment of training, and how they ended; one key.

    Attributes:
      log_params: Natural logarithms of the parameter counts, [runs].
      values: At the last `RECENT` moments before the cut and, of runs that went on, at `LATER`
        moments from there to the end, [runs, times].
      log_linear: The least-squares line in the log of tokens, drawn to the end, [runs].
      final: The last value, [runs].
      settled: The mean of the last `RECENT` values: what a run comes to but for the noise of its
        last checkpoint, and so the better thing to learn from, [runs].
      variance: Sampling variance of the last value; NaN where unknown, [runs].
      times: Shares of training, [times].
      early: How many of them lie before the cut.
    """

    log_params: np.ndarray
    values: np.ndarray
    log_linear: np.ndarray
    final: np.ndarray
    settled: np.ndarray
    variance: np.ndarray
    times: np.ndarray
    early: int

    def take(self, chosen: np.ndarray) -> Cut:
        """The runs where `chosen` (a mask or positions)."""
        names = ("log_params", "values", "log_linear", "final", "settled", "variance")
        return dataclasses.replace(self, **{name: getattr(self, name)[chosen] for name in names})


def cut_at(some: list[Curve], positions: np.ndarray) -> Cut:
    """All of `some` at the moments `positions` (ascending shares of training), cut at the last."""
    recent = positions[-RECENT:]
    times = np.concatenate([recent, np.linspace(recent[-1], 1.0, LATER + 1)[1:]])
    return Cut(
        log_params=np.array([curve.log_params for curve in some]),
        values=np.array([curve.at(times) for curve in some]),
        log_linear=np.array([log_linear(curve, positions[-1]) for curve in some]),
        final=np.array([curve.final for curve in some]),
        settled=np.array([curve.values[-RECENT:].mean() for curve in some]),
        variance=np.array([curve.stderr[-1] ** 2 for curve in some]),
        times=times,
        early=len(recent),
    )


def log_linear(curve: Curve, cut: float, end: float = 1.0) -> float:
    """The least-squares line of the value in log tokens up to `cut`, at the share `end`."""
    count = len(curve.before(cut))
    if count < 2:
        return float(curve.values[max(count - 1, 0)])
    x, y = np.log(curve.progress[:count]), curve.values[:count]
    centred = x - x.mean()
    return float(y.mean() + centred @ y / (centred @ centred) * (math.log(end) - x.mean()))


def _sizes(params: pd.Series) -> dict[str, int]:
    """Numbers the model sizes; runs of unknown size are each a size of their own."""
    sizes: dict[str, int] = {}
    number, smallest = -1, -math.inf
    for run, count in params.sort_values(kind="stable").items():
        log = math.log(count) if count > 0 else -math.inf
        if not log - smallest < math.log1p(SAME_SIZE):
            number, smallest = number + 1, log
        sizes[str(run)] = number
    return sizes
