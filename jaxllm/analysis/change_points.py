"""Change points of trajectories.

Over log tokens a capability is typically flat, then rises, then levels off: linear segments with
change points between them. Noise is assumed independent between checkpoints; where a model hardly
changes from one checkpoint to the next it is not, and p-values are then too small.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from scipy import stats

from jaxllm.analysis.curves import Array
from jaxllm.analysis.finding import Finding, amount
from jaxllm.analysis.registry import EARLY, Study, analysis
from jaxllm.analysis.stats import least_squares

_FEWEST = 7


@analysis(
    EARLY,
    "Change points",
    place=30,
    caption="Where a straight line over log tokens needs another slope: often the start or the end "
    "of a rise. The bar reaches over the checkpoints that would fit about as well.",
)
def change_points(study: Study, *, most: int = 3, draws: int = 500, seed: int = 0) -> Finding:
    """Fit continuous piecewise linear curves over log tokens, adding change points while p < 0.05.

    The p-value of a change point is that of the largest F statistic over all candidate positions,
    against the same statistic of Gaussian noise around the fit without it (sup-F test, Andrews
    1993, its null simulated on the run's checkpoints; ruptures locates change points without a
    test). Its interval holds the checkpoints that an F test does not reject in favour of the best
    one, and extends to their neighbours, since a change may lie between checkpoints. Checkpoints
    at 0 tokens are left out.

    Returns:
      A row per change point: `tokens` with a 95 % interval `low` to `high`, the gain per doubling
      of tokens before and after it, and its p-value.
    """
    rng = np.random.default_rng(seed)
    notes = study.curves.notes
    rows, fitted = [], 0
    for curve in study.curves:
        trained = curve.tokens > 0
        if trained.sum() < _FEWEST:
            continue
        fitted += 1
        x, y = np.log2(curve.tokens[trained]), curve.scores[trained]
        head = {"run": curve.run, "task": curve.task, "domain": curve.domain, "n": len(x)}
        rows += [head | point for point in _change_points(x, y, most, draws, rng)]
    if not fitted:
        return Finding.refuse("it takes seven checkpoints with tokens and values", notes)
    short = len(study.curves) - fitted
    if short:
        notes += (f"{short} trajectories have fewer than seven checkpoints: left out.",)
    if not rows:
        return Finding(f"None of {fitted} trajectories changes its slope.", notes=notes)
    table = pd.DataFrame(rows)
    changed = table.groupby(["run", "task"]).tokens.agg(["min", "max"])
    first, last = map(amount, changed.median())
    sentence = (
        f"{len(changed)} of {fitted} trajectories change their slope; the median first change "
        f"point is at {first} tokens, the last at {last}."
    )
    return Finding(sentence, table, "", notes)


def _change_points(
    x: Array, y: Array, most: int, draws: int, rng: np.random.Generator
) -> list[dict[str, float]]:
    """Tokens, interval, slopes before and after, and p per change point, over ascending x."""
    knots: list[float] = []
    pvalues: list[float] = []
    places = x[2:-2]
    candidates = np.maximum(0.0, x[:, None] - places[None])
    while len(knots) < most:
        design = _pieces(x, knots)
        statistic, best = _sup_f(design, candidates, y[:, None])
        null, _ = _sup_f(design, candidates, rng.standard_normal((len(x), draws)))
        p = float((1 + (null >= statistic[0]).sum()) / (1 + draws))
        if p >= 0.05 or not np.isfinite(statistic[0]):
            break
        knots.append(float(places[best[0]]))
        pvalues.append(p)
        for _ in range(2 * (len(knots) > 1)):  # refine each knot in turn
            for at in range(len(knots)):
                rest = _pieces(x, knots[:at] + knots[at + 1 :])
                knots[at] = float(places[_sup_f(rest, candidates, y[:, None])[1][0]])
    points = []
    for at, knot in sorted(enumerate(knots), key=lambda pair: pair[1]):
        others = knots[:at] + knots[at + 1 :]
        rss = np.array([least_squares(_pieces(x, [*others, k]), y)[1] for k in places])
        freedom = len(x) - len(knots) - 2
        likely = freedom * (rss / rss.min() - 1) <= stats.f.ppf(0.95, 1, freedom)
        inside = np.flatnonzero(likely) + 2
        tokens, low, high = (2**k for k in (knot, x[inside[0] - 1], x[inside[-1] + 1]))
        slopes = least_squares(_pieces(x, knots), y)[0][1:]
        before = slopes[0] + sum(slopes[1 + i] for i, k in enumerate(knots) if k < knot)
        point = {"tokens": tokens, "low": low, "high": high, "slope_before": before}
        points.append(point | {"slope_after": before + slopes[1 + at], "p": pvalues[at]})
    return points


def _pieces(x: Array, knots: list[float]) -> Array:
    """Design matrix [n, 2 + knots] of a continuous piecewise linear curve."""
    return np.stack([np.ones_like(x), x, *(np.maximum(0.0, x - k) for k in knots)], axis=1)


def _sup_f(design: Array, candidates: Array, y: Array) -> tuple[Array, Array]:
    """Largest F of adding one candidate to the design, per column of y, and its index."""
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
