"""Task accuracy of a model not yet trained, from a ladder of small models in two steps.

Bhagia et al., "Establishing Task Scaling Laws via Compute-Efficient Model Ladders" (arXiv
2412.04403): step 1 fits a soft metric (bits per byte of the correct answer, or the loss) as
E + A / N^alpha + B / D^beta to the finished runs of the ladder; step 2 fits the accuracy as a
sigmoid of the soft metric to all their checkpoints. The soft metric improves long before the
accuracy.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy import special

from jaxllm.analysis.curves import Array
from jaxllm.analysis.finding import Finding
from jaxllm.analysis.registry import SIZES, Study, analysis
from jaxllm.analysis.scaling.chinchilla import ComputeOptimal, parametric
from jaxllm.analysis.scaling.fit import FIT_DRAWS, UNKNOWN, IntervalEstimate, fit, resamples, usable

_MIN_POINTS = 8
_MOST_TASKS = 4
_SOFT_METRICS = ("bits_per_byte", "perplexity", "brier", "nll")


class Prediction(NamedTuple):
    """Prediction for a new run; prediction intervals of the run, not of the mean."""

    soft: IntervalEstimate
    accuracy: IntervalEstimate


@dataclasses.dataclass(frozen=True)
class Ladder(Finding):
    """Parameters and tokens -> soft metric -> accuracy.

    The table has the checkpoints of step 2: `soft`, `accuracy`, `fitted`, `residual`.

    Attributes:
      first: step 1, the parametric law of the soft metric (its "loss").
      draws: [B, 4] bootstrap draws, the fit itself first, of bottom, top, steepness and middle of
        step 2: accuracy = bottom + (top - bottom) / (1 + exp(steepness (soft - middle))).
    """

    first: ComputeOptimal = dataclasses.field(default_factory=lambda: ComputeOptimal(""))
    draws: Array = dataclasses.field(default_factory=lambda: np.empty((0, 4)), repr=False)

    def at(self, params: float, tokens: float) -> Prediction:
        """Predict soft metric and accuracy of a run of `params` on `tokens`; NaN where refused."""
        if self.refused:
            return Prediction(UNKNOWN, UNKNOWN)
        rng = np.random.default_rng(0)
        soft = self.first.losses(params, tokens)
        # Add the residual scatter of both steps for a new run.
        noise = rng.choice(self.first.table.residual.to_numpy(), len(soft))
        soft = soft * np.exp(np.concatenate([[0.0], noise[1:]]))
        accuracy = _sigmoid(self.draws.T, soft)
        accuracy[1:] += rng.choice(self.table.residual.to_numpy(), len(accuracy) - 1)
        return Prediction(IntervalEstimate.of(soft), IntervalEstimate.of(accuracy))


@analysis(
    SIZES,
    "Task ladders",
    needs=Study.several_sizes,
    place=50,
    caption="Assumes that the soft metric follows a power law of parameters and tokens, and "
    "accuracy one sigmoid of it at every size; beyond the largest size neither is tested.",
)
def task_ladders(study: Study) -> list[Finding]:
    """Fit ladders for the first tasks with both an accuracy and a soft metric."""
    records = study.records[np.isfinite(study.records.value)]
    findings: list[Finding] = []
    for task, rows in records.groupby("task", sort=False):
        metrics = set(rows.metric)
        soft = next((metric for metric in _SOFT_METRICS if metric in metrics), None)
        if soft is None or "accuracy" not in metrics or len(findings) == _MOST_TASKS:
            continue
        wide = rows.pivot_table("value", ["run", "params", "tokens"], "metric", aggfunc="last")
        values = np.log(wide[soft]) if soft == "perplexity" else wide[soft]
        points = wide.reset_index().assign(soft=values.to_numpy())
        result = ladder(points, chance=float(rows.chance[rows.metric == "accuracy"].iloc[-1]))
        findings.append(dataclasses.replace(result, title=f"Task ladder: {task}"))
    reason = "no task has bits per byte, perplexity or Brier score beside its accuracy"
    return findings or [Finding.refuse(reason)]


def ladder(
    runs: pd.DataFrame, *, chance: float = math.nan, draws: int = FIT_DRAWS, seed: int = 0
) -> Ladder:
    """Fit both steps, with a bootstrap over runs.

    `runs` has a row per checkpoint: `run, params, tokens, soft, accuracy`; lower is better for the
    soft metric, and the last checkpoint of each run counts as finished. `chance` is the lower
    asymptote of the sigmoid, NaN to fit it.
    """
    frame, notes = usable(runs, ("params", "tokens", "soft"))
    both, _ = usable(runs, ("params", "tokens", "soft"), ("accuracy",))
    last = frame.sort_values("tokens").groupby("run", as_index=False).last()
    first = parametric(last.rename(columns={"soft": "loss"}), draws=draws, seed=seed)
    x, y = both.soft.to_numpy(), both.accuracy.to_numpy()
    if first.refused:
        return Ladder.refuse(f"step 1 cannot be fitted, as {first.refused}", notes)
    if len(both) < _MIN_POINTS:
        few = f"{len(both)} points with both metrics, {_MIN_POINTS} are needed"
        return Ladder.refuse(few, notes)
    if np.ptp(x) == 0 or np.ptp(y) == 0:
        return Ladder.refuse("one of the metrics is the same at all points", notes)
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
    if rise[0] < 2 * residual.std() or np.quantile(rise[1:], 0.025) <= 0.2 * rise[0]:
        flat = "the accuracy does not rise with the soft metric beyond its noise"
        return Ladder.refuse(flat, notes)
    table = both.assign(fitted=y - residual, residual=residual)
    result = Ladder("", table, notes=notes, first=first, draws=sigmoids)
    largest = last.sort_values("params").iloc[-1]
    params, tokens = 2 * largest.params, 2 * largest.tokens
    sentence = (
        f"From {len(last)} runs and {len(both)} checkpoints, a model of {params:.2g} parameters on "
        f"{tokens:.2g} tokens is expected at an accuracy of {result.at(params, tokens).accuracy}."
    )
    return dataclasses.replace(result, sentence=sentence)


def _sigmoid(parameters: Array, soft: Array) -> Array:
    """Accuracies at `soft`; the first axis of `parameters` has the four parameters."""
    bottom, top, steepness, middle = parameters
    return np.asarray(bottom + (top - bottom) * special.expit(-steepness * (soft - middle)))
