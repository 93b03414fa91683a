"""How far a mixture is from what the swarm supports, and how far it may be."""

from __future__ import annotations

import dataclasses
import functools
import math

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy import optimize

from jaxllm.analysis.curves import Array
from jaxllm.analysis.mixtures.swarm import Swarm
from jaxllm.data.repetition import MAX_EPOCHS

_USUAL = 0.95  # quantile of the swarm's own distances up to which a proposal is near
_INSIDE = 0.02  # total variation from the runs' hull that counts as none
_LEFT_OUT = 60  # runs whose distance from the hull of the others is looked at
_FLOOR = 1e-4  # of a natural share, for the logarithms of KL


@dataclasses.dataclass(frozen=True)
class Guards:
    """Guards of proposals."""

    swarm: Swarm  # the runs; distances of a proposal are held against their own
    natural: Array  # [k] shares to compare with
    measured: Array  # [n] the objective of the runs
    expected: float  # the predicted objective of the natural shares
    tokens: Array  # [k] that each domain has; inf where not known
    budget: float  # tokens of the target run
    repetition: float = MAX_EPOCHS  # epochs of a domain, at most

    @property
    def cap(self) -> Array:
        """Largest share [k] of each domain, by repetition."""
        return np.minimum(self.repetition * self.tokens / self.budget, 1.0)

    def kl(self, mixtures: Array) -> Array:
        """KL divergence [m] from the natural shares, nats."""
        ratio = np.where(mixtures > 0, mixtures / np.maximum(self.natural, _FLOOR), 1.0)
        return np.asarray((mixtures * np.log(ratio)).sum(axis=1))

    def leverage(self, mixtures: Array) -> Array:
        """Leverage [m] in the regression on the shares; 1/n at their mean."""
        away = mixtures - self.swarm.shares.mean(axis=0)
        return np.asarray(1 / len(self.swarm) + ((away @ self._precision) * away).sum(axis=1))

    def hull(self, mixture: Array) -> float:
        """Total variation to the nearest mixture of the runs' mixtures (in least squares)."""
        return _to_hull(mixture, self.swarm.shares)

    def table(self, mixture: Array, predicted: float) -> pd.DataFrame:
        """`guard, value, limit` of a mixture with this predicted objective."""
        one, y = mixture[None], self.measured
        known = min(y.min(), self.expected)
        epochs = (mixture * self.budget / self.tokens).max() or math.nan  # 0: of unknown tokens
        rows = [
            ("epochs of a domain", epochs, self.repetition),
            ("KL from the natural shares", self.kl(one)[0], self._limits["kl"]),
            ("leverage", self.leverage(one)[0], self._limits["leverage"]),
            ("distance to the runs' hull", self.hull(mixture), self._limits["hull"]),
            ("gain on the best known", known - predicted, (np.median(y) - y.min()) / 2),
        ]
        return pd.DataFrame(rows, columns=["guard", "value", "limit"]).astype({"value": float})

    def near(self, mixtures: Array) -> npt.NDArray[np.bool_]:
        """Whether mixtures [m, k] are within the distances that are quick to tell."""
        inside = np.asarray(self.kl(mixtures) <= self._limits["kl"])
        return inside & (self.leverage(mixtures) <= self._limits["leverage"])

    @functools.cached_property
    def _precision(self) -> Array:
        away = self.swarm.shares - self.swarm.shares.mean(axis=0)
        return np.linalg.pinv(away.T @ away, rcond=1e-9, hermitian=True)

    @functools.cached_property
    def _limits(self) -> dict[str, float]:
        x = self.swarm.shares
        some = np.linspace(0, len(x) - 1, min(len(x), _LEFT_OUT)).astype(int)
        # Errors on left-out runs are those of mixtures this far out.
        outside = np.median([_to_hull(x[i], np.delete(x, i, axis=0)) for i in some])
        return {
            "hull": max(float(outside), _INSIDE),
            "kl": float(np.quantile(self.kl(x), _USUAL)),
            "leverage": float(np.quantile(self.leverage(x), _USUAL)),
        }


def _to_hull(mixture: Array, runs: Array) -> float:
    heavy = 100.0  # so that the weights sum to 1
    design = np.vstack([runs.T, np.full(len(runs), heavy)])
    weights, _ = optimize.nnls(design, np.append(mixture, heavy), maxiter=100 * len(runs))
    return float(np.abs(weights @ runs - mixture).sum() / 2)


def broken(table: pd.DataFrame) -> str:
    """The guards that a mixture breaks, with its values and their limits."""
    return ", ".join(
        f"{row.guard} {row.value:.3g} (limit {row.limit:.3g})"
        for row in table.itertuples()
        if row.value > row.limit * (1 + 1e-6)
    )
