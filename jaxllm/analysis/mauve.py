"""MAUVE of generated texts against human ones (arXiv 2102.01454), with an interval.

The score is that of the authors' package (`pip install jaxllm[mauve]`), from features of the texts.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pandas as pd

from jaxllm.analysis.finding import Finding
from jaxllm.analysis.registry import NOW, Study, analysis
from jaxllm.analysis.stats import Z95, Array
from jaxllm.errors import UserError

SCALE, WEIGHTS = 5.0, np.linspace(1e-6, 1 - 1e-6, 25)  # the package's defaults


@analysis(
    NOW,
    "How close generated texts come to human ones",
    needs=lambda study: "mauve" in set(study.records.get("metric", ())),
    caption="MAUVE of the newest texts of each run, by the features of one model, with 95 % "
    "intervals; 1: like human ones. Only scores of as many texts compare.",
    method="MAUVE (Pillutla et al. 2021), with a jackknife; figure 13 of arXiv 2212.09803.",
)
def text_scores(study: Study) -> list[Finding]:
    """The newest score of each file of texts by run, for every model of features."""
    rows = study.records[study.records.metric == "mauve"].sort_values("step")
    rows = rows.drop_duplicates(["run", "task", "task_version"], keep="last")
    features = rows.groupby("task_version")
    title = "How close generated texts come to human ones, by {}" if len(features) > 1 else ""
    return [_scores(of.sort_values("value"), title.format(name)) for name, of in features]


def _scores(rows: pd.DataFrame, title: str) -> Finding:
    """The scores by the features of one model, ascending."""
    half, worst, best = Z95 * rows.stderr, rows.iloc[0], rows.iloc[-1]
    sentence = f"MAUVE is {best.value:.2f} for {best.task} of {best.run}"
    if len(rows) > 1:
        sentence += (
            f", the highest, and {worst.value:.2f} for {worst.task} of {worst.run}, the lowest"
        )
    table = rows.assign(low=rows.value - half, high=(rows.value + half).clip(upper=1))[::-1]
    return Finding(f"{sentence}.", table, title=title)


class Mauve(NamedTuple):
    """A score from 0 to 1 (the same distribution)."""

    value: float
    stderr: float  # for the expected score of as many texts in the same clusters
    corrected: float  # for the bias of few texts, in these clusters
    clusters: int  # of the features, a tenth of the fewer texts


def mauve(human: Array, generated: Array, seed: int = 0) -> Mauve:
    """The score of features [n, D] and [m, D]; UserError if the package is not installed.

    The standard error is by the jackknife. Fewer texts score lower and make fewer clusters: only
    scores of equal numbers compare.
    """
    try:
        from mauve import compute_mauve
    except ImportError as error:
        raise UserError(f"MAUVE needs `pip install jaxllm[mauve]` ({error})") from error
    package = compute_mauve(p_features=human, q_features=generated, seed=seed, verbose=False)
    texts = (human, package.p_hist), (generated, package.q_hist)
    bias, stderr = jackknife(*(np.rint(len(features) * share) for features, share in texts))
    value = float(package.mauve)
    return Mauve(value, stderr, float(np.clip(value - bias, 0, 1)), package.num_buckets)


def jackknife(p: Array, q: Array) -> tuple[float, float]:
    """The bias and the standard error of the area of two histograms, by leaving out each text.

    `p` and `q` count texts; the terms of both add up (Efron and Tibshirani 1993, 10.5 and 11).
    """
    value, bias, variance = area(p / p.sum(), q / q.sum()), 0.0, 0.0
    for own, other in ((p, q), (q, p)):  # the area is the same in either order
        (filled,), rest = np.nonzero(own), own.sum() - 1
        without = (own - (np.arange(len(own)) == cluster) for cluster in filled)
        areas = np.array([area(one / rest, other / other.sum()) for one in without])
        share = own[filled] / own.sum()
        bias += rest * (share @ areas - value)
        variance += rest * share @ (areas - share @ areas) ** 2
    return float(bias), float(np.sqrt(variance))


def area(p: Array, q: Array) -> float:
    """The area under the divergence curve of two histograms (equations 1 and 2 of the paper)."""
    mixed, x, y = np.outer(WEIGHTS, p) + np.outer(1 - WEIGHTS, q), [1.0], [0.0]
    with np.errstate(divide="ignore", invalid="ignore"):
        for curve, of in ((x, q), (y, p)):
            curve += np.exp(-SCALE * np.where(of > 0, of * np.log(of / mixed), 0).sum(1)).tolist()
    points = np.array([[*x, 0.0], [*y, 1.0]])  # with the ends of the curve
    under = lambda x, y: np.trapezoid(y[np.argsort(x)], np.sort(x))
    return float(under(*points) + under(*points[::-1])) / 2
