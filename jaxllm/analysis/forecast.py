"""What a run will be able to do at its end, from what it can do now.

With finished runs at hand, their curves are carried over (`forecast_methods`). Without any, the
run's own past is all there is (`forecast_alone`).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable

import numpy as np
import pandas as pd

from jaxllm.analysis import forecast_curves, forecast_methods
from jaxllm.analysis.benchmarks import benchmarks
from jaxllm.analysis.curves import is_share
from jaxllm.analysis.forecast_alone import forecast_alone
from jaxllm.analysis.forecast_curves import KEY_COLUMNS, Curve

COLUMNS = (
    "run", *KEY_COLUMNS, "domain", "size", "progress", "last", "log_linear", "forecast", "low",
    "high", "stderr", "finished_runs", "method",
)  # fmt: skip
TRANSFER, ALONE = "other runs", "this run alone"
ENOUGH_UNITS = 3
"""Sizes (or, of fewer sizes, runs) that must have finished before errors can be learned."""


@dataclasses.dataclass(frozen=True)
class Forecast:
    """The end of one run, foretold.

    Attributes:
      run: Its name.
      progress: Share of the training seen.
      level: Nominal coverage of the intervals.
      table: A row per task: `COLUMNS`. `finished_runs` is how many runs it was learned from.
      notes: What was left out or guessed.
      refused: Why there is no forecast; empty where there is one.
    """

    run: str
    progress: float
    level: float
    table: pd.DataFrame
    notes: tuple[str, ...] = ()
    refused: str = ""

    @property
    def sentence(self) -> str:
        """One sentence for the report."""
        if self.refused:
            return f"No forecast for {self.run}: {self.refused}."
        shares = self.table[[is_share(metric) for metric in self.table.metric]]
        table = shares if len(shares) else self.table
        gain = table.forecast - table["last"]
        best = gain.abs().idxmax()
        others = int(table.finished_runs.max())
        basis = f"learned from {others} other runs" if others else "from this run alone"
        width = (table.high - table.low).median() / 2
        return (
            f"From {self.progress:.0%} of its training, {basis}: of {len(table)} tasks, "
            f"{int((table.low > table['last']).sum())} will end above their present value "
            f"({self.level:.0%} interval, median ± {width:.3f}); the largest expected change is "
            f"{table.task[best]}, from {table['last'][best]:.3f} to {table.forecast[best]:.3f}."
        )


def forecast(
    records: pd.DataFrame,
    run: str,
    *,
    total_tokens: float | None = None,
    finished: Iterable[str] | None = None,
    level: float = 0.9,
) -> Forecast:
    """The value of every task of `run` at the end of its training.

    Args:
      records: The trajectory table, with `run` and as many finished runs as there are.
      run: The run in progress.
      total_tokens: The tokens it will have seen at its end.
      finished: Names of the finished runs to learn from; by default all others in the table.
      level: Coverage of the intervals.

    Returns:
      The finding; it is refused where no task of the run was scored or the end is not known.
    """
    empty = pd.DataFrame(columns=list(COLUMNS))
    if total_tokens is None or not total_tokens > 0:
        reason = "how many tokens it will be trained for is not known"
        return Forecast(run, math.nan, level, empty, refused=reason)
    all_curves, notes = forecast_curves.curves(records, {run: total_tokens})
    names = None if finished is None else set(finished)
    targets = [curve for curve in all_curves if curve.run == run]
    if not targets:
        return Forecast(run, math.nan, level, empty, notes, refused="none of its tasks has a value")
    others = [c for c in all_curves if c.run != run and (names is None or c.run in names)]
    progress = max(curve.progress[-1] for curve in targets)
    table = predict(targets, others, progress, level)
    if (table.method == ALONE).any() and others:
        few = int((table.method == ALONE).sum())
        notes += (f"{few} tasks: too few finished runs to learn from, forecast from the run alone",)
    return Forecast(run, float(progress), level, table, notes)


def predict(
    targets: list[Curve], others: list[Curve], cut: float, level: float, mode: str = TRANSFER
) -> pd.DataFrame:
    """Final values of `targets` seen up to the share `cut`; nothing later of them is read.

    Args:
      targets: Curves of runs of one size.
      others: Curves of finished runs; empty, too few or `mode` ALONE: the runs' own past decides.
      cut: Share of the training.
      level: Coverage of the intervals.
      mode: TRANSFER or ALONE.

    Returns:
      `COLUMNS`, a row per target that has a point before the cut, in their order.
    """
    seen = [target for target in targets if len(target.before(cut))]
    rows: dict[int, dict[str, object]] = {}
    if mode == TRANSFER:
        rows = _transferred(seen, others, cut, level)
    by_run: dict[str, list[int]] = {}
    for i, target in enumerate(seen):
        if i not in rows:
            by_run.setdefault(target.run, []).append(i)
    for places in by_run.values():
        alone = forecast_alone([seen[i] for i in places], cut, level)
        for i, (value, half) in zip(places, alone, strict=True):
            rows[i] = _row(seen[i], cut, value, half, 0, ALONE)
    return pd.DataFrame([rows[i] for i in range(len(seen))], columns=list(COLUMNS))


def _transferred(
    targets: list[Curve], others: list[Curve], cut: float, level: float
) -> dict[int, dict[str, object]]:
    """Rows by the targets' places, for those whose task enough finished runs have."""
    by_key: dict[forecast_curves.Key, list[Curve]] = {}
    for other in others:
        by_key.setdefault(other.key, []).append(other)
    groups: dict[tuple[object, ...], list[int]] = {}
    for i, target in enumerate(targets):
        moments = target.before(cut)[-forecast_curves.RECENT :]
        groups.setdefault((target.key, *moments.round(6)), []).append(i)
    names = benchmarks(sorted({target.key[0] for target in targets}))
    places, trials, guessed = [], [], []
    for group in groups.values():
        like = targets[group[0]]
        positions = like.before(cut)
        usable = [
            other
            for other in by_key.get(like.key, ())
            if other.progress[0] <= positions[-1] * (1 + 1e-9) and other.progress[-1] > 1 - 1e-9
            and len(other.progress) > 1
        ]  # fmt: skip
        held = _units(usable)
        if len(np.unique(held)) < ENOUGH_UNITS:
            continue
        known = forecast_curves.cut_at(usable, positions)
        errors = np.empty((len(usable), len(forecast_methods.METHODS)))
        edge = np.zeros(len(usable), dtype=bool)
        for unit in np.unique(held):
            own, rest = known.take(held == unit), known.take(held != unit)
            errors[held == unit] = forecast_methods.guesses(own, rest) - own.final[:, None]
            edge[held == unit] = _outside(own, rest)
        noise = np.nan_to_num(np.nanmean(known.variance)) if _any(known.variance) else 0.0
        luck, benchmark = known.final - known.settled, names[like.key[0]]
        trials.append(forecast_methods.Trials(errors, luck, held, edge, float(noise), benchmark))
        seen = forecast_curves.cut_at([targets[i] for i in group], positions)
        guessed.append(forecast_methods.guesses(seen, known))
        places.append((group, len(usable), _outside(seen, known)))
    if not trials:
        return {}
    learned = forecast_methods.combine(trials)
    rows = {}
    for j, (group, count, outside) in enumerate(places):
        radius = learned.radius(level, outside, trials[j].benchmark)
        for i, guess in zip(group, guessed[j] @ learned.weights[j], strict=True):
            # A target scored on fewer examples than the finished runs ends noisier than they did.
            stderr = targets[i].stderr[len(targets[i].before(cut)) - 1]
            extra = max(np.nan_to_num(stderr) ** 2 - trials[j].noise, 0.0)
            half = radius * math.sqrt(learned.scales[j] ** 2 + extra)
            rows[i] = _row(targets[i], cut, float(guess), half, count, TRANSFER)
    return rows


