"""Laws along steps and sizes: the nesting of data mixing laws, and BiMix.

Nesting (Ye et al., arXiv 2403.16952, §4): of each mixture, L(D) = c + (D0/D)^α along the steps,
then the same along sizes, with α tied over mixtures; a law of the mixture is fitted to what these
predict. Points inside a decaying learning rate are not those of an annealed run.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy import optimize

from jaxllm.analysis.curves import Array
from jaxllm.analysis.mixtures.swarm import Swarm
from jaxllm.errors import UserError

_RATES = np.geomspace(0.02, 3.0, 30)  # exponents at which the search begins


def extrapolated(swarm: Swarm, axis: str, to: float) -> Swarm:
    """The swarm at `to` "steps" or "params", a run for each mixture (at each value of the other
    axis); UserError if a mixture has fewer than three runs along the axis.
    """
    along = getattr(swarm, axis)
    other = swarm.params if axis == "steps" else swarm.steps
    key = np.column_stack([swarm.shares.round(9), np.nan_to_num(other)])
    _, first, member = np.unique(key, axis=0, return_index=True, return_inverse=True)
    member = member.ravel()
    fewest = np.bincount(member).min()
    if fewest < 3 or not np.isfinite(along).all():
        raise UserError(
            f"--at_{axis}: a law along {axis} needs three values of it for each mixture, and "
            f"{swarm.names[int(first[np.argmin(np.bincount(member))])]} has {fewest}"
        )
    values = np.column_stack([_at(along, y, member, to) for y in swarm.values.T])
    at = swarm.rows(first)
    ends = {axis: np.full(len(first), to)}
    return dataclasses.replace(at, values=values, **ends)  # type: ignore[arg-type]


def _at(along: Array, y: Array, member: npt.NDArray[Any], to: float) -> Array:
    """Values [g] at `to` of the mixtures' laws c + s x^-α, with the α of least squared error."""
    groups = [np.flatnonzero(member == group) for group in range(member.max() + 1)]

    def ends(rate: float) -> tuple[float, Array]:
        x, error, end = (along / to) ** -rate, 0.0, []
        for rows in groups:
            design = np.column_stack([np.ones(len(rows)), x[rows]])
            level = np.linalg.lstsq(design, y[rows], rcond=None)[0]
            error += float(((design @ level - y[rows]) ** 2).sum())
            end.append(level.sum())
        return error, np.array(end)

    errors = [ends(rate)[0] for rate in _RATES]
    near = int(np.clip(np.argmin(errors), 1, len(_RATES) - 2))
    exact = optimize.minimize_scalar(
        lambda rate: ends(rate)[0], bounds=(_RATES[near - 1], _RATES[near + 1]), method="bounded"
    )
    return ends(float(exact.x))[1]


@dataclasses.dataclass(frozen=True)
class BiMix:
    """L = (A s^-α + C) r^-β of a domain's own share r at s steps (BiMix, arXiv 2405.14908).

    The paper's factor B only scales A and C, and is 1 here: four parameters are identified.
    """

    a: float
    alpha: float
    c: float
    beta: float
    steps: float  # unit of s
    support: tuple[float, float]  # least and largest share that was fitted

    @classmethod
    def fit(cls, share: Array, steps: Array, loss: Array) -> BiMix:
        """Fit by least squares to shares, steps and losses [n]; UserError for fewer than two
        different shares or three different steps.
        """
        if len(np.unique(share)) < 2 or len(np.unique(steps)) < 3 or not (share > 0).all():
            raise UserError(
                f"BiMix needs two different shares above 0 and three numbers of steps, and has "
                f"{len(np.unique(share))} and {len(np.unique(steps))}"
            )
        unit = float(np.exp(np.log(steps).mean()))
        log_s, log_r = np.log(steps / unit), np.log(share)

        def residual(theta: Array) -> Array:
            a, alpha, c = np.exp(theta[:3])
            return (a * np.exp(-alpha * log_s) + c) * np.exp(-theta[3] * log_r) - loss

        level = np.log(loss.mean() / 2)
        fits = [
            optimize.least_squares(residual, [level, np.log(rate), level, 0.05], xtol=1e-12)
            for rate in (0.1, 0.3, 1.0)
        ]
        *logs, beta = min(fits, key=lambda one: one.cost).x
        a, alpha, c = map(float, np.exp(logs))
        return cls(a, alpha, c, float(beta), unit, (float(share.min()), float(share.max())))

    def __call__(self, share: Array, steps: Array) -> Array:
        """Losses [n] at shares and steps."""
        return (self.a * (steps / self.steps) ** -self.alpha + self.c) * share**-self.beta

    def supports(self, share: Array, slack: float = 0.1) -> Array:
        """Whether shares [n] are within the fitted ones, or `slack` of them beyond."""
        low, high = self.support
        return np.asarray((share >= low * (1 - slack)) & (share <= high * (1 + slack)))


def bimix_table(swarm: Swarm, own: Mapping[str, str]) -> pd.DataFrame:
    """BiMix of each target over all runs, by the share of its `own` domain.

    Columns: `target, domain, A, alpha, C, beta, low, high, error, outside`: the fitted shares, the
    mean relative error when each mixture in turn is left out, and how many of those have a share
    beyond what is then fitted.
    """
    _, mixture = np.unique(swarm.shares, axis=0, return_inverse=True)
    mixture, rows = mixture.ravel(), []
    for target, domain in own.items():
        share = swarm.shares[:, swarm.domains.index(domain)]
        loss = swarm.values[:, swarm.targets.index(target)]
        law, errors, outside = BiMix.fit(share, swarm.steps, loss), [], 0
        for left in range(mixture.max() + 1):
            seen, new = mixture != left, mixture == left
            try:
                one = BiMix.fit(share[seen], swarm.steps[seen], loss[seen])
            except UserError:  # two mixtures: nothing is left out
                break
            errors += list(np.abs(one(share[new], swarm.steps[new]) / loss[new] - 1))
            outside += not one.supports(share[new]).all()
        parameters = law.a, law.alpha, law.c, law.beta, *law.support
        error = float(np.mean(errors or [np.nan]))
        rows.append((target, domain, *parameters, error, outside))
    names = ["target", "domain", "A", "alpha", "C", "beta", "low", "high", "error", "outside"]
    return pd.DataFrame(rows, columns=names)
