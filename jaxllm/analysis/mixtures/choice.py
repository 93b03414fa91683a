"""The law of each target, chosen by cross-validation; its interval by a bootstrap over mixtures."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from scipy import stats

from jaxllm.analysis.curves import Array
from jaxllm.analysis.mixtures.laws import LAWS, Predict
from jaxllm.analysis.mixtures.swarm import Swarm
from jaxllm.errors import UserError

DEFAULT = ("linear", "log_linear", "exponential", "power", "kernel")
DRAWS = 50
FEWEST_DRAWS = 10
_FOLDS = 5
_LARGE = 256  # runs from which one division into folds is enough; below, it is repeated
_REPEATS = 3
_TOP = 0.1  # share of the mixtures among which a rank correlation is hard


@dataclasses.dataclass(frozen=True)
class Fit:
    """Laws fitted to a swarm."""

    swarm: Swarm  # the runs
    chosen: Mapping[str, str]  # target -> its law; targets that are refused are missing
    predict: Mapping[str, Predict]  # target -> that law: row 0 by all runs, others by bootstrap
    left_out: Array  # [n, t], prediction of each run by the fits without it, NaN where refused
    # `target, law, error, spearman, top_spearman, regret, chosen, refused`; `error` is the root
    # mean squared error on left-out mixtures, and so are the ranks.
    scores: pd.DataFrame

    def refused(self) -> dict[str, str]:
        """Targets without a law, and why."""
        failed = self.scores[~self.scores.target.isin(list(self.chosen))]
        return {str(name): str(rows.refused.iloc[-1]) for name, rows in failed.groupby("target")}


def ranking(predicted: Array, measured: Array) -> dict[str, float]:
    """How well predictions rank mixtures, less being better: Spearman over all and among the
    predicted best tenth, and the regret, the measured value of the predicted best above the best
    measured.
    """
    top = np.argsort(predicted)[: max(3, round(_TOP * len(predicted)))]
    return {
        "spearman": _spearman(predicted, measured),
        "top_spearman": _spearman(predicted[top], measured[top]),
        "regret": float(measured[np.argmin(predicted)] - measured.min()),
    }


def _spearman(a: Array, b: Array) -> float:
    constant = np.ptp(a) == 0 or np.ptp(b) == 0
    return float("nan") if constant else float(stats.spearmanr(a, b).statistic)


def fit(swarm: Swarm, laws: Sequence[str] = DEFAULT, draws: int = DRAWS, seed: int = 0) -> Fit:
    """Fit to each target the law that predicts left-out mixtures best; UserError if the runs differ
    in size or steps, or there is no law that they identify.
    """
    swarm.check_alike()
    if draws < FEWEST_DRAWS:
        raise UserError(f"{draws} draws of a bootstrap are too few: need {FEWEST_DRAWS}")
    n, k = swarm.shares.shape
    distinct = len(np.unique(swarm.shares, axis=0))
    rank = int(np.linalg.matrix_rank(swarm.shares, tol=1e-6 * np.sqrt(n)))
    refused = {name: _unidentified(name, distinct, rank, k) for name in laws}
    if all(refused.values()):
        raise UserError(f"no law can be fitted: {refused[laws[0]]}")
    folds = _folds(swarm.shares, seed)
    once, unseen = np.vstack([np.ones(n), *folds]), 1 - np.array(folds)
    rng = np.random.default_rng(seed)
    counts = rng.multinomial(n, np.full(n, 1 / n), size=draws)
    resampled = np.vstack([np.ones(n), counts])
    chosen, predict, rows = {}, {}, []
    left_out = np.full(swarm.values.shape, np.nan)
    for column, target in enumerate(swarm.targets):
        y = swarm.values[:, column]
        fits: dict[str, tuple[float, Array]] = {}
        for name in laws:
            row = {"target": target, "law": name, "refused": refused[name], "chosen": False}
            if not refused[name]:
                law = LAWS[name].fit(swarm.shares, y, once)
                out = (law(swarm.shares, None)[1:] * unseen).sum(axis=0) / unseen.sum(axis=0)
                error = float(np.sqrt(np.mean((out - y) ** 2)))
                row |= {"error": error, **ranking(out, y)}
                if not _is_worth(out, y):
                    row["refused"] = "predicts left-out mixtures no better than their mean"
                else:
                    fits[name] = error, out
            rows.append(row)
        if fits:
            best = min(fits, key=lambda name: fits[name][0])
            rows[-len(laws) + list(laws).index(best)]["chosen"] = True
            chosen[target], left_out[:, column] = best, fits[best][1]
            predict[target] = LAWS[best].fit(swarm.shares, y, resampled)
    columns = ["target", "law", "error", "spearman", "top_spearman", "regret", "chosen", "refused"]
    scores = pd.DataFrame(rows).reindex(columns=columns)
    return Fit(swarm, chosen, predict, left_out, scores)


def _unidentified(law: str, mixtures: int, rank: int, domains: int) -> str:
    """Why a law has no unique fit; empty if it has."""
    if law not in LAWS:
        raise UserError(f"no law {law}; known: {', '.join(LAWS)}")
    needed = LAWS[law].parameters(domains)
    if mixtures <= needed:
        return (
            f"{mixtures} different mixtures do not determine the {needed} parameters of {law} in "
            f"{domains} domains: train more, or merge domains"
        )
    if rank < domains:
        return f"the shares of {domains} domains vary in {rank} directions only: merge some"
    return ""


def _folds(shares: Array, seed: int) -> list[Array]:
    """Weights [n] of the cross-validation; runs of one mixture are left out together."""
    _, member = np.unique(shares, axis=0, return_inverse=True)
    member = member.ravel()
    rng = np.random.default_rng(seed)
    repeats = 1 if len(shares) >= _LARGE else _REPEATS
    found = []
    for _ in range(repeats):
        fold = rng.permutation(member.max() + 1)[member] % _FOLDS
        found += [(fold != number).astype(float) for number in range(_FOLDS)]
    return found


def _is_worth(predicted: Array, measured: Array) -> bool:
    """Whether a law predicts better than the mean, and ranks better than chance."""
    if np.ptp(measured) == 0 or np.ptp(predicted) == 0:
        return False
    better = np.mean((predicted - measured) ** 2) < measured.var()
    ranks = stats.spearmanr(predicted, measured, alternative="greater").pvalue
    return bool(better and ranks < 0.05)