def _units(some: list[Curve]) -> np.ndarray:
    """What to hold out together: sizes where there are enough, else runs."""
    sizes = np.array([curve.size for curve in some], dtype=int)
    if len(np.unique(sizes)) >= ENOUGH_UNITS:
        return sizes
    return np.unique([curve.run for curve in some], return_inverse=True)[1]


def _outside(own: forecast_curves.Cut, rest: forecast_curves.Cut) -> bool:
    """Whether a size lies outside the range of the others."""
    size, margin = own.log_params.mean(), math.log1p(forecast_curves.SAME_SIZE)
    return bool(size < rest.log_params.min() - margin or size > rest.log_params.max() + margin)


def _any(values: np.ndarray) -> bool:
    return bool(np.isfinite(values).any())


def _row(
    target: Curve, cut: float, value: float, half: float, count: int, method: str
) -> dict[str, object]:
    low, high = value - half, value + half
    if is_share(target.key[2]):
        value, low, high = (min(max(each, 0.0), 1.0) for each in (value, low, high))
    seen = target.before(cut)
    return {
        **dict(zip(KEY_COLUMNS, target.key, strict=True)),
        "run": target.run, "domain": target.domain, "size": target.size, "progress": seen[-1],
        "last": target.values[len(seen) - 1],
        "log_linear": forecast_curves.log_linear(target, cut),
        "forecast": value, "low": low, "high": high, "stderr": target.stderr[len(seen) - 1],
        "finished_runs": count, "method": method,
    }  # fmt: skip
