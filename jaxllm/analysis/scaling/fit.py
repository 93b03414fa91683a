"""Shared by all scaling laws: cleaned points, interval estimates and bootstrapped fits."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import pandas as pd
from scipy import optimize, special

from jaxllm.analysis.curves import Array
from jaxllm.analysis.registry import Study

LEVEL = 0.95
DRAWS = 400
FIT_DRAWS = 200  # bootstrap draws of a law without a closed form, of which one takes about 10 ms
_MIN_DRAWS = 20
_POLISHED = 6  # number of starts that are optimized
_WARM_UP = 0.01  # share of a run's tokens at its start whose losses follow no law


@dataclasses.dataclass(frozen=True)
class IntervalEstimate:
    """A number and its interval at `LEVEL`; unknown ends are NaN."""

    value: float
    low: float = math.nan
    high: float = math.nan

    def __str__(self) -> str:
        if math.isnan(self.low):
            return f"{self.value:.3g} (interval unknown)"
        return f"{self.value:.3g} ({LEVEL:.0%} interval {self.low:.3g} to {self.high:.3g})"

    @classmethod
    def of(cls, draws: Array) -> IntervalEstimate:
        """First draw, with the percentile interval of the other finite ones."""
        value, rest = float(draws[0]), draws[1:][np.isfinite(draws[1:])]
        if len(rest) < _MIN_DRAWS:
            return cls(value)
        low, high = np.quantile(rest, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
        return cls(value, float(low), float(high))


UNKNOWN = IntervalEstimate(math.nan)


def loss_points(study: Study) -> tuple[pd.DataFrame, str]:
    """Losses of all runs, without the first 1 % of the tokens.

    The loss is the logged training loss where three sizes have it, else bits per byte or log
    perplexity of the task that most runs were scored on.

    Returns:
      `run, params, tokens, flops, loss`, and a note that names the loss.
    """
    frame, name = study.losses, "the training loss"
    if frame.params.nunique() < 3:
        scored = study.records[study.records.metric.isin(["bits_per_byte", "perplexity"])]
        scored = scored[np.isfinite(scored.value) & (scored.value > 0)]
        if scored.empty:
            return frame.iloc[:0], "No loss is known of three sizes."
        metric, task = scored.groupby(["metric", "task"]).run.nunique().idxmax()
        frame = scored[(scored.metric == metric) & (scored.task == task)]
        loss = np.log(frame.value) if metric == "perplexity" else frame.value
        frame = frame.assign(loss=loss, params=frame.run.map(study.params))
        name = f"{'log perplexity' if metric == 'perplexity' else 'bits per byte'} of {task}"
    late = frame.tokens > _WARM_UP * frame.groupby("run").tokens.transform("max")
    columns = ["run", "params", "tokens", "flops", "loss"]
    return frame.loc[late, columns], f"The loss is {name}, at all checkpoints of the runs."


def usable(
    points: pd.DataFrame, positive: Sequence[str], finite: Sequence[str] = ()
) -> tuple[pd.DataFrame, tuple[str, ...]]:
    """Select rows whose columns are `positive` or `finite` numbers; with notes on the others.

    Repeated measurements of one run at one point are averaged.

    Returns:
      These columns and `run`, the number of the row where `points` name no run.
    """
    columns = [*positive, *finite]
    numbers = points.reindex(columns=columns).apply(pd.to_numeric, errors="coerce").astype(float)
    good = np.isfinite(numbers).all(axis=1) & (numbers[list(positive)] > 0).all(axis=1)
    run = points.run.astype(str) if "run" in points else np.arange(len(points))
    keys = ["run", *(column for column in positive if column in ("params", "tokens", "flops"))]
    frame = numbers.assign(run=run)[good].groupby(keys, sort=False, as_index=False).mean()
    notes = []
    if not good.all():
        notes.append(f"{int((~good).sum())} of {len(good)} points lack a valid number")
    if len(frame) < good.sum():
        notes.append(f"{int(good.sum()) - len(frame)} repeated points were averaged")
    return frame, tuple(notes)


def resamples(groups: np.ndarray, draws: int, seed: int) -> Iterator[np.ndarray]:
    """Row indices of cluster bootstrap samples: rows of one group are drawn together."""
    _, member = np.unique(groups, return_inverse=True)
    count = int(member.max()) + 1
    rng = np.random.default_rng(seed)
    for times in rng.multinomial(count, np.full(count, 1 / count), size=draws):
        yield np.repeat(np.arange(len(member)), times[member])


def squared_errors(x: Array, y: Array, degree: int) -> float:
    """Residual sum of squares of the least-squares polynomial."""
    centered = x - x.mean()
    return float(((y - np.polyval(np.polyfit(centered, y, degree), centered)) ** 2).sum())


def fit(
    model: Callable[[Array], Array],
    jacobian: Callable[[Array], Array],
    target: Array,
    starts: Array,
    samples: Iterator[np.ndarray],
    *,
    bounds: tuple[Sequence[float], Sequence[float]],
    delta: float = math.inf,
    hopeless: Callable[[Sequence[Array]], bool] = lambda fits: False,
) -> Array:
    """Fit parameters by the least sum of Huber losses of `model - target`.

    Args:
      model: parameters [P] -> predictions [n].
      jacobian: parameters [P] -> derivatives of the predictions [n, P].
      starts: [S, P], within the bounds; those with the lowest error are tried.
      samples: row indices of bootstrap samples; see `resamples`.
      delta: residual from which the loss is linear; infinite for least squares.
      hopeless: whether the fits so far leave no use for the others, which are then not made.

    Returns:
      [1 + samples, P]: the best fit, then the fits to the samples, which start from it.
    """

    def solve(start: Array, rows: np.ndarray, **loss: object) -> Array:
        result = optimize.least_squares(
            lambda p: model(p)[rows] - target[rows], start, lambda p: jacobian(p)[rows],
            bounds=bounds, x_scale="jac", **loss,
        )  # fmt: skip
        return np.asarray(result.x)

    def error(p: Array) -> float:
        return float(special.huber(delta, model(p) - target).sum())

    huber = {"loss": "huber", "f_scale": delta} if delta < math.inf else {}
    all_rows = np.arange(len(target))
    order = np.argsort([np.abs(model(start) - target).sum() for start in starts], kind="stable")
    # Far from the optimum a Huber loss with a small delta stalls, so start with least squares.
    nearest = min((solve(starts[i], all_rows) for i in order[:_POLISHED]), key=error)
    best = solve(nearest, all_rows, **huber)
    fits = [best]
    for rows in samples:
        if hopeless(fits):
            break
        fits.append(solve(best, rows, **huber))
    return np.array(fits)
