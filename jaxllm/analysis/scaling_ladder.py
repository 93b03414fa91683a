"""A task's accuracy for a model not yet trained, in two steps up a ladder of small ones.

Bhagia et al., "Establishing Task Scaling Laws via Compute-Efficient Model Ladders" (arXiv
2412.04403): the finished runs of the ladder give a soft metric (bits per byte of the correct
answer, or the loss) as E + A / N^alpha + B / D^beta; all their checkpoints give the accuracy as a
sigmoid of the soft metric, which moves long before the accuracy does.
"""

from __future__ import annotations

import dataclasses
import itertools
import math

import numpy as np
import pandas as pd
from scipy import special

from jaxllm.analysis import scaling_fit, scaling_optimum
from jaxllm.analysis.scaling_fit import DRAWS, Estimate

_MIN_POINTS = 8


@dataclasses.dataclass(frozen=True)
class Prediction:
    """What the ladder expects of a new run; the intervals are for the run, not for its mean."""

    params: float
    tokens: float
    soft: Estimate
    accuracy: Estimate


@dataclasses.dataclass(frozen=True)
class Ladder:
    """Parameters and tokens -> soft metric -> accuracy.

    Attributes:
      first: Step 1, the parametric law of the soft metric (its "loss").
      parameters: Step 2: `bottom`, `top`, `steepness`, `middle` of
        accuracy = bottom + (top - bottom) / (1 + exp(steepness (soft - middle))).
      table: Checkpoints of step 2: `soft`, `accuracy`, `fitted`, `residual`.
      n: Number of those.
      refused: Why there is no ladder, "" where there is one.
      notes: What was left out of the data.
    """

    first: scaling_optimum.ComputeOptimal
    parameters: dict[str, Estimate]
    table: pd.DataFrame
    n: int
    refused: str = ""
    notes: tuple[str, ...] = ()
    draws: np.ndarray = dataclasses.field(default_factory=lambda: np.empty((0, 4)), repr=False)
    seed: int = 0

    def at(self, params: float, tokens: float) -> Prediction:
        """Soft metric and accuracy of a run of `params` on `tokens`; NaN when refused."""
        if self.refused:
            return Prediction(params, tokens, Estimate(math.nan), Estimate(math.nan))
        rng = np.random.default_rng(self.seed)
        soft = self.first.loss_draws(params, tokens)
        # A new run scatters about both steps as those of the ladder do.
        noise = rng.choice(self.first.table.residual.to_numpy(), len(soft))
        soft = soft * np.exp(np.concatenate([[0.0], noise[1:]]))
        accuracy = _sigmoid(self.draws, soft[:, None])[:, 0]
        accuracy[1:] += rng.choice(self.table.residual.to_numpy(), len(accuracy) - 1)
        return Prediction(
            params, tokens, Estimate.of(soft[0], soft[1:]), Estimate.of(accuracy[0], accuracy[1:])
        )

    @property
    def sentence(self) -> str:
        """What was found, in one sentence."""
        if self.refused:
            return f"No ladder: {self.refused}."
        largest = self.first.table.sort_values("params").iloc[-1]
        ahead = self.at(2 * largest.params, 2 * largest.tokens)
        return (
            f"From {len(self.first.table)} runs and {self.n} checkpoints, a model of "
            f"{ahead.params:.2g} parameters on {ahead.tokens:.2g} tokens is expected at an "
            f"accuracy of {ahead.accuracy}."
        )


def ladder(
    runs: pd.DataFrame, *, chance: float = math.nan, draws: int = DRAWS, seed: int = 0
) -> Ladder:
    """Fits both steps and bootstraps the runs through them.

    Args:
      runs: A row per checkpoint: `run, params, tokens, soft, accuracy`; the soft metric falls as
        the model gets better. The last checkpoint of each run counts as finished.
      chance: The bottom of the sigmoid; NaN to fit it.
      draws: Bootstrap draws.
      seed: Of the bootstrap.
    """
    frame, notes = scaling_fit.usable(runs, ("params", "tokens", "soft"))
    both, _ = scaling_fit.usable(runs, ("params", "tokens", "soft"), ("accuracy",))
    single = (frame.run == "").all()
    last = frame if single else frame.sort_values("tokens").groupby("run", as_index=False).last()
    finished = last.rename(columns={"soft": "loss"})
    first = scaling_optimum.parametric(finished, draws=draws, seed=seed)

    def refuse(reason: str) -> Ladder:
        return Ladder(first, {}, pd.DataFrame(), len(both), reason, notes)

    if first.refused:
        return refuse(f"step 1 cannot be fitted, as {first.refused}")
    if len(both) < _MIN_POINTS:
        return refuse(f"{len(both)} points with both metrics, {_MIN_POINTS} are needed")
    x, y = both.soft.to_numpy(), both.accuracy.to_numpy()
    if np.ptp(x) == 0 or np.ptp(y) == 0:
        return refuse("one of the metrics is the same at all points")
    middle, width = x.mean(), x.std()
    floor = chance if math.isfinite(chance) else 0.0
    ceiling = max(1.0, float(y.max()))
    low = [floor, min(y.max(), ceiling), 0.05 / width, x.min() - 6 * width]
    high = [floor if math.isfinite(chance) else y.max(), ceiling, 20 / width, x.max()]
    starts = np.array(
        list(
            itertools.product(
                [floor, y.min()], [y.max(), (y.max() + ceiling) / 2, ceiling],
                np.array([0.5, 1.0, 2.0, 4.0]) / width, middle + width * np.array([-3, -1, 0, 1]),
            )
        )
    )  # fmt: skip
    starts = np.clip(starts, low, high)

    def model(sigmoid: np.ndarray) -> np.ndarray:
        return _sigmoid(sigmoid, x)

    best = scaling_fit.best_fit(model, y, starts, low=low, high=high)
    weights = scaling_fit.resamples(len(x), draws, seed, None if single else both.run.to_numpy())
    again, _ = scaling_fit.fit(
        model, y, np.tile(best, (draws, 1)), weights=weights, low=low, high=high
    )
    found = np.vstack([best, again])
    rise = (found[:, 1] - found[:, 0]) * (
        special.expit(-found[:, 2] * (x.min() - found[:, 3]))
        - special.expit(-found[:, 2] * (x.max() - found[:, 3]))
    )
    residual = y - model(best[None])[0]
    if rise[0] < 2 * residual.std() or np.quantile(rise, 0.025) <= 0.2 * rise[0]:
        return refuse("the accuracy does not rise with the soft metric beyond its noise")
    names = ("bottom", "top", "steepness", "middle")
    return Ladder(
        first, {name: Estimate.of(v[0], v[1:]) for name, v in zip(names, found.T, strict=True)},
        both.assign(fitted=y - residual, residual=residual), len(both), "", notes, found, seed,
    )  # fmt: skip


def _sigmoid(parameters: np.ndarray, soft: np.ndarray) -> np.ndarray:
    """[B, 4] and [n] or [B, n] -> [B, n]."""
    bottom, top, steepness, middle = (parameters[:, [i]] for i in range(4))
    return bottom + (top - bottom) * special.expit(-steepness * (soft - middle))
