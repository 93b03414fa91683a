"""Which axis collapses the curves of different sizes onto one: tokens, FLOPs or loss?"""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
from scipy import stats

from jaxllm.analysis.curves import Array
from jaxllm.analysis.finding import Finding
from jaxllm.analysis.registry import SIZES, Study, analysis

# Stand-ins for the loss of a run: the one that most checkpoints have, ties to the first.
_LOSSES = ("loss", "bits_per_byte", "perplexity")
_WIDTHS = (0.03, 0.06, 0.12, 0.25)


@analysis(
    SIZES,
    "One curve for all sizes",
    place=20,
    needs=Study.several_sizes,
    caption="How well the curve of the other sizes predicts a size left out, over each axis; left "
    "is better.",
)
def collapse(study: Study) -> Finding:
    """Leave-one-size-out errors of smooth curves over log tokens, log FLOPs and loss.

    The loss is the logged one where all runs have it; else the mean over tasks of the loss, bits
    per byte or log perplexity, whichever most checkpoints have, and the tasks that it is measured
    on are left out. The curve is a local linear regression with a Gaussian kernel (Fan and Gijbels
    1996, §2.3), its width for each task and axis the best of four. Sizes are identified by their
    parameter counts. The p-value is that of a paired t-test over sizes of the best axis and the
    next, their errors relative to the mean of the axes.

    Returns:
      A row per task and axis: the mean absolute `error` of the score of held-out sizes, over the
      `n` points within the other sizes' range on every axis, and the `noise`, the error expected
      from sampling alone.
    """
    points, notes = study.curves.points, study.curves.notes
    losses, own = _losses(study)
    trained = points[points.tokens > 0]
    frame = trained[(trained.flops > 0) & trained.params.notna()]
    axes = ["tokens", "flops", "loss"] if len(losses) else ["tokens", "flops"]
    if not len(losses):
        notes += ("No loss in the records: only tokens and FLOPs are compared.",)
    if len(frame) < len(trained):
        notes += (f"{len(trained) - len(frame):,} records say no size or no FLOPs: left out.",)
    if own & set(frame.task):
        notes += (f"The loss is measured on {', '.join(sorted(own & set(frame.task)))}: left out.",)
        frame = frame[~frame.task.isin(own)]
    frame = _with_loss(frame, losses) if len(losses) else frame
    frame = frame.assign(tokens=np.log(frame.tokens), flops=np.log(frame.flops))
    parts = [
        _left_out_errors(of_task, axes)
        for _, of_task in frame.groupby("task", sort=False)
        if of_task.params.nunique() >= 3
    ]
    if not sum(map(len, parts)):
        return Finding.refuse("needs a task in three sizes whose ranges overlap", notes)
    errors = pd.concat(parts, ignore_index=True)
    table = errors.groupby(["task", "domain", "axis"], sort=False, as_index=False).agg(
        sizes=("params", "nunique"),
        n=("error", "size"),
        error=("error", "mean"),
        noise=("noise", "mean"),
    )
    table["best"] = table.error == table.groupby("task").error.transform("min")
    relative = errors.error / errors.groupby("task").error.transform("mean")
    by_size = relative.groupby([errors.params, errors.axis]).mean().unstack()
    order = list(by_size.mean().sort_values().index)
    p = math.nan
    if len(by_size) >= 3:
        p = float(stats.ttest_rel(by_size[order[1]], by_size[order[0]]).pvalue)
    mean = table.groupby("axis").error.mean()
    by_axis = ", ".join(f"{mean[axis]:.4f} over {axis}" for axis in order)
    certain = "best" if p < 0.05 else "best, but not demonstrably so,"
    sentence = (
        f"The curves of {table.task.nunique()} tasks and {len(by_size)} sizes fall together "
        f"{certain} over {order[0]} (mean error of a left-out size: {by_axis}; p = {p:.2g})."
    )
    return Finding(sentence, table, "", notes)


def _losses(study: Study) -> tuple[pd.DataFrame, set[str]]:
    """Table of `run, tokens, loss`, and the tasks that the loss is measured on."""
    if len(study.losses) and set(study.losses.run) >= set(study.runs):
        return study.losses, set()
    every = study.all_curves.points
    best, tasks = pd.DataFrame({"run": [], "tokens": [], "loss": []}), set()
    for metric in _LOSSES:
        measured = every[(every.metric == metric) & np.isfinite(every.tokens.astype(float))]
        loss = (-measured.score).groupby([measured.run, measured.tokens]).mean().rename("loss")
        if len(loss) > len(best):
            best, tasks = loss.reset_index(), set(measured.task)
    return best, tasks


def _with_loss(frame: pd.DataFrame, losses: pd.DataFrame) -> pd.DataFrame:
    """Points within the token range of the loss, with a column `loss`."""
    loss = pd.Series(math.nan, frame.index)
    for run, known in losses[np.isfinite(losses.loss)].sort_values("tokens").groupby("run"):
        at = frame.tokens[frame.run == run]
        loss[at.index] = np.interp(at, known.tokens, known.loss, left=math.nan, right=math.nan)
    return frame.assign(loss=loss).dropna(subset="loss")


def _left_out_errors(points: pd.DataFrame, axes: list[str]) -> pd.DataFrame:
    """Table of `task, domain, params, noise, axis, error`: the points that all axes can predict."""
    y, size = points.score.to_numpy(float), points.params.to_numpy(float)
    usable = np.ones(len(y), bool)
    for left in np.unique(size):
        own = size == left
        for axis in axes:
            x = points[axis].to_numpy(float)
            usable[own] &= (x[own] >= x[~own].min()) & (x[own] <= x[~own].max())
    noise = math.sqrt(2 / math.pi) * points.score_stderr
    scored = points[["task", "params"]].assign(domain=points.domain.iloc[0], noise=noise)[usable]
    parts = []
    for axis in axes:
        x, errors = points[axis].to_numpy(float), []
        for width in _WIDTHS:
            error = np.full(len(y), math.nan)
            for left in np.unique(size[usable]):
                test, train = usable & (size == left), size != left
                error[test] = np.abs(y[test] - _smooth(x[train], y[train], x[test], width))
            errors.append(error[usable])
        parts.append(scored.assign(axis=axis, error=min(errors, key=np.sum)))
    return pd.concat(parts)


def _smooth(x: Array, y: Array, new: Array, width: float) -> Array:
    """Local linear regression at `new`; kernel `width` as a share of the range.

    Vectorized over the new points; statsmodels' KernelReg loops over them.
    """
    distance = (x[None] - new[:, None]) / (width * max(float(np.ptp(x)), 1e-12))
    weight = np.exp(-0.5 * distance**2) + 1e-12
    s0, s1 = weight.sum(axis=1), (weight * distance).sum(axis=1)
    s2 = (weight * distance**2).sum(axis=1)
    t0, t1 = weight @ y, (weight * distance) @ y
    return np.asarray((s2 * t0 - s1 * t1) / np.maximum(s0 * s2 - s1**2, 1e-12))
