"""Sudden or gradual gains, and whether a sudden one is due to the model or the metric.

BIG-bench (Srivastava et al. 2022, App. B) classifies a task as linear or breakthrough by

    I(y) = sign(argmax_i y_i - argmin_i y_i) (max y - min y)
    L = I / sqrt(mean_i z_i^2),   B = I / sqrt(median_i z_i^2),   z_i = y_(i+1) - y_i

(later papers misprint the sign as argmax - argmax and leave z undefined). B / L is 1 for equal
steps and large where most steps are small and a few are large. Whether it is *too* large for a
steady gain is tested against straight lines over the logarithm of scale with the sampling noise of
the points. Accuracy and exact match can jump because they only depend on the best answer, while
the probability of the right one rises steadily (Schaeffer et al. 2023, arXiv 2304.15004); so a jump
is attributed to the metric where a continuous metric of the same task had gained before it.
"""

from __future__ import annotations

import math

import numpy as np
import pandas as pd

from jaxllm.analysis.curves import Array
from jaxllm.analysis.finding import Finding
from jaxllm.analysis.onsets import STANDARD_ERRORS, durable, guess_score
from jaxllm.analysis.registry import NOW, Study, analysis
from jaxllm.analysis.stats import false_discovery

GRADUAL = "gradual"
METRIC = "sudden in the metric"
MODEL = "sudden in the model"
UNCLEAR = "sudden, cause unclear"
NO_GAIN = "no gain"

_DRAWS = 500
_MIN_POINTS = 5
# Share of a continuous metric's gain before the onset beyond which the metric is the cause.
_EARLY = 0.1
_CURVE = ("tokens", "score", "score_stderr")
_HARD = ("accuracy", "exact_match")
_COLUMNS = (
    "run", "task", "domain", "metric", "hard", "n", "gain", "linearity", "breakthroughness",
    "suddenness", "p", "q", "onset", "early_share", "early_low", "early_high", "verdict",
)  # fmt: skip


def improvement(y: Array) -> float:
    """I(y): the range of `y`, negative where the maximum precedes the minimum."""
    return float(np.sign(int(np.argmax(y)) - int(np.argmin(y))) * np.ptp(y))


def linearity(y: Array) -> float:
    """L of scores in order of scale; NaN where all are equal."""
    mean, _ = _squared_steps(y)
    return improvement(y) / math.sqrt(mean) if mean > 0 else math.nan


def breakthroughness(y: Array, resolution: float = 0.0) -> float:
    """B of scores in order of scale; NaN where more than half of the steps are 0.

    `resolution` is a lower bound of the median step: the smallest that can be resolved (1/n).
    """
    _, median = _squared_steps(y, resolution)
    return improvement(y) / math.sqrt(median) if median > 0 else math.nan


def _squared_steps(y: Array, resolution: float = 0.0) -> tuple[Array, Array]:
    """Mean and median (at least resolution^2) of the squared steps along the last axis."""
    squares = np.diff(y) ** 2
    return squares.mean(axis=-1), np.maximum(np.median(squares, axis=-1), resolution**2)


@analysis(
    NOW,
    "Sudden or gradual",
    place=10,
    caption="Right is sudden: most of the gain came at few checkpoints (B/L as in BIG-bench; 1 for "
    "equal steps). It is the metric's doing where a smoother metric of the task rose before.",
)
def emergence(study: Study) -> Finding:
    """Test every task of every run under all its metrics.

    Returns:
      A row per run, task and metric; scores, higher is better: L, B and `suddenness` B / L with `p`
      against a straight line over log tokens (`q` adjusted over the hard metrics); `hard` marks the
      tested metric, accuracy or exact match. `onset` is the tokens where that metric durably leaves
      chance, `early_share` the share of a continuous metric's gain before it, with a 95 % interval
      from draws of the sampling noise.
      `verdict` is per task: "gradual" unless its hard metric is sudden at q < 0.05; then "sudden in
      the metric" where a continuous metric made significantly more than a tenth of its gain before
      the onset; "sudden in the model" where all made significantly less and are sudden too
      (p < 0.05); else, and without a continuous metric, the cause is unclear.
    """
    rng = np.random.default_rng(0)
    every = study.all_curves.comparable()
    notes, points = every.notes, every.points
    parts = [points[points.metric == metric] for metric in study.records.metric.unique()]
    frame = pd.concat(parts) if parts else points
    rows: list[dict] = []
    short = 0
    for (run, task), of_task in frame[frame.tokens > 0].groupby(["run", "task"], sort=False):
        curves = {str(m): p.sort_values("tokens") for m, p in of_task.groupby("metric", sort=False)}
        curves = {metric: p for metric, p in curves.items() if len(p) >= _MIN_POINTS}
        short += not curves
        rows += [{"run": run, "task": task, **row} for row in _of_task(curves, rng)]
    if not rows:
        return Finding.refuse(f"needs {_MIN_POINTS} checkpoints of a task", notes)
    if short:
        notes += (f"{short} trajectories have fewer than {_MIN_POINTS} points: not tested.",)
    table = pd.DataFrame(rows, columns=list(_COLUMNS))
    table["q"] = false_discovery(table.p.where(table.hard))
    sudden = table[table.hard & (table.q < 0.05)].set_index(["run", "task"]).index
    marked = pd.MultiIndex.from_frame(table[["run", "task"]]).isin(sudden)
    table["verdict"] = np.where(marked | (table.verdict == NO_GAIN), table.verdict, GRADUAL)
    counts = table[table.hard].drop_duplicates(["run", "task"]).verdict.value_counts()
    if counts.empty:
        sentence = "No task has an accuracy or an exact match whose suddenness could be judged."
        return Finding(sentence, table, notes=notes)
    order = (METRIC, MODEL, UNCLEAR, GRADUAL, NO_GAIN)
    verdicts = "; ".join(f"{counts[v]:,} {v}" for v in order if v in counts)
    sentence = f"The gains of {counts.sum():,} trajectories over the tokens: {verdicts}."
    return Finding(sentence, table, notes=notes)


