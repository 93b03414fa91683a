"""Which data mixture gives the lowest loss: a regression over small runs, as in RegMix.

RegMix (Liu et al., arXiv 2407.01492) trains many small models on random mixtures, regresses the
loss on the mixture and takes the mean of the best simulated mixtures. Its regressor is LightGBM;
ours is a Gaussian process on the square roots of the weights (the loss of a domain falls steeply
with its first per cent), so that every prediction has an interval and the leave-one-out error is
a closed form (Rasmussen and Williams, Gaussian Processes for Machine Learning, 5.4.2).
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pandas as pd
from scipy import linalg, optimize, stats

from jaxllm.analysis.scaling_fit import LEVEL

_MIN_RUNS = 12
_SIMULATED, _KEPT = 100_000, 128
_BATCH = 5_000


@dataclasses.dataclass(frozen=True)
class MixtureRegression:
    """A loss as a function of the mixture.

    Attributes:
      target: Name of the loss.
      spearman: Rank correlation of leave-one-out predictions with the losses.
      error: Root mean square of the leave-one-out errors, in the unit of the loss.
      p_value: That mixtures say nothing about the loss: a fit on half of the runs ranks the other
        half by chance.
      table: A row per domain: `domain`, `best` weight, its `low` and `high` among the mixtures
        kept, and `effect`, the change of the loss when its weight grows by 0.01 at the expense
        of all others (at the mean mixture).
      best_loss: Predicted loss of the best mixture, its interval for a new run follows.
      best_interval: Low and high end.
      n: Number of runs.
      refused: Why there is no regression, "" where there is one.
      notes: What was left out of the data.
    """

    target: str
    spearman: float
    error: float
    p_value: float
    table: pd.DataFrame
    best_loss: float
    best_interval: tuple[float, float]
    n: int
    refused: str = ""
    notes: tuple[str, ...] = ()
    process: _Process | None = dataclasses.field(default=None, repr=False)

    def predict(self, mixtures: pd.DataFrame) -> pd.DataFrame:
        """`loss`, `low` and `high` of runs on `mixtures` (columns as fitted); NaN if refused."""
        if self.process is None:
            blank = np.full((len(mixtures), 3), math.nan)
            return pd.DataFrame(blank, columns=["loss", "low", "high"], index=mixtures.index)
        mean, variance = self.process.predict(_shares(mixtures[list(self.table.domain)]))
        reach = stats.norm.ppf((1 + LEVEL) / 2) * np.sqrt(variance)
        columns = {"loss": mean, "low": mean - reach, "high": mean + reach}
        return pd.DataFrame(columns, index=mixtures.index)

    @property
    def sentence(self) -> str:
        """What was found, in one sentence."""
        if self.refused:
            return f"No regression of {self.target} on the mixture: {self.refused}."
        most = self.table.sort_values("best", ascending=False).head(3)
        weights = ", ".join(f"{row.domain} {row.best:.0%}" for row in most.itertuples())
        return (
            f"Mixtures of runs left out are ranked by {self.target} at Spearman "
            f"{self.spearman:.3f} ({self.n} runs); the best mixture is mostly {weights}, with "
            f"a predicted {self.best_loss:.3g} "
            f"({self.best_interval[0]:.3g} to {self.best_interval[1]:.3g})."
        )


def mixture_regression(
    mixtures: pd.DataFrame, losses: pd.Series, *, prior: pd.Series | None = None, seed: int = 0
) -> MixtureRegression:
    """Regresses `losses` on `mixtures` and finds the mixture with the lowest predicted loss.

    Args:
      mixtures: A row per run, a column per domain: weights, scaled to a sum of 1.
      losses: The loss of each run, same index; its name is the target.
      prior: Mean of the mixtures that are simulated for the optimum, e.g. the shares of the
        corpus; default the mean of `mixtures`.
      seed: Of the simulation.
    """
    target = str(losses.name or "loss")
    weights = mixtures.apply(pd.to_numeric, errors="coerce").to_numpy("float64")
    values = pd.to_numeric(losses.reindex(mixtures.index), errors="coerce").to_numpy("float64")
    good = np.isfinite(weights).all(axis=1) & (weights >= 0).all(axis=1)
    good &= (weights.sum(axis=1) > 0) & np.isfinite(values)
    notes: tuple[str, ...] = ()
    if not good.all():
        notes = (f"{int((~good).sum())} of {len(good)} runs lack a mixture or a loss",)
    kept, y = mixtures[good], values[good]
    n = int(good.sum())
    if n < _MIN_RUNS:
        return _refuse(target, f"{n} runs are too few, {_MIN_RUNS} are needed", n, notes)
    if len(mixtures.columns) < 2 or len(kept.drop_duplicates()) < _MIN_RUNS:
        return _refuse(target, "too few different mixtures", n, notes)
    if np.ptp(y) == 0:
        return _refuse(target, "all losses are equal", n, notes)
    shares = _shares(kept)
    process = _Process.fit(shares, y)
    left_out = process.left_out()
    spearman = stats.spearmanr(left_out, y).statistic
    p_value = _half_by_half(shares, y, seed)
    if not p_value < 1 - LEVEL:
        reason = f"fitted on half of the runs it does not rank the others (p = {p_value:.2g})"
        return _refuse(target, reason, n, notes)
    center = shares.mean(axis=0) if prior is None else _shares(prior.to_frame().T[kept.columns])[0]
    best = _best_mixtures(process, center, seed)
    mixture = best.mean(axis=0)
    mean, variance = process.predict(mixture[None])
    reach = stats.norm.ppf((1 + LEVEL) / 2) * math.sqrt(variance[0])
    low, high = np.quantile(best, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0)
    table = pd.DataFrame(
        {"domain": list(kept.columns), "best": mixture, "low": low, "high": high,
         "effect": _effects(process, shares.mean(axis=0))}
    )  # fmt: skip
    return MixtureRegression(
        target, float(spearman), float(np.sqrt(np.mean((left_out - y) ** 2))), float(p_value),
        table, float(mean[0]), (float(mean[0] - reach), float(mean[0] + reach)), n, "", notes,
        process,
    )  # fmt: skip


def _shares(mixtures: pd.DataFrame) -> np.ndarray:
    weights = mixtures.to_numpy("float64")
    return weights / weights.sum(axis=1, keepdims=True)


def _half_by_half(shares: np.ndarray, y: np.ndarray, seed: int) -> float:
    """p-value that a fit on one half of the runs ranks the other half by chance, one-sided.

    Leave-one-out ranks will not do: their hyperparameters have seen the run that is left out.
    """
    order = np.random.default_rng(seed).permutation(len(y))
    train, test = order[: len(y) // 2], order[len(y) // 2 :]
    if np.ptp(y[train]) == 0:
        return 1.0
    predicted = _Process.fit(shares[train], y[train]).mean(shares[test])
    if np.ptp(predicted) == 0 or np.ptp(y[test]) == 0:
        return 1.0
    return float(stats.spearmanr(predicted, y[test], alternative="greater").pvalue)


def _best_mixtures(process: _Process, center: np.ndarray, seed: int) -> np.ndarray:
    """The `_KEPT` best of the simulated mixtures: Dirichlet with mean `center`."""
    rng = np.random.default_rng(seed)
    strength = np.maximum(center, 1e-4) * len(center)
    simulated = rng.dirichlet(strength, size=_SIMULATED)
    parts = np.split(simulated, range(_BATCH, _SIMULATED, _BATCH))
    predicted = np.concatenate([process.mean(part) for part in parts])
    return simulated[np.argsort(predicted)[:_KEPT]]


def _effects(process: _Process, at: np.ndarray, step: float = 0.01) -> np.ndarray:
    """Change of the loss per domain when `step` of the weight moves to it from all others."""
    moved = (1 - step) * at + step * np.eye(len(at))
    return process.mean(moved) - process.mean(at[None])


@dataclasses.dataclass(frozen=True)
class _Process:
    """A Gaussian process with a linear and a squared-exponential kernel on square-root shares."""

    shares: np.ndarray
    center: float
    scale: float
    log_hyper: np.ndarray  # log of: smooth variance, length, linear variance, noise variance
    inverse: np.ndarray
    solved: np.ndarray

    @classmethod
    def fit(cls, shares: np.ndarray, y: np.ndarray) -> _Process:
        """Hyperparameters of the highest marginal likelihood (L-BFGS-B from one start)."""
        center, scale = float(y.mean()), float(y.std())
        unit = (y - center) / scale

        def cost(log_hyper: np.ndarray) -> float:
            covariance = _kernel(shares, shares, log_hyper)
            covariance[np.diag_indices(len(unit))] += math.exp(log_hyper[3])
            lower = linalg.cholesky(covariance, lower=True, check_finite=False)
            half = linalg.solve_triangular(lower, unit, lower=True, check_finite=False)
            return float(half @ half / 2 + np.log(np.diag(lower)).sum())

        start = np.log([1.0, 1.5, 1.0, 0.02])
        bounds = [(-7, 7), (-2, 3), (-9, 7), (-9, 1)]
        found = optimize.minimize(
            cost, start, method="L-BFGS-B", bounds=bounds, options={"maxiter": 25, "ftol": 1e-5}
        )
        covariance = _kernel(shares, shares, found.x)
        covariance[np.diag_indices(len(unit))] += math.exp(found.x[3])
        inverse = linalg.inv(covariance, check_finite=False)
        return cls(shares, center, scale, found.x, inverse, inverse @ unit)

    def mean(self, shares: np.ndarray) -> np.ndarray:
        """Expected losses [n] of mixtures [n, domains]."""
        covariance = _kernel(shares, self.shares, self.log_hyper)
        return self.center + self.scale * covariance @ self.solved

    def predict(self, shares: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Means and variances, noise of a new run included."""
        cross = _kernel(shares, self.shares, self.log_hyper)
        prior = np.exp(self.log_hyper[0]) + np.exp(self.log_hyper[2])  # |sqrt(share)| = 1
        explained = ((cross @ self.inverse) * cross).sum(axis=1)
        variance = prior + math.exp(self.log_hyper[3]) - explained
        return self.mean(shares), self.scale**2 * np.maximum(variance, 1e-12)

    def left_out(self) -> np.ndarray:
        """Each run's loss as predicted from all others."""
        unit = self.solved / np.diag(self.inverse)
        covariance = _kernel(self.shares, self.shares, self.log_hyper)
        noise = math.exp(self.log_hyper[3])
        own = covariance @ self.solved + noise * self.solved
        return self.center + self.scale * (own - unit)


def _kernel(a: np.ndarray, b: np.ndarray, log_hyper: np.ndarray) -> np.ndarray:
    smooth, length, linear, _ = np.exp(log_hyper)
    inner = np.sqrt(np.maximum(a, 0)) @ np.sqrt(np.maximum(b, 0)).T
    return smooth * np.exp((inner - 1) / length**2) + linear * inner  # |a - b|² = 2 - 2 a.b


def _refuse(target: str, reason: str, n: int, notes: tuple[str, ...]) -> MixtureRegression:
    table = pd.DataFrame(columns=["domain", "best", "low", "high", "effect"])
    nan = math.nan
    return MixtureRegression(target, nan, nan, nan, table, nan, (nan, nan), n, reason, notes)
