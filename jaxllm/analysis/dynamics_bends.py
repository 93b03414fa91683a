"""Where does a trajectory bend?

Over log tokens a capability is typically flat, then rises, then levels off: straight pieces with
bends between them. Noise around them is taken as independent between checkpoints; where a model
hardly changes from one checkpoint to the next it is not, and p-values are then too small.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import pandas as pd
from scipy import stats

from jaxllm.analysis.dynamics import Array, Finding, amount, clean, least_squares, refusal

_BENDS = ("run", "task", "domain", "n", "tokens", "low", "high", "slope_before", "slope_after", "p")


@dataclasses.dataclass(frozen=True)
class ChangePoints(Finding):
    """Where trajectories bend.

    The table has a row per bend: `tokens` with a 95 % interval `low` to `high`, the gain per
    doubling of tokens before and after it, and the p-value of the bend.
    """


def change_points(
    records: pd.DataFrame, *, most: int = 3, draws: int = 500, seed: int = 0
) -> ChangePoints:
    """Fits continuous straight pieces over log tokens, adding bends while p < 0.05.

    A bend's p-value is that of the largest F statistic over all places where it could be, against
    the same statistic of Gaussian noise around the fit without it (sup-F test, Andrews 1993, its
    null simulated on the checkpoints at hand). Its interval holds the checkpoints that an F test
    does not reject in favour of the best one, and reaches to their neighbours, since a bend may
    lie between checkpoints. Checkpoints before the first step have no log tokens.
    """
    cleaned, notes = clean(records)
    rng = np.random.default_rng(seed)
    rows: list[tuple] = []
    short = fitted = 0
    for (run, task), points in cleaned[cleaned.tokens > 0].groupby(["run", "task"], sort=False):
        if len(points) < 7:
            short += 1
            continue
        fitted += 1
        x = np.log2(points.tokens.to_numpy(float))
        for bend in _bends(x, points.score.to_numpy(float), most, draws, rng):
            rows.append((run, task, points.domain.iloc[0], len(points), *bend))
    if not fitted:
        reason = "needs seven checkpoints with tokens and values"
        return ChangePoints(**vars(refusal(reason, _BENDS, notes)))
    if short:
        notes += (f"{short} trajectories have fewer than seven checkpoints: bends not sought.",)
    table = pd.DataFrame(rows, columns=list(_BENDS))
    bent = table.drop_duplicates(["run", "task"])
    sentence = f"{len(bent)} of {fitted} trajectories bend"
    if len(bent):
        first, last = (table.groupby(["run", "task"]).tokens.agg(f) for f in ("min", "max"))
        sentence += (
            f"; the median first bend is at {amount(first.median())} tokens, the last at "
            f"{amount(last.median())}"
        )
    return ChangePoints(sentence + ".", table, "", notes)


def _bends(
    x: Array, y: Array, most: int, draws: int, rng: np.random.Generator
) -> list[tuple[float, float, float, float, float, float]]:
    """Per bend tokens, interval, slope before and after, p; x is log2 tokens, ascending."""
    knots: list[float] = []
    pvalues: list[float] = []
    places = x[2:-2]
    while len(knots) < most:
        design = _pieces(x, knots)
        candidates = np.maximum(0.0, x[:, None] - places[None])
        statistic, best = _sup_f(design, candidates, y[:, None])
        noise = rng.standard_normal((len(x), draws))
        null, _ = _sup_f(design, candidates, noise)
        p = float((1 + (null >= statistic[0]).sum()) / (1 + draws))
        if p >= 0.05 or not np.isfinite(statistic[0]):
            break
        knots.append(float(places[best[0]]))
        pvalues.append(p)
        for _ in range(2 * (len(knots) > 1)):
            for at in range(len(knots)):
                rest = _pieces(x, knots[:at] + knots[at + 1 :])
                knots[at] = float(places[_sup_f(rest, candidates, y[:, None])[1][0]])
    found = []
    for at, knot in sorted(enumerate(knots), key=lambda pair: pair[1]):
        others = knots[:at] + knots[at + 1 :]
        rss = np.array([least_squares(_pieces(x, [*others, k]), y)[1] for k in places])
        freedom = len(x) - len(knots) - 2
        likely = freedom * (rss / rss.min() - 1) <= stats.f.ppf(0.95, 1, freedom)
        inside = np.flatnonzero(likely) + 2
        low, high = x[inside[0] - 1], x[inside[-1] + 1]
        slopes = least_squares(_pieces(x, knots), y)[0][1:]
        before = slopes[0] + sum(slopes[1 + i] for i, k in enumerate(knots) if k < knot)
        found.append((2**knot, 2**low, 2**high, float(before),
                      float(before + slopes[1 + at]), pvalues[at]))  # fmt: skip
    return found


def _pieces(x: Array, knots: list[float]) -> Array:
    """[n, 2 + knots] columns of a continuous line that may bend at the knots."""
    return np.stack([np.ones_like(x), x, *(np.maximum(0.0, x - k) for k in knots)], axis=1)


def _sup_f(design: Array, candidates: Array, y: Array) -> tuple[Array, Array]:
    """Per column of y the largest F of adding one candidate to the design, and which it is."""
    basis = np.linalg.qr(design)[0]
    rest = y - basis @ (basis.T @ y)
    new = candidates - basis @ (basis.T @ candidates)
    length = np.sqrt((new * new).sum(axis=0))
    new = np.where(length > 1e-9, new / np.maximum(length, 1e-9), 0.0)
    explained = (new.T @ rest) ** 2
    total = (rest * rest).sum(axis=0)
    freedom = len(y) - design.shape[1] - 1
    with np.errstate(all="ignore"):
        f = freedom * explained / np.maximum(total - explained, 1e-300 + 1e-12 * total)
    f = np.where(total > 1e-18, f, -np.inf)
    return f.max(axis=0), f.argmax(axis=0)
