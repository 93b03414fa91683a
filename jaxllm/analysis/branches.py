"""What a branch changed: each task where it left its parent and at its end."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
from scipy import stats

from jaxllm.analysis.curves import Curve
from jaxllm.analysis.finding import Finding, amount
from jaxllm.analysis.registry import SIZES, Study, analysis
from jaxllm.analysis.stats import false_discovery

_EQUAL = 1.001  # tokens that differ by a smaller factor are equal


@analysis(
    SIZES,
    "Branches, before and after",
    place=5,
    needs=lambda study: bool(study.parents),
    caption="Scores, higher is better. The parent at the same tokens, interpolated in log tokens, "
    "tells what a branch (a decay, say) brought beyond further training.",
    method="z-test of each task's change; false discoveries: Benjamini and Hochberg (1995).",
)
def branches(study: Study) -> Finding:
    """Compare every branch with its parent, task by task, as if checkpoints had independent
    examples.

    A row per branch and task: the score `before`, at the branch's beginning, and `after`, at its
    end, and the `parent`'s at the same tokens (NaN where it does not go so far); `change` with
    `stderr` and `p`; whether it `stands_out` at 5 % false discoveries; `gain` over the parent.
    """
    curves = {(curve.run, curve.task): curve for curve in study.curves}
    rows = [
        _row(curve, curves.get((study.parents[run][0], task)), study.parents[run])
        for (run, task), curve in curves.items()
        if run in study.parents
    ]
    table = pd.DataFrame([row for row in rows if row])
    if table.empty:
        return Finding.refuse("no branch was scored both where it begins and later")
    table["stands_out"] = false_discovery(table.p.to_numpy()) < 0.05
    lines = []
    for run, own in table.groupby("run", sort=False):
        parent, begun = study.parents[str(run)]
        gains = own.gain.dropna()
        beyond = f"; {gains.mean():+.3f} beyond its parent at the same tokens" if len(gains) else ""
        tasks = f"{len(own)} task{'s' if len(own) > 1 else ''}"
        lines.append(
            f"{run} left {parent} at {amount(begun)} tokens and ends at "
            f"{amount(own.tokens.max())}: {tasks} changed by {own.change.mean():+.3f} on average, "
            f"{int(own.stands_out.sum())} beyond noise{beyond}."
        )
    up, all_tasks = int((table.stands_out & (table.change > 0)).sum()), len(table)
    count = table.run.nunique()
    return Finding(
        f"{count} {'branches' if count > 1 else 'branch'}: {up} of {all_tasks} scores rose beyond "
        f"noise after leaving the parent.",
        table, lines=tuple(lines),
    )  # fmt: skip


def _row(curve: Curve, parent: Curve | None, origin: tuple[str, float]) -> dict[str, object] | None:
    """A row of the table; None where the branch has no score at its beginning, or none after."""
    name, begun = origin
    at = int(np.argmin(np.abs(curve.tokens - begun)))
    if not begun / _EQUAL <= curve.tokens[at] <= begun * _EQUAL or at == len(curve.tokens) - 1:
        return None
    before, after, tokens = curve.scores[at], curve.scores[-1], curve.tokens[-1]
    error = math.hypot(curve.score_stderr[at], curve.score_stderr[-1])
    there = math.nan
    if parent is not None and parent.tokens[-1] >= tokens / _EQUAL:
        log = np.log(np.maximum(parent.tokens, 1.0))
        there = float(np.interp(math.log(tokens), log, parent.scores))
    change = after - before
    p = 2 * stats.norm.sf(abs(change) / error) if error > 0 else math.nan
    return {
        "run": curve.run, "of": name, "task": curve.task, "domain": curve.domain,
        "begins_at": begun, "tokens": tokens, "before": before, "after": after, "parent": there,
        "change": change, "stderr": error, "p": p,
        "gain": after - there,
    }  # fmt: skip
