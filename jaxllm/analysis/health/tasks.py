"""The checks that read the records: capabilities that fall, and runs that leave a band of others.

Only metrics whose better direction is known are judged: shares (up), perplexity, bits per byte and
their kin (down).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np
import pandas as pd
from scipy import stats

from jaxllm.analysis.curves import Array, Curve, is_share, lower_is_better
from jaxllm.analysis.health.check import ALPHA, Check
from jaxllm.analysis.health.loss import logged
from jaxllm.analysis.onsets import AT_CHANCE, PROVISIONAL, onset
from jaxllm.analysis.stats import Line, false_discovery, least_squares, line_fit

# The last doubling of tokens counts as recent, and so many checkpoints are the least.
FEWEST = 5
FEWEST_REFERENCES = 3
_TOGETHER = 3  # checkpoints that are averaged where single ones would be too noisy


def judged(curves: Iterable[Curve]) -> list[Curve]:
    """The curves whose better direction is known."""
    return [c for c in curves if is_share(c.metric) or lower_is_better(c.metric)]


def recent(tokens: Array) -> int:
    """How many of the increasing `tokens` are in the last doubling, `FEWEST` at least."""
    return max(FEWEST, int(np.sum(tokens >= tokens[-1] / 2)))


def noise(curve: Curve) -> float:
    """Standard error of a late score, at least that of one example more or less; 0 if unknown."""
    one_example = 1.0 / curve.n if curve.n and is_share(curve.metric) else 0.0
    errors = np.fmax(curve.score_stderr, one_example if curve.n else math.nan)
    late = errors[-max(_TOGETHER, len(errors) // 2) :]
    known = late[np.isfinite(late)]
    return float(np.median(known)) if len(known) else 0.0


def recent_trend(curve: Curve) -> Line | None:
    """The trend of the recent points, per doubling of tokens; None for fewer than `FEWEST`."""
    trained = curve.tokens > 0
    tokens, scores = curve.tokens[trained], curve.scores[trained]
    if len(tokens) < FEWEST:
        return None
    last = slice(-recent(tokens), None)
    return line_fit(np.log2(tokens[last]), scores[last], fewest=FEWEST, noise=noise(curve))


def was_at_chance(curve: Curve) -> bool:
    """Whether the run had not left chance before its recent points, and has nothing to lose."""
    before = len(curve.tokens) - recent(curve.tokens)
    return before > 0 and onset(curve, before)[0] in (AT_CHANCE, PROVISIONAL)


def logged_loss(metrics: pd.DataFrame, run: str, params: float) -> Curve | None:
    """The logged loss of a run as a curve, so that runs are compared by it: means in log tokens."""
    entries = logged(metrics, "loss")
    entries = entries[entries.tokens > 0]
    if entries.empty:
        return None
    blocks = entries.groupby((4 * np.log2(entries.tokens)).astype(int)).mean()
    steps, tokens, values = blocks.to_numpy(np.float64).T
    unknown = np.full(len(steps), math.nan)
    return Curve(
        run, "logged loss", 0, "loss", "", "", "", params, steps, tokens, unknown, values, unknown,
        -values, unknown, math.nan, math.nan, 0,
    )  # fmt: skip


def falling(own: Sequence[Curve], run: str, loss_falls: bool | None, alpha: float = ALPHA) -> Check:
    """Which capabilities get worse over the last doubling of tokens while the loss falls.

    Null hypothesis for each task: its trend does not fall. The scatter counts as no less than the
    sampling error, and the fall must exceed it. Tasks that were at chance before have nothing to
    lose and are not tested. Over all others the false-discovery rate is at most `alpha`.

    Args:
      own: The curves of the run.
      run: Its name.
      loss_falls: Whether its loss falls in that time; None when that is not known.
      alpha: False-discovery rate.
    """
    name = "falling capabilities"
    lines = {curve.task: line for curve in own if (line := recent_trend(curve)) is not None}
    at_chance = {curve.task for curve in own if was_at_chance(curve)}
    rows = [
        (task, -line.slope * line.span, line.scatter, line.end, line.p_below(0.0))
        for task, line in lines.items()
        if task not in at_chance
    ]
    if not rows:
        few = f"it takes {FEWEST} scored checkpoints of a task"
        return Check(name, run, refused="no task has left chance" if lines else few)
    table = pd.DataFrame(rows, columns=["task", "fall", "scatter", "now", "p_value"])
    table["p_value"] = table.p_value.where(table.fall > table.scatter, 1.0)
    table = table.sort_values("p_value", ignore_index=True)
    while_what = {True: ", while the loss falls", False: ", as the loss does not fall either",
                  None: " (whether the loss falls is not known)"}[loss_falls]  # fmt: skip
    return _verdict(
        Check(name, run, table=table), alpha,
        fine=f"None of {len(table)} tasks above chance falls in the last doubling of tokens.",
        bad=f"of {len(table)} tasks above chance get worse{while_what}",
        items=[f"{row.task} (by {row.fall:.3g})" for row in table.itertuples()],
        advice="Compare the data of this phase with that of the phase before, and look at the "
        "examples that were lost; if the model is small, it may be giving up rare skills for "
        "frequent text.",
    )  # fmt: skip


def outside_band(
    own: Sequence[Curve], run: str, others: Sequence[Curve], alpha: float = ALPHA
) -> Check:
    """Which tasks are worse than other runs were after as many tokens.

    The band is the prediction interval of a line in log parameters through the reference runs
    (through their mean where they have fewer than three sizes), all read at the run's last three
    checkpoints by interpolation in log tokens and averaged over them. Null hypothesis for each
    task: the run is drawn from the same line. The false-discovery rate over tasks is `alpha`.

    Args:
      own: The curves of the run.
      run: Its name.
      others: The curves of the runs to compare with, of `FEWEST_REFERENCES` or more.
      alpha: False-discovery rate.
    """
    name = "reference band"
    by_task: dict[tuple[str, str, str], list[Curve]] = {}
    for curve in others:
        if curve.run != run:
            by_task.setdefault(_comparable(curve), []).append(curve)
    if len({curve.run for curve in others} - {run}) < FEWEST_REFERENCES:
        return Check(name, run, refused=f"it takes {FEWEST_REFERENCES} runs to compare with")
    compared = [(curve.task, _against(curve, by_task.get(_comparable(curve), []))) for curve in own]
    rows = [{"task": task, **row} for task, row in compared if row is not None]
    if not rows:
        return Check(name, run, refused="no task was scored on enough other runs at these tokens")
    table = pd.DataFrame(rows).sort_values("p_value", ignore_index=True)
    where = f"the band of {int(table.runs.max())} other runs at equal tokens"
    return _verdict(
        Check(name, run, table=table), alpha,
        fine=f"None of {len(table)} tasks is below {where}.",
        bad=f"of {len(table)} tasks are below {where}",
        items=[
            f"{row.task} ({row.value:.3g}, expected {row.expected:.3g} ± {row.stderr:.2g})"
            for row in table.itertuples()
        ],
        advice="Check tokenizer, data order and learning rate against those runs before going on.",
    )  # fmt: skip


def _verdict(
    check: Check, alpha: float, *, fine: str, bad: str, items: Sequence[str], advice: str
) -> Check:
    """The check of a table of tasks by `p_value`: which ones are found, and in which words."""
    table = check.table.assign(found=false_discovery(check.table.p_value) <= alpha)
    count = int(table.found.sum())  # the first rows: they are sorted
    if not count:
        return Check(check.name, check.run, number=0, reason=fine,
                     p_value=float(table.p_value.min()), table=table)  # fmt: skip
    more = f" and {count - 3} more" if count > 3 else ""
    reason = f"{count} {bad}: {', '.join(items[: min(count, 3)])}{more}."
    found = table[table.found]
    return Check(
        check.name, check.run, True, float(count), reason, advice,
        p_value=float(found.p_value.max()), table=table, subjects=tuple(found.task),
    )  # fmt: skip


def _comparable(curve: Curve) -> tuple[str, str, str]:
    return curve.task, curve.metric, curve.task_version


def _against(own: Curve, others: Sequence[Curve]) -> dict[str, float] | None:
    """One task of the run against its reference runs; None where there are too few."""
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
