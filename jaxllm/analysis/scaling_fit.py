"""What all scaling fits share: cleaned input, an estimate with its interval, one robust fit.

The fit is a Levenberg-Marquardt with Huber weights that solves many problems at once: all starts
of a grid, or all draws of a bootstrap. A draw differs from the data in the weights of its points
only, so that a bootstrap costs little more than a fit.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd

from jaxllm.run.records import OK

LEVEL = 0.95
DRAWS = 400
MIN_DRAWS = 20

Model = Callable[[np.ndarray], np.ndarray]
"""Parameters [B, P] -> predictions [B, n]."""


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A number and its interval at `LEVEL`; the ends are NaN where the doubt is unknown."""

    value: float
    low: float = math.nan
    high: float = math.nan

    def __str__(self) -> str:
        if math.isnan(self.low):
            return f"{self.value:.3g} (interval unknown)"
        return f"{self.value:.3g} ({LEVEL:.0%} interval {self.low:.3g} to {self.high:.3g})"

    def covers(self, truth: float) -> bool:
        """Whether `truth` lies in the interval."""
        return self.low <= truth <= self.high

    @classmethod
    def of(cls, value: float, draws: np.ndarray) -> Estimate:
        """`value` with the percentile interval of its bootstrap `draws`, NaN draws left out."""
        draws = draws[np.isfinite(draws)]
        if len(draws) < MIN_DRAWS:
            return cls(float(value))
        low, high = np.quantile(draws, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
        return cls(float(value), float(low), float(high))


def points(records: pd.DataFrame, task: str, **metrics: str) -> pd.DataFrame:
    """The input of the scaling fits from the records table: a row per run and checkpoint.

    Args:
      records: Columns of `jaxllm.run.records.Record`.
      task: The task whose metrics to take.
      **metrics: Name of the column = name of the metric, e.g. `loss="bits_per_byte"`, or
        `soft="answer_bits_per_byte", accuracy="accuracy"` for a ladder.

    Returns:
      `run, params, tokens, flops` and a column per metric, NaN where it was not measured.
    """
    good = records[(records.task == task) & (records.status == OK)]
    good = good[good.metric.isin(metrics.values())].drop_duplicates(
        ["run", "step", "metric"], keep="last"
    )
    keys = ["run", "params", "tokens", "flops"]
    table = good.pivot_table(index=keys, columns="metric", values="value", sort=False)
    columns = {column: table.get(metric, math.nan) for column, metric in metrics.items()}
    return pd.DataFrame(columns, index=table.index).reset_index()


def usable(
    points: pd.DataFrame, columns: Sequence[str], signed: Sequence[str] = ()
) -> tuple[pd.DataFrame, tuple[str, ...]]:
    """The usable rows of `points` and their `run`, and what was left out.

    Of a usable row all `columns` are positive numbers and all `signed` ones are numbers. Repeated
    measurements of one run at one point are averaged, not counted twice.
    """
    wanted = [*columns, *signed]
    missing = [column for column in wanted if column not in points]
    if missing:
        return pd.DataFrame(columns=[*wanted, "run"]), (f"no column {', '.join(missing)}",)
    numbers = points[wanted].apply(pd.to_numeric, errors="coerce").astype("float64")
    good = np.isfinite(numbers).all(axis=1) & (numbers[list(columns)] > 0).all(axis=1)
    run = points["run"].astype(str) if "run" in points else pd.Series("", index=points.index)
    keys = ["run", *[column for column in columns if column in ("params", "tokens", "flops")]]
    frame = numbers.assign(run=run)[good]
    if len(keys) > 1 and "run" in points:
        frame = frame.groupby(keys, sort=False, as_index=False).mean()
    notes = []
    if not good.all():
        notes.append(f"{int((~good).sum())} of {len(good)} points lack a valid number")
    if len(frame) < good.sum():
        notes.append(f"{int(good.sum()) - len(frame)} repeated points were averaged")
    return frame.reset_index(drop=True), tuple(notes)


def resamples(n: int, draws: int, seed: int, groups: np.ndarray | None = None) -> np.ndarray:
    """Bootstrap weights [draws, n]: how often each point is drawn; `groups` are drawn whole."""
    rng = np.random.default_rng(seed)
    if groups is None:
        return rng.multinomial(n, np.full(n, 1 / n), size=draws).astype("float64")
    _, member = np.unique(groups, return_inverse=True)
    count = int(member.max()) + 1
    drawn = rng.multinomial(count, np.full(count, 1 / count), size=draws)
    return drawn[:, member].astype("float64")


def huber(residuals: np.ndarray, delta: float) -> np.ndarray:
    """Huber loss (1964): r²/2 up to `delta`, linear beyond it."""
    size = np.abs(residuals)
    with np.errstate(invalid="ignore"):
        return np.where(size <= delta, size**2 / 2, delta * (size - delta / 2))


def fit(
    model: Model,
    target: np.ndarray,
    starts: np.ndarray,
    *,
    weights: np.ndarray | None = None,
    delta: float = math.inf,
    low: Sequence[float] | float = -math.inf,
    high: Sequence[float] | float = math.inf,
    iterations: int = 120,
) -> tuple[np.ndarray, np.ndarray]:
    """Minimises sum_i w_i Huber_delta(model_i - target_i), summed and not averaged, B times.

    Args:
      model: Vectorised over a leading dimension of parameters.
      target: [n] or [B, n].
      starts: [B, P].
      weights: [n] or [B, n]; 0 takes a point out.
      delta: Where the Huber loss becomes linear; infinite for least squares.
      low: Bounds of the parameters, [P] or one number; so `high`.
      iterations: At most this many steps.

    Returns:
      Parameters [B, P] and objectives [B].
    """
    found = np.clip(np.array(starts, dtype="float64"), low, high)
    shape = (len(found), np.shape(target)[-1])
    targets = np.broadcast_to(target, shape)
    scales = np.broadcast_to(1.0 if weights is None else weights, shape)
    lowest, highest = np.broadcast_to(low, found.shape), np.broadcast_to(high, found.shape)
    identity = np.eye(found.shape[1])

    def score(parameters: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        with np.errstate(all="ignore"):
            predicted = model(parameters)
            total = (scales[rows] * huber(predicted - targets[rows], delta)).sum(axis=1)
        return predicted, np.where(np.isfinite(total), total, math.inf)

    open_rows = np.arange(len(found))
    predicted, objective = score(found, open_rows)
    damping = np.full(len(found), 1e-2)
    for _ in range(iterations):
        at, lower, upper = found[open_rows], lowest[open_rows], highest[open_rows]
        steps = 1e-6 * (1 + np.abs(at))
        with np.errstate(all="ignore"):
            slopes = [
                (model(at + steps * unit) - predicted) / steps[:, [i]]
                for i, unit in enumerate(identity)
            ]
        jacobian = np.nan_to_num(np.stack(slopes, axis=2), posinf=0.0, neginf=0.0)
        error = np.nan_to_num(predicted - targets[open_rows], posinf=0.0, neginf=0.0)
        robust = scales[open_rows] * np.minimum(1.0, delta / np.maximum(np.abs(error), 1e-300))
        weighted = (jacobian * robust[:, :, None]).transpose(0, 2, 1)
        gradient = (weighted @ error[:, :, None])[:, :, 0]
        held = ((at <= lower) & (gradient > 0)) | ((at >= upper) & (gradient < 0))
        free = (~held).astype("float64")
        normal = (weighted @ jacobian) * free[:, :, None] * free[:, None, :]
        diagonal = np.einsum("bpp->bp", normal)
        ridge = damping[open_rows, None] * diagonal
        ridge += 1e-12 * diagonal.max(axis=1, keepdims=True) + held
        normal = normal + np.maximum(ridge, 1e-300)[:, :, None] * identity
        step = np.linalg.solve(normal, -(gradient * free)[:, :, None])[:, :, 0]
        trial = np.clip(at + step, lower, upper)
        tried, reached = score(trial, open_rows)
        before = objective[open_rows]
        better = reached < before
        found[open_rows[better]] = trial[better]
        objective[open_rows[better]] = reached[better]
        eased = np.where(better, damping[open_rows] / 4, damping[open_rows] * 5)
        damping[open_rows] = np.clip(eased, 1e-9, 1e10)
        still = np.where(better, before - reached > 1e-9 * reached, eased < 1e8)
        predicted = np.where(better[:, None], tried, predicted)[still]
        open_rows = open_rows[still]
        if not len(open_rows):
            break
    return found, objective


def best_fit(
    model: Model,
    target: np.ndarray,
    starts: np.ndarray,
    *,
    delta: float = math.inf,
    low: Sequence[float] | float = -math.inf,
    high: Sequence[float] | float = math.inf,
    polish: int = 48,
) -> np.ndarray:
    """The best fit [P] of those from the `polish` starts that are nearest to the data."""
    with np.errstate(all="ignore"):
        total = huber(model(starts) - target, delta).sum(axis=1)
    order = np.argsort(np.where(np.isfinite(total), total, math.inf), kind="stable")[:polish]
    found, objective = fit(model, target, starts[order], delta=delta, low=low, high=high)
    return np.asarray(found[int(np.argmin(objective))])
