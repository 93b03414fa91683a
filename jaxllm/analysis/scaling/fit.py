"""Shared by all scaling laws: the losses of runs, interval estimates and bootstrapped fits."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy import optimize, special

from jaxllm.analysis.curves import Array, is_share, of_metric
from jaxllm.analysis.finding import amount
from jaxllm.analysis.registry import Study

LEVEL = 0.95
DRAWS = 400
FIT_DRAWS = 200  # bootstrap draws of a law without a closed form, of which one takes about 10 ms
_MIN_DRAWS = 20
_POLISHED = 6  # number of starts that are optimized
FEWEST_SIZES = 3  # that a law of size can be fitted to
TRAINING, VALIDATION, BENCHMARK = _KINDS = ("training", "validation", "benchmark")
_LOSSES = {
    "bits_per_byte": "bits per byte",
    "perplexity": "log perplexity",
    "word_perplexity": "log perplexity of the words",
}
_NOTHING = pd.DataFrame(columns=["run", "params", "tokens", "flops", "loss"], dtype=float)
_LATE = 0.15  # share of a run's tokens at its end that tells its final loss
_DENSE = 100  # parts of a log of which the last tells the final loss, if of more measurements
_FAR, _FREE = 10.0, 10  # robust standard deviations of an outlier, and residuals that tell them


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


class Losses(NamedTuple):
    """The loss of the finished runs of one family."""

    points: pd.DataFrame  # a row per run: `run, params, tokens, flops, loss`
    name: str  # what is measured, such as "training loss" or "log perplexity of lambada_openai"
    kind: str  # one of `TRAINING`, `VALIDATION` and `BENCHMARK`
    notes: tuple[str, ...]


def family_losses(study: Study) -> Losses:
    """The loss of every finished run of the family with the most sizes.

    It is the training loss where `FEWEST_SIZES` of a family have it, else bits per byte or log
    perplexity of a text, a task without an accuracy, else of a benchmark. Losses per token compare
    within a family alone. The learning rate of a run in progress has yet to fall, so it has no
    loss.
    """
    records = study.records[np.isfinite(study.records.value.astype(float))]
    texts = set(records.task) - set(records.task[of_metric(is_share, records.metric)])
    scored = records[records.metric.isin([*_LOSSES]) & (records.value > 0)]
    tables = [(TRAINING, "training loss", study.losses)]
    for metric, known in _LOSSES.items():
        for task, rows in scored[scored.metric == metric].groupby("task", sort=False):
            loss = np.log(rows.value) if "perplexity" in metric else rows.value
            kind = VALIDATION if task in texts else BENCHMARK
            tables.append((kind, f"{known} of {task}", rows.assign(loss=loss)))
    found = []
    for kind, name, table in tables:
        ended = table[~table.run.isin(study.planned_tokens)]
        of = ended.run.map(study.families)
        for own, rows in ended.groupby(of, sort=False):
            last = finished(rows.assign(params=rows.run.map(study.params)), "loss")
            sizes = last.params.nunique()
            found.append((sizes >= FEWEST_SIZES, -_KINDS.index(kind), sizes, kind, name, own, last))
    if not found:
        return Losses(_NOTHING, "loss", TRAINING, ("No loss of a finished run is known.",))
    *_, kind, name, own, points = max(found, key=lambda each: each[:3])
    notes = [f"Of the {name} of the {len(points)} finished runs of the family {own}."]
    others = [one for one in dict.fromkeys(study.families.values()) if one != own]
    if others:
        notes.append(f"Other families follow other laws, and are left out: {', '.join(others)}.")
    if running := sorted(r for r in study.planned_tokens if study.families.get(r) == own):
        notes.append(f"In progress, and left out: {', '.join(running)}.")
    return Losses(points, name, kind, tuple(notes))


def finished(rows: pd.DataFrame, *columns: str, last: int = 5) -> pd.DataFrame:
    """A row per run, at its last tokens: means of `columns` over its last measurements.

    They are the `last` ones, by default five (Bhagia et al., arXiv 2412.04403), or the last
    hundredth of a dense log, within the last 15 % of the tokens.
    """
    rows = rows.sort_values("tokens", kind="stable")
    tokens = rows.groupby("run", sort=False).tokens
    count = np.maximum(last, tokens.transform("size") // _DENSE)
    late = rows[
        (tokens.cumcount(ascending=False) < count)
        & (rows.tokens >= (1 - _LATE) * tokens.transform("max"))
    ]
    ends = late.groupby("run", sort=False).tail(1)
    means = late.groupby("run", sort=False)[list(columns)].mean()
    return ends.assign(**{name: ends.run.map(means[name]).astype(float) for name in columns})


def outliers(residual: Array, parameters: int) -> npt.NDArray[np.bool_]:
    """Which residuals of a fit with so many parameters are too large to be noise.

    The noise is the median of the residuals' sizes, without the `parameters` smallest, which the
    fit may have made so; fewer than `_FREE` others do not tell it.
    """
    size = np.abs(residual - np.median(residual))
    free = np.sort(size)[parameters:]
    if len(free) < _FREE:
        return np.zeros(len(size), bool)
    return np.asarray(size > _FAR * 1.4826 * np.median(free))


def names(points: pd.DataFrame) -> str:
    """Runs as a reader may find them: by their sizes and tokens, and names where they have some."""
    return ", ".join(
        (f"{row.run}: " if isinstance(row.run, str) else "")
        + f"{amount(row.params)} on {amount(row.tokens)}"
        for row in points.itertuples()
    )


def usable(
    points: pd.DataFrame, positive: Sequence[str], finite: Sequence[str] = ()
) -> tuple[pd.DataFrame, tuple[str, ...]]:
    """Select rows whose columns are `positive` or `finite` numbers, and `run` (or the row's
    number); with notes on the others. Repeated measurements of one run at one point are averaged.
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

    `model` maps parameters [P] to predictions [n], `jacobian` to their derivatives [n, P]; `starts`
    [S, P] are within the bounds, and those with the lowest error are tried; `samples` are row
    indices of bootstrap samples (`resamples`); from a residual of `delta` on the loss is linear;
    where the fits so far are `hopeless` no others are made. Returns [1 + samples, P]: the best fit,
    then the fits to the samples, which start from it.
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
