"""Checks of the records: falling capabilities, and runs below the band of reference runs.

Only metrics with a known direction are tested: shares (higher is better), perplexity, bits per byte
and the like (lower is better).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np
import pandas as pd
from scipy import stats

from jaxllm.analysis.curves import Array, Curve, is_share, lower_is_better
from jaxllm.analysis.health.loss import logged
from jaxllm.analysis.health.result import ALPHA, Check
from jaxllm.analysis.onsets import AT_CHANCE, PROVISIONAL, onset
from jaxllm.analysis.stats import Line, false_discovery, least_squares, line_fit

# Checkpoints in the last doubling of tokens, at least.
FEWEST = 5
FEWEST_REFERENCES = 3
_TOGETHER = 3  # checkpoints averaged to reduce noise


def judged(curves: Iterable[Curve]) -> list[Curve]:
    """Curves of metrics with a known direction."""
    return [c for c in curves if is_share(c.metric) or lower_is_better(c.metric)]


def recent(tokens: Array) -> int:
    """Number of the ascending `tokens` in the last doubling, at least `FEWEST`."""
    return max(FEWEST, int(np.sum(tokens >= tokens[-1] / 2)))


def noise(curve: Curve) -> float:
    """Median standard error of the late scores, at least one example; 0 if unknown."""
    one_example = 1.0 / curve.n if curve.n and is_share(curve.metric) else 0.0
    errors = np.fmax(curve.score_stderr, one_example if curve.n else math.nan)
    late = errors[-max(_TOGETHER, len(errors) // 2) :]
    known = late[np.isfinite(late)]
    return float(np.median(known)) if len(known) else 0.0


def recent_trend(curve: Curve) -> Line | None:
    """Line per doubling of tokens through the last doubling; None for fewer than `FEWEST` points.

    Its scatter is at least the sampling noise; points at 0 tokens are left out.
    """
    trained = curve.tokens > 0
    tokens, scores = curve.tokens[trained], curve.scores[trained]
    if len(tokens) < FEWEST:
        return None
    last = slice(-recent(tokens), None)
    return line_fit(np.log2(tokens[last]), scores[last], noise=noise(curve))


def was_at_chance(curve: Curve) -> bool:
    """Whether the task had not left chance before the last doubling of tokens."""
    before = len(curve.tokens) - recent(curve.tokens)
    return before > 0 and onset(curve, before)[0] in (AT_CHANCE, PROVISIONAL)


def logged_loss(metrics: pd.DataFrame, run: str, params: float) -> list[Curve]:
    """Logged loss of a run as a curve, in means over bins of log tokens; none without a loss."""
    entries = logged(metrics, "loss")
    entries = entries[entries.tokens > 0]
    if entries.empty:
        return []
    blocks = entries.groupby((4 * np.log2(entries.tokens)).astype(int)).mean()
    steps, tokens, values = blocks.to_numpy(np.float64).T
    unknown = np.full(len(steps), math.nan)
    arrays = (steps, tokens, unknown, values, unknown, -values, unknown)
    nan = math.nan
    return [Curve(run, "logged loss", 0, "loss", "", "", params, nan, nan, 0, *arrays)]


def falling(own: Sequence[Curve], alpha: float = ALPHA) -> Check:
    """Find capabilities of a run that get worse over the last doubling of tokens.

    Null hypothesis for each task: its trend does not fall. The scatter is at least the sampling
    error, and the fall must exceed it. Tasks that were at chance before are not tested. The
    false-discovery rate over all others is at most `alpha`.
    """
    name = "falling capabilities"
    lines = [(curve, line) for curve in own if (line := recent_trend(curve)) is not None]
    rows = [
        (curve.task, -line.slope * line.span, line.scatter, line.end, line.p_below(0.0))
        for curve, line in lines
        if not was_at_chance(curve)
    ]
    if not rows:
        few = f"it takes {FEWEST} scored checkpoints of a task"
        return Check(name, refused="no task has left chance" if lines else few)
    table = pd.DataFrame(rows, columns=["task", "fall", "scatter", "now", "p_value"])
    table["p_value"] = table.p_value.where(table.fall > table.scatter, 1.0)
    return _verdict(
        name,
        table.assign(item=table.task + table.fall.map(" (by {:.3g})".format)),
        alpha,
        fine=f"None of {len(table)} tasks above chance falls in the last doubling of tokens.",
        bad=f"of {len(table)} tasks above chance get worse",
        advice="Compare the data of this phase with that of the phase before, and look at the "
        "examples that were lost; if the model is small, it may be giving up rare skills for "
        "frequent text.",
    )


def outside_band(own: Sequence[Curve], others: Sequence[Curve], alpha: float = ALPHA) -> Check:
    """Find tasks of a run that are worse than in reference runs at equal tokens.

    The band is the prediction interval of a line in log parameters through the reference runs
    (of their mean where they have fewer than three sizes), all interpolated in log tokens at the
    run's last three checkpoints and averaged over them. Null hypothesis for each task: the run is
    drawn from the same line. The false-discovery rate over tasks is `alpha`. Of the curves in
    `others` those of the run itself are left out.
    """
    name, run = "reference band", {curve.run for curve in own}
    if len({curve.run for curve in others} - run) < FEWEST_REFERENCES:
        return Check(name, refused=f"it takes {FEWEST_REFERENCES} runs to compare with")
    by_task: dict[tuple[str, str, str], list[Curve]] = {}
    for curve in others:
        if curve.run not in run:
            by_task.setdefault(_comparable(curve), []).append(curve)
    compared = [(curve.task, _against(curve, by_task.get(_comparable(curve), []))) for curve in own]
    rows = [{"task": task, **row} for task, row in compared if row is not None]
    if not rows:
        return Check(name, refused="no task was scored on enough other runs at these tokens")
    table = pd.DataFrame(rows)
    where = f"the band of {table.runs.max()} other runs at equal tokens"
    text = "{0.task} ({0.value:.3g}, expected {0.expected:.3g} ± {0.stderr:.2g})".format
    return _verdict(
        name,
        table.assign(item=[text(row) for row in table.itertuples()]),
        alpha,
        fine=f"None of {len(table)} tasks is below {where}.",
        bad=f"of {len(table)} tasks are below {where}",
        advice="Check tokenizer, data order and learning rate against those runs before going on.",
    )


def _verdict(
    name: str, table: pd.DataFrame, alpha: float, *, fine: str, bad: str, advice: str
) -> Check:
    """Check with an alarm for the tasks that are significant by their `p_value`."""
    table = table.sort_values("p_value", ignore_index=True)
    table["found"] = false_discovery(table.p_value) <= alpha
    items = table.pop("item")[table.found]
    if items.empty:
        p = float(table.p_value.min())
        return Check(name, number=0, reason=fine, p_value=p, table=table)
    more = f" and {len(items) - 3} more" if len(items) > 3 else ""
    reason = f"{len(items)} {bad}: {', '.join(items[:3])}{more}."
    p, subjects = float(table.p_value[table.found].max()), tuple(table.task[table.found])
    number = float(len(items))
    return Check(name, True, number, reason, advice, p_value=p, table=table, subjects=subjects)


def _comparable(curve: Curve) -> tuple[str, str, str]:
    return curve.task, curve.metric, curve.task_version


def _against(own: Curve, others: Sequence[Curve]) -> dict[str, float] | None:
    """Compare one task of the run with the reference runs; None where there are too few."""
    clock = np.log(own.tokens[own.tokens > 0][-_TOGETHER:])
    values, params = [], []
    for other in others:
        trained = other.tokens > 0
        known = np.log(other.tokens[trained])
        if not len(known) or not len(clock):
            continue
        if known[0] <= clock[0] + 1e-9 and clock[-1] <= known[-1] + 1e-9:
            values.append(float(np.interp(clock, known, other.scores[trained]).mean()))
            params.append(other.params)
    n = len(values)
    if n < FEWEST_REFERENCES:
        return None
    y, x = np.array(values), np.log(np.array(params, np.float64))
    own_x = math.log(own.params) if own.params > 0 else math.nan
    flat = len(np.unique(x)) < 3 or not np.isfinite([*x, own_x]).all()
    design = np.ones((n, 1)) if flat else np.column_stack([np.ones(n), x])
    at = np.ones(1) if flat else np.array([1.0, own_x])
    coefficients, squares = least_squares(design, y)
    dof = n - design.shape[1]
    leverage = float(at @ np.linalg.inv(design.T @ design) @ at)
    stderr = max(math.sqrt(squares / dof), noise(own)) * math.sqrt(1 + leverage)
    value, expected = float(own.scores[-_TOGETHER:].mean()), float(at @ coefficients)
    p = float(stats.t.cdf((value - expected) / stderr, dof))
    return {"value": value, "expected": expected, "stderr": stderr, "runs": n, "p_value": p}