def _of_task(curves: dict[str, pd.DataFrame], rng: np.random.Generator) -> list[dict]:
    """Rows of one task, with the verdict for the case that its hard metric is sudden."""
    hard = [metric for metric in curves if metric.startswith(_HARD)]
    main = next((metric for metric in _HARD if metric in hard), hard[0] if hard else None)
    onset, gained = (math.nan, True) if main is None else _onset(curves[main])
    rows = []
    for metric, points in curves.items():
        tokens, score, stderr = (points[name].to_numpy(float) for name in _CURVE)
        stderr, n = np.nan_to_num(stderr), points.n.iloc[-1]
        resolution = 1 / float(n) if metric in hard and n > 0 else 0.0
        before = 0 if metric in hard else int((tokens < onset).sum())
        share, low, high = _early_share(score, stderr, before, rng)
        rows.append({
            "domain": points.domain.iloc[-1], "metric": metric, "hard": metric == main,
            "n": len(points), "gain": improvement(score), "linearity": linearity(score),
            "breakthroughness": breakthroughness(score, resolution),
            "suddenness": float(_suddenness(score, resolution)),
            "p": _pvalue(np.log(tokens), score, stderr, resolution, rng), "onset": onset,
            "early_share": share, "early_low": low, "early_high": high,
        })  # fmt: skip
    soft = [row for row in rows if math.isfinite(row["early_low"])]
    verdict = UNCLEAR
    if not gained:
        verdict = NO_GAIN
    elif any(row["early_low"] > _EARLY for row in soft):
        verdict = METRIC
    elif soft and all(row["early_high"] < _EARLY and row["p"] < 0.05 for row in soft):
        verdict = MODEL
    return [{**row, "verdict": verdict} for row in rows]


def _onset(points: pd.DataFrame) -> tuple[float, bool]:
    """Tokens at which a metric durably leaves chance (NaN if never), and whether it has a gain."""
    tokens, score, stderr = (points[name].to_numpy(float) for name in _CURVE)
    chance = float(points.chance_score.iloc[-1])
    at = durable(score - guess_score(tokens, score, chance) > STANDARD_ERRORS * stderr)
    if at is None:
        return math.nan, not math.isfinite(chance)
    return float(tokens[at]), True


def _suddenness(y: Array, resolution: float) -> Array:
    """B / L along the last axis; NaN where the median step and `resolution` are 0."""
    mean, median = _squared_steps(y, resolution)
    with np.errstate(all="ignore"):
        return np.where(median > 0, np.sqrt(mean / median), math.nan)


def _pvalue(
    x: Array, y: Array, stderr: Array, resolution: float, rng: np.random.Generator
) -> float:
    """p-value of y against noisy straight lines over x from its first to its last score."""
    observed = float(_suddenness(y, resolution))
    if not math.isfinite(observed) or not stderr.any():
        return math.nan
    line = y[0] + (x - x[0]) / (x[-1] - x[0]) * (y[-1] - y[0])
    # The estimated stderr of a score of exactly 0 or 1 is 0, its noise is not.
    noise = np.where(stderr > 0, stderr, np.median(stderr[stderr > 0]))
    null = _suddenness(line + noise * rng.standard_normal((_DRAWS, len(y))), resolution)
    return float((1 + (null >= observed).sum()) / (1 + _DRAWS))


def _early_share(
    score: Array, stderr: Array, before: int, rng: np.random.Generator
) -> tuple[float, float, float]:
    """Share of the gain made within the first `before` points, with its interval."""
    unknown = (math.nan,) * 3
    if before < 1:
        return unknown
    last = max(1, min(3, len(score) - before))
    noisy = np.vstack([score, score + stderr * rng.standard_normal((_DRAWS, len(score)))])
    with np.errstate(all="ignore"):
        total = noisy[:, -last:].mean(axis=1) - noisy[:, 0]
        share = (noisy[:, before - 1] - noisy[:, 0]) / total
    if not (total[0] > 0 and np.isfinite(share).all()):
        return unknown
    low, high = np.quantile(share[1:], (0.025, 0.975))
    return float(share[0]), float(low), float(high)
