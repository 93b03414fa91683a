"""Data mixture with the lowest predicted loss, after RegMix (Liu et al., arXiv 2407.01492).

The losses of small models on random mixtures are regressed on the mixture, and the best mixture is
the mean of the best simulated ones. RegMix uses LightGBM; here it is a kernel ridge regression on
the square roots of the weights (the loss of a domain falls steeply with its first per cent). Its
leave-one-out errors (Rasmussen and Williams, Gaussian Processes for Machine Learning, 5.4.2) select
the kernel and give the prediction interval.
"""

from __future__ import annotations

import dataclasses
import math
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy import stats

from jaxllm.analysis.curves import Array
from jaxllm.analysis.finding import Finding
from jaxllm.analysis.scaling.fit import LEVEL

_MIN_RUNS = 12
_SIMULATED, _BATCHES, _BEST = 100_000, 20, 128
_LENGTHS = np.geomspace(0.3, 10.0, 8)
_RIDGES = np.geomspace(1e-6, 10.0, 22)


class Ridge(NamedTuple):
    """Kernel ridge regression with a squared-exponential kernel on square-root shares."""

    shares: Array  # [runs, domains]
    mean: float
    length: float  # length scale of the kernel
    solved: Array  # [runs] dual coefficients
    left_out: Array  # [runs] leave-one-out errors, loss minus prediction

    @classmethod
    def fit(cls, shares: Array, y: Array) -> Ridge:
        """Fit with the length scale and ridge of least squared leave-one-out error."""
        fits = []
        for length in _LENGTHS:
            values, vectors = np.linalg.eigh(_kernel(shares, shares, length))
            for ridge in _RIDGES:
                inverse = 1 / (np.maximum(values, 0) + ridge)
                solved = vectors @ (inverse * (vectors.T @ (y - y.mean())))
                left_out = solved / (vectors**2 @ inverse)
                fits.append(cls(shares, float(y.mean()), length, solved, left_out))
        return min(fits, key=lambda one: float((one.left_out**2).sum()))

    def predict(self, shares: Array) -> Array:
        """Predict losses [n] of mixtures [n, domains]."""
        batches = np.array_split(shares, _BATCHES)
        kernels = (_kernel(batch, self.shares, self.length) for batch in batches)
        return self.mean + np.concatenate([kernel @ self.solved for kernel in kernels])


def _kernel(a: Array, b: Array, length: float) -> Array:
    return np.exp((np.sqrt(a) @ np.sqrt(b).T - 1) / length**2)  # |√a - √b|² = 2 - 2 √a.√b


@dataclasses.dataclass(frozen=True)
class MixtureRegression(Finding):
    """Loss as a function of the mixture; `ridge` is None where refused.

    The table has a row per domain: `domain`, `best` weight, and its `low` and `high` among the best
    simulated mixtures; `spearman` correlates leave-one-out predictions with the losses.
    """

    spearman: float = math.nan
    ridge: Ridge | None = dataclasses.field(default=None, repr=False)

    def predict(self, mixtures: pd.DataFrame) -> pd.DataFrame:
        """Predict `loss`, `low`, `high` for `mixtures` (columns as fitted); NaN if refused."""
        loss, half = np.full(len(mixtures), math.nan), math.nan
        if self.ridge is not None:
            loss = self.ridge.predict(_shares(mixtures[list(self.table.domain)]))
            half = float(np.quantile(np.abs(self.ridge.left_out), LEVEL, method="higher"))
        return pd.DataFrame({"loss": loss, "low": loss - half, "high": loss + half}, mixtures.index)


def mixture_regression(mixtures: pd.DataFrame, losses: pd.Series) -> MixtureRegression:
    """Regress `losses` on `mixtures` and find the mixture with the lowest predicted loss.

    `mixtures` has weights of any sum, a row per run and a column per domain; `losses` has the same
    index. Simulated mixtures are from a Dirichlet distribution about the mean of `mixtures`.
    """
    losses, total = losses.reindex(mixtures.index), mixtures.sum(axis=1)
    good = (mixtures >= 0).all(axis=1) & (total > 0) & np.isfinite(total * losses)
    lost = int((~good).sum())
    notes = (f"{lost} of {len(good)} runs lack a mixture or a loss",) if lost else ()
    shares, y = _shares(mixtures[good]), losses[good].to_numpy()
    distinct = len(np.unique(shares, axis=0))
    if distinct < _MIN_RUNS:
        reason = f"{distinct} different mixtures are too few, {_MIN_RUNS} are needed"
        return MixtureRegression.refuse(reason, notes)
    p_value = _half_by_half(shares, y)
    if not p_value < 1 - LEVEL:
        reason = f"fitted on half of the runs it does not rank the others (p = {p_value:.2g})"
        return MixtureRegression.refuse(reason, notes)
    ridge = Ridge.fit(shares, y)
    concentration = np.maximum(shares.mean(axis=0), 1e-4) * shares.shape[1]
    simulated = np.random.default_rng(0).dirichlet(concentration, size=_SIMULATED)
    best = simulated[np.argsort(ridge.predict(simulated))[:_BEST]]
    low, high = np.quantile(best, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0)
    table = pd.DataFrame(
        {"domain": mixtures.columns, "best": best.mean(axis=0), "low": low, "high": high}
    )
    spearman = float(stats.spearmanr(y - ridge.left_out, y).statistic)
    result = MixtureRegression("", table, notes=notes, spearman=spearman, ridge=ridge)
    predicted = result.predict(table.set_index("domain")[["best"]].T).iloc[0]
    most = table.sort_values("best", ascending=False).head(3)
    sentence = (
        f"Mixtures of left-out runs are ranked by {losses.name or 'loss'} at Spearman "
        f"{spearman:.3f} ({len(y)} runs); the best mixture is mostly "
        f"{', '.join(f'{row.domain} {row.best:.0%}' for row in most.itertuples())}, with a "
        f"predicted {predicted.loss:.3g} ({predicted.low:.3g} to {predicted.high:.3g})."
    )
    return dataclasses.replace(result, sentence=sentence)


def _shares(mixtures: pd.DataFrame) -> Array:
    return mixtures.div(mixtures.sum(axis=1), axis=0).to_numpy("float64")


def _half_by_half(shares: Array, y: Array) -> float:
    """One-sided p-value that a fit to one half of the runs ranks the other half by chance."""
    # Leave-one-out ranks would be biased: the kernel was selected with the run that is left out.
    train, test = np.array_split(np.random.default_rng(0).permutation(len(y)), 2)
    predicted = Ridge.fit(shares[train], y[train]).predict(shares[test])
    constant = np.ptp(predicted) == 0 or np.ptp(y[test]) == 0
    return 1.0 if constant else stats.spearmanr(predicted, y[test], alternative="greater").pvalue
