"""Data mixture with the lowest predicted loss: a regression over small runs, as in RegMix.

RegMix (Liu et al., arXiv 2407.01492) trains many small models on random mixtures, regresses the
loss on the mixture and takes the mean of the best simulated mixtures. RegMix uses LightGBM; here it
is a kernel ridge regression on the square roots of the weights (the loss of a domain falls steeply
with its first per cent). Its leave-one-out errors, in closed form (Rasmussen and Williams, Gaussian
Processes for Machine Learning, 5.4.2), select the kernel and give the prediction interval.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pandas as pd
from scipy import stats

from jaxllm.analysis.curves import Array
from jaxllm.analysis.finding import Finding
from jaxllm.analysis.scaling.fit import LEVEL

_MIN_RUNS = 12
_SIMULATED, _BEST = 100_000, 128
_BATCH = 5_000
_LENGTHS = np.geomspace(0.3, 10.0, 8)
_RIDGES = np.geomspace(1e-6, 10.0, 22)


@dataclasses.dataclass(frozen=True)
class MixtureRegression(Finding):
    """Loss as a function of the mixture.

    The table has a row per domain: `domain`, `best` weight, its `low` and `high` among the best
    simulated mixtures, and `effect`, the change of the loss when 0.01 of the weight moves to it
    from all others (at the mean mixture).

    Attributes:
      spearman: rank correlation of leave-one-out predictions with the losses.
      p_value: p-value of the null hypothesis that the loss does not depend on the mixture, from
        ranking one half of the runs by a fit to the other.
      best_loss: predicted loss of the best mixture.
      count: number of runs.
      ridge: the regression; None where refused.
    """

    spearman: float = math.nan
    p_value: float = math.nan
    best_loss: float = math.nan
    count: int = 0
    ridge: Ridge | None = dataclasses.field(default=None, repr=False)

    def predict(self, mixtures: pd.DataFrame) -> pd.DataFrame:
        """Predict `loss`, `low`, `high` for `mixtures` (columns as fitted); NaN if refused."""
        loss, half = np.full(len(mixtures), math.nan), math.nan
        if self.ridge is not None:
            loss = self.ridge.predict(_shares(mixtures[list(self.table.domain)]))
            half = self.ridge.half_interval()
        return pd.DataFrame({"loss": loss, "low": loss - half, "high": loss + half}, mixtures.index)


def mixture_regression(
    mixtures: pd.DataFrame, losses: pd.Series, *, prior: pd.Series | None = None, seed: int = 0
) -> MixtureRegression:
    """Regress `losses` on `mixtures` and find the mixture with the lowest predicted loss.

    Args:
      mixtures: weights, a row per run and a column per domain; rows are scaled to a sum of 1.
      losses: loss of each run, same index; its name is the target.
      prior: mean of the simulated mixtures, e.g. the shares of the corpus; default the mean of
        `mixtures`.
      seed: seed of the simulation.
    """
    weights = mixtures.apply(pd.to_numeric, errors="coerce").to_numpy("float64")
    values = pd.to_numeric(losses.reindex(mixtures.index), errors="coerce").to_numpy("float64")
    good = np.isfinite(weights).all(axis=1) & (weights >= 0).all(axis=1)
    good &= (weights.sum(axis=1) > 0) & np.isfinite(values)
    notes: tuple[str, ...] = ()
    if not good.all():
        notes = (f"{int((~good).sum())} of {len(good)} runs lack a mixture or a loss",)
    rows, y = mixtures[good], values[good]

    def refuse(reason: str) -> MixtureRegression:
        return MixtureRegression.refuse(reason, notes)

    if len(y) < _MIN_RUNS:
        return refuse(f"{len(y)} runs are too few, {_MIN_RUNS} are needed")
    if len(rows.columns) < 2 or len(rows.drop_duplicates()) < _MIN_RUNS:
        return refuse("too few different mixtures")
    if np.ptp(y) == 0:
        return refuse("all losses are equal")
    shares = _shares(rows)
    p_value = _half_by_half(shares, y, seed)
    if not p_value < 1 - LEVEL:
        return refuse(f"fitted on half of the runs it does not rank the others (p = {p_value:.2g})")
    ridge = Ridge.fit(shares, y)
    spearman = float(stats.spearmanr(y - ridge.left_out, y).statistic)
    center = shares.mean(axis=0) if prior is None else _shares(prior.to_frame().T[rows.columns])[0]
    best = _best_mixtures(ridge, center, seed)
    low, high = np.quantile(best, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0)
    table = pd.DataFrame(
        {"domain": list(rows.columns), "best": best.mean(axis=0), "low": low, "high": high,
         "effect": _effects(ridge, shares.mean(axis=0))}
    )  # fmt: skip
    best_loss, half = float(ridge.predict(best.mean(axis=0)[None])[0]), ridge.half_interval()
    most = table.sort_values("best", ascending=False).head(3)
    mix = ", ".join(f"{row.domain} {row.best:.0%}" for row in most.itertuples())
    sentence = (
        f"Mixtures of left-out runs are ranked by {losses.name or 'loss'} at Spearman "
        f"{spearman:.3f} ({len(y)} runs); the best mixture is mostly {mix}, with a predicted "
        f"{best_loss:.3g} ({best_loss - half:.3g} to {best_loss + half:.3g})."
    )
    return MixtureRegression(
        sentence, table, notes=notes, spearman=spearman, p_value=p_value, best_loss=best_loss,
        count=len(y), ridge=ridge,
    )  # fmt: skip


def _shares(mixtures: pd.DataFrame) -> Array:
    weights = mixtures.to_numpy("float64")
    return weights / weights.sum(axis=1, keepdims=True)


def _half_by_half(shares: Array, y: Array, seed: int) -> float:
    """One-sided p-value that a fit to one half of the runs ranks the other half by chance.

    Leave-one-out ranks would be biased: the kernel was selected with the run that is left out.
    """
    order = np.random.default_rng(seed).permutation(len(y))
    train, test = order[: len(y) // 2], order[len(y) // 2 :]
    predicted = Ridge.fit(shares[train], y[train]).predict(shares[test])
    if np.ptp(predicted) == 0 or np.ptp(y[test]) == 0:
        return 1.0
    return float(stats.spearmanr(predicted, y[test], alternative="greater").pvalue)


def _best_mixtures(ridge: Ridge, center: Array, seed: int) -> Array:
    """The `_BEST` mixtures of those simulated from a Dirichlet with mean `center`."""
    rng = np.random.default_rng(seed)
    simulated = rng.dirichlet(np.maximum(center, 1e-4) * len(center), size=_SIMULATED)
    batches = np.split(simulated, range(_BATCH, _SIMULATED, _BATCH))
    predicted = np.concatenate([ridge.predict(batch) for batch in batches])
    return simulated[np.argsort(predicted)[:_BEST]]


def _effects(ridge: Ridge, at: Array, step: float = 0.01) -> Array:
    """Change of the loss per domain when `step` of the weight moves to it from all others."""
    return ridge.predict((1 - step) * at + step * np.eye(len(at))) - ridge.predict(at[None])


@dataclasses.dataclass(frozen=True)
class Ridge:
    """Kernel ridge regression with a squared-exponential kernel on square-root shares.

    Attributes:
      shares: [runs, domains].
      mean: mean of the losses.
      length: length scale of the kernel.
      solved: [runs] dual coefficients.
      left_out: [runs] leave-one-out errors, loss minus prediction.
    """

    shares: Array
    mean: float
    length: float
    solved: Array
    left_out: Array

    @classmethod
    def fit(cls, shares: Array, y: Array) -> Ridge:
        """Fit with the length scale and ridge of least squared leave-one-out error."""
        fits = []
        for length in _LENGTHS:
            values, vectors = np.linalg.eigh(_kernel(shares, shares, length))
            projected = vectors.T @ (y - y.mean())
            for ridge in _RIDGES:
                inverse = 1 / (np.maximum(values, 0) + ridge)
                solved = vectors @ (inverse * projected)
                left_out = solved / (vectors**2 @ inverse)
                fits.append(cls(shares, float(y.mean()), length, solved, left_out))
        return min(fits, key=lambda one: float((one.left_out**2).sum()))

    def predict(self, shares: Array) -> Array:
        """Predict losses [n] of mixtures [n, domains]."""
        return self.mean + _kernel(shares, self.shares, self.length) @ self.solved

    def half_interval(self) -> float:
        """Half width of the prediction interval of a new run, from leave-one-out errors."""
        return float(np.quantile(np.abs(self.left_out), LEVEL, method="higher"))


def _kernel(a: Array, b: Array, length: float) -> Array:
    return np.exp((np.sqrt(a) @ np.sqrt(b).T - 1) / length**2)  # |√a - √b|² = 2 - 2 √a.√b
