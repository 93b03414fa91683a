"""Task accuracy of a model not yet trained, from a ladder of small models.

In two steps (Bhagia et al., "Establishing Task Scaling Laws via Compute-Efficient Model Ladders",
arXiv 2412.04403): step 1 fits a soft metric (bits per byte of the correct answer, or the loss) as
E + A / N^alpha + B / D^beta to the finished runs of the ladder; step 2 fits the accuracy as a
sigmoid of the soft metric to all their checkpoints. The soft metric improves long before the
accuracy. Or directly (arXiv 2512.08894): -log of the accuracy above chance is A / N^alpha +
B / D^beta, of the finished runs beyond chance. A backtest on the largest size chooses.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from scipy import special

from jaxllm.analysis.curves import Array
from jaxllm.analysis.finding import Finding, amount
from jaxllm.analysis.registry import SIZES, Study, analysis
from jaxllm.analysis.scaling.chinchilla import ComputeOptimal, parametric
from jaxllm.analysis.scaling.fit import (
    FEWEST_SIZES,
    UNKNOWN,
    IntervalEstimate,
    finished,
    fit,
    resamples,
    usable,
)

_DRAWS = 100
_MIN_POINTS = 5
_MOST_TASKS = 4
_BEYOND_CHANCE = 0.05  # share of the way from chance to 1 from which a run tells the direct law
_CLEARLY = 0.5  # ratio of backtested errors from which one method is clearly better
_SOFT_METRICS = ("bits_per_byte", "perplexity", "brier", "nll")
TWO_STEPS, DIRECT = "two steps", "direct"


class Prediction(NamedTuple):
    """Prediction for a new run; prediction intervals of the run, not of the mean."""

    soft: IntervalEstimate
    accuracy: IntervalEstimate


@dataclasses.dataclass(frozen=True)
class Ladder(Finding):
    """Parameters and tokens -> soft metric -> accuracy, or straight to the accuracy.

    The table has the checkpoints of step 2: `soft`, `accuracy`, `fitted`, `residual`.
    """

    # Step 1: the parametric law of the soft metric (its "loss").
    first: ComputeOptimal = dataclasses.field(default_factory=lambda: ComputeOptimal(""))
    # [B, 4] bootstrap draws, the fit itself first, of bottom, top, steepness and middle of step 2:
    # accuracy = bottom + (top - bottom) / (1 + exp(steepness (soft - middle))).
    draws: Array = dataclasses.field(default_factory=lambda: np.empty((0, 4)), repr=False)
    # The parametric law of -log of the accuracy above `chance`.
    direct: ComputeOptimal = dataclasses.field(default_factory=lambda: ComputeOptimal.refuse(""))
    chance: float = math.nan
    method: str = TWO_STEPS  # or DIRECT; its interval spans the other if that is as good
    # Mean absolute error of each method on the largest size, fitted without it.
    errors: Mapping[str, float] = dataclasses.field(default_factory=dict)

    def at(self, params: float, tokens: float) -> Prediction:
        """Predict soft metric and accuracy of a run of `params` on `tokens`; NaN where refused."""
        if self.refused:
            return Prediction(UNKNOWN, UNKNOWN)
        rng = np.random.default_rng(0)
        # Add the residual scatter of both steps for a new run.
        soft = _scattered(self.first, params, tokens, rng)
        accuracy = _sigmoid(self.draws.T, soft)
        accuracy[1:] += rng.choice(self.table.residual.to_numpy(), len(accuracy) - 1)
        by = {TWO_STEPS: IntervalEstimate.of(accuracy.clip(0, 1))}
        if not self.direct.refused:
            loss = _scattered(self.direct, params, tokens, rng)
            accuracy = self.chance + (1 - self.chance) * np.exp(-loss).clip(0, 1)
            by[DIRECT] = IntervalEstimate.of(accuracy)
        worst = self.errors.get(self.method, math.inf) / _CLEARLY
        admitted = [by[name] for name, error in self.errors.items() if error <= worst]
        ends = [by[self.method], *admitted]
        return Prediction(
            IntervalEstimate.of(soft),
            IntervalEstimate(
                by[self.method].value, min(e.low for e in ends), max(e.high for e in ends)
            ),
        )


@analysis(
    SIZES,
    "Task ladders",
    needs=Study.several_sizes,
    place=50,
    caption="Of finished runs of one family. In two steps, by the soft metric and a sigmoid of it, "
    "or directly by parameters and tokens, if that clearly predicts the largest size better from "
    "the smaller ones. Beyond the largest size neither is tested.",
    method="Task ladders (Bhagia et al. 2024, arXiv 2412.04403) and the direct law of accuracy "
    "(arXiv 2512.08894).",
)
def task_ladders(study: Study) -> list[Finding]:
    """Fit ladders for tasks with both an accuracy and a soft metric, those of most runs first."""
    records = study.records[np.isfinite(study.records.value.astype(float))]
    records = records[(records.tokens > 0) & ~records.run.isin(study.planned_tokens)]
    tables = []
    for (task, _), rows in records.groupby(["task", "family"], sort=False):
        metrics = set(rows.metric)
        soft = next((metric for metric in _SOFT_METRICS if metric in metrics), None)
        if soft and "accuracy" in metrics and rows.params.nunique() >= FEWEST_SIZES:
            tables.append((rows.run.nunique(), task, soft, rows))
    largest: dict[str, tuple[int, str, str, pd.DataFrame]] = {}
    for table in sorted(tables, key=lambda table: -table[0]):
        largest.setdefault(table[1], table)
    findings: list[Finding] = []
    for _, task, soft, rows in [*largest.values()][:_MOST_TASKS]:
        wide = rows.pivot_table("value", ["run", "params", "tokens"], "metric", aggfunc="last")
        values = np.log(wide[soft]) if soft == "perplexity" else wide[soft]
        points = wide.reset_index().assign(soft=values.to_numpy())
        result = ladder(points, chance=float(rows.chance[rows.metric == "accuracy"].iloc[-1]))
        metric = f"{'log ' * (soft == 'perplexity')}{soft.replace('_', ' ')}"
        notes = (f"The runs of the family {rows.family.iloc[0]}, by {metric}.", *result.notes)
        findings.append(dataclasses.replace(result, title=f"Task ladder: {task}", notes=notes))
    reason = "no family has bits per byte, perplexity or Brier score of a task beside its accuracy"
    return findings or [Finding.refuse(f"{reason}, of three sizes")]


def ladder(
    runs: pd.DataFrame, *, chance: float = math.nan, draws: int = _DRAWS, seed: int = 0
) -> Ladder:
    """Fit both methods, with a bootstrap over runs; a backtest on the largest size chooses.

    The direct law is taken where it errs half as much as the two steps, which know more; two
    exponents, where they predict the soft metric of the largest size better than tied ones. `runs`
    has a row per checkpoint: `run, params, tokens, soft, accuracy`; lower is better for the soft
    metric. `chance` is the lower asymptote of the sigmoid, NaN to fit it.
    """
    frame, notes = usable(runs, ("params", "tokens", "soft"))
    both, _ = usable(runs, ("params", "tokens", "soft"), ("accuracy",))
    ended = finished(both, "soft", "accuracy")
    held = ended[ended.params == ended.params.max()]
    smaller = frame[frame.params < frame.params.max()], both[both.params < both.params.max()]
    trials = {tied: _errors(_fit(*smaller, chance, tied, 0, seed), held) for tied in (True, False)}
    tied = not trials[False]["soft"] < trials[True]["soft"]
    result = _fit(frame, both, chance, tied, draws, seed)
    if result.refused:
        return dataclasses.replace(result, notes=notes)
    if tied:
        notes += ("One exponent of parameters and tokens predicts better, or needs fewer runs.",)
    off = {method: trials[tied][method] for method in (TWO_STEPS, DIRECT)}
    if result.direct.refused:
        off[DIRECT] = math.inf
    chosen = DIRECT if off[DIRECT] < _CLEARLY * off[TWO_STEPS] else TWO_STEPS
    known = {method: error for method, error in off.items() if math.isfinite(error)}
    result = dataclasses.replace(result, notes=notes, method=chosen, errors=known)
    largest = ended.sort_values(["params", "tokens"]).iloc[-1]
    params, tokens = 2 * largest.params, 2 * largest.tokens
    tested = ", ".join(f"{error:.3f} ({method})" for method, error in known.items())
    sentence = (
        f"From {ended.run.nunique()} runs and {len(both)} checkpoints, a model of {amount(params)} "
        f"parameters on {amount(tokens)} tokens, twice the largest, is expected at an accuracy of "
        f"{result.at(params, tokens).accuracy}, by the {chosen} law; "
        + (f"without the largest size, its accuracy was missed by {tested}." if tested else
           "no size can be held out of so few to test it.")
    )  # fmt: skip
    return dataclasses.replace(result, sentence=sentence)


def _errors(trial: Ladder, held: pd.DataFrame) -> dict[str, float]:
    """Mean absolute errors of the soft metric, relative, and of the accuracy by each method."""
    errors = {"soft": math.inf, TWO_STEPS: math.inf, DIRECT: math.inf}
    methods = [] if trial.refused else [TWO_STEPS] if trial.direct.refused else [TWO_STEPS, DIRECT]
    for method in methods:
        by = dataclasses.replace(trial, method=method)
        ahead = [by.at(run.params, run.tokens) for run in held.itertuples()]
        soft, accuracy = np.array([[p.soft.value, p.accuracy.value] for p in ahead]).T
        errors[method] = float(np.abs(accuracy - held.accuracy).mean())
        errors["soft"] = float(np.abs(soft / held.soft - 1).mean())
    return errors


def _fit(
    frame: pd.DataFrame, both: pd.DataFrame, chance: float, tied: bool, draws: int, seed: int
) -> Ladder:
    """Fit both steps, and the direct law, with one exponent or two."""
    options: dict[str, Any] = {"tied": tied, "draws": draws, "seed": seed}
    last = finished(frame, "soft").assign(loss=lambda table: table.soft)
    ended = finished(both, "soft", "accuracy")
    first = parametric(last, **options)
    if first.refused:
        return Ladder.refuse(f"step 1 cannot be fitted, as {first.refused}")
    beyond = (ended.accuracy - chance) / (1 - chance)
    clear = (beyond > _BEYOND_CHANCE) & (beyond < 1)
    direct = parametric(ended.assign(loss=-np.log(beyond.where(clear))), floor=False, **options)
    x, y = both.soft.to_numpy(), both.accuracy.to_numpy()
    if len(both) < _MIN_POINTS:
        return Ladder.refuse(f"{len(both)} points with both metrics, {_MIN_POINTS} are needed")
    if np.ptp(x) == 0 or np.ptp(y) == 0:
        return Ladder.refuse("one of the metrics is the same at all points")
    known = int(math.isfinite(chance))
    floor, ceiling, width = chance if known else 0.0, max(1.0, y.max() + 1e-3), x.std()
    low = [floor, y.max(), 0.05 / width, x.min() - 6 * width]
    high = [y.max(), ceiling, 20 / width, x.max()]
    starts = itertools.product(
        [floor] if known else [floor, y.min()], [y.max(), (y.max() + ceiling) / 2, ceiling],
        np.array([0.5, 1.0, 2.0, 4.0]) / width, x.mean() + width * np.array([-3, -1, 0, 1]),
    )  # fmt: skip

    def full(free: Array) -> Array:
        return np.concatenate([[chance], free]) if known else free

    def jacobian(free: Array) -> Array:
        bottom, top, steepness, middle = full(free)
        share = special.expit(-steepness * (x - middle))
        slope = (top - bottom) * share * (1 - share)
        slopes = [1 - share, share, -slope * (x - middle), slope * steepness]
        return np.stack(slopes[known:], axis=1)

    free = fit(
        lambda free: _sigmoid(full(free), x), jacobian, y,
        np.clip(list(starts), low, high)[:, known:],
        resamples(both.run.to_numpy(), draws, seed), bounds=(low[known:], high[known:]),
    )  # fmt: skip
    sigmoids = np.apply_along_axis(full, 1, free)
    ends = _sigmoid(sigmoids.T[..., None], np.array([x.min(), x.max()]))
    rise = ends[:, 0] - ends[:, 1]
    residual = y - _sigmoid(sigmoids[0], x)
    if rise[0] < 2 * residual.std() or np.quantile(rise, 0.025) <= 0.2 * rise[0]:
        return Ladder.refuse("the accuracy does not rise with the soft metric beyond its noise")
    table = both.assign(fitted=y - residual, residual=residual)
    return Ladder("", table, first=first, draws=sigmoids, direct=direct, chance=chance)


def _scattered(
    law: ComputeOptimal, params: float, tokens: float, rng: np.random.Generator
) -> Array:
    """Draws of a law's loss, the fit first, with the scatter of runs about it."""
    loss = law.losses(params, tokens)
    noise = rng.choice(law.table.residual.to_numpy(), len(loss)) if len(law.table) else 0.0
    return loss * np.exp(np.where(np.arange(len(loss)) > 0, noise, 0.0))


def _sigmoid(parameters: Array, soft: Array) -> Array:
    """Accuracies at `soft`; the first axis of `parameters` has the four parameters."""
    bottom, top, steepness, middle = parameters
    return np.asarray(bottom + (top - bottom) * special.expit(-steepness * (soft - middle)))
