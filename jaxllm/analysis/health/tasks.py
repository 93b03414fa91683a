"""Check of the records: falling capabilities.

Only metrics with a known direction are tested: shares (higher is better), perplexity, bits per byte
and the like (lower is better).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd

from jaxllm.analysis.curves import Array, Curve, is_share, lower_is_better
from jaxllm.analysis.health.result import ALPHA, Check
from jaxllm.analysis.onsets import AT_CHANCE, PROVISIONAL, onset
from jaxllm.analysis.stats import Line, false_discovery, line_fit

FEWEST = 5  # checkpoints in the last doubling of tokens, at least


def recent(tokens: Array) -> int:
    """Number of the ascending `tokens` in the last doubling, at least `FEWEST`."""
    return max(FEWEST, int(np.sum(tokens >= tokens[-1] / 2)))


def noise(curve: Curve) -> float:
    """Median standard error of the late scores, at least one example; 0 if unknown."""
    one_example = 1.0 / curve.n if curve.n and is_share(curve.metric) else 0.0
    errors = np.fmax(curve.score_stderr, one_example if curve.n else math.nan)
    late = errors[-max(3, len(errors) // 2) :]
    known = late[np.isfinite(late)]
    return float(np.median(known)) if len(known) else 0.0


def recent_trend(curve: Curve) -> Line | None:
    """Line per doubling of tokens through the last doubling, its scatter at least the sampling
    noise; None for fewer than `FEWEST` points after 0 tokens.
    """
    trained = curve.tokens > 0
    tokens, scores = curve.tokens[trained], curve.scores[trained]
    if len(tokens) < FEWEST:
        return None
    last = slice(-recent(tokens), None)
    return line_fit(np.log2(tokens[last]), scores[last], noise=noise(curve))


def was_at_chance(curve: Curve) -> bool:
    """Whether the task had not left chance before the last doubling of tokens, or in the first two
    checkpoints of a run that is no longer."""
    before = len(curve.tokens) - recent(curve.tokens)
    return onset(curve, max(before, 2))[0] in (AT_CHANCE, PROVISIONAL)


def falling(own: Sequence[Curve], alpha: float = ALPHA) -> Check:
    """Find capabilities of a run that get worse over the last doubling of tokens.

    Null hypothesis for each task: its trend does not fall; the fall must exceed the scatter, which
    is at least the sampling error. Tasks that were at chance before are not tested. The
    false-discovery rate over all others is at most `alpha`.
    """
    name = "falling capabilities"
    known = [curve for curve in own if is_share(curve.metric) or lower_is_better(curve.metric)]
    lines = [(curve, line) for curve in known if (line := recent_trend(curve)) is not None]
    rows = [
        (curve.task, -line.slope * line.span, line.scatter, line.end, line.p_below(0.0))
        for curve, line in lines
        if not was_at_chance(curve)
    ]
    if not rows:
        few = f"it takes {FEWEST} checkpoints of a task, with values and tokens"
        return Check(name, refused="no task has left chance" if lines else few)
    table = pd.DataFrame(rows, columns=["task", "fall", "scatter", "now", "p_value"])
    table["p_value"] = table.p_value.where(table.fall > table.scatter, 1.0)
    table = table.sort_values("p_value", ignore_index=True)
    table["found"] = false_discovery(table.p_value) <= alpha
    found = table[table.found]
    if found.empty:
        reason = (
            f"Of {len(lines)} tasks {len(table)} were not at chance before, and none of them is "
            "shown to get worse in the last doubling of tokens."
        )
        p = float(table.p_value.min())
        return Check(name, number=0, reason=reason, p_value=p, table=table)
    worst = ", ".join(f"{row.task} (by {row.fall:.3g})" for row in found.head(3).itertuples())
    more = f" and {len(found) - 3} more" if len(found) > 3 else ""
    return Check(
        name,
        True,
        float(len(found)),
        f"{len(found)} of {len(table)} tasks get worse: {worst}{more}.",
        "Compare the data of this phase with that of the phase before, and look at the examples "
        "that were lost; if the model is small, it may be giving up rare skills for frequent text.",
        p_value=float(found.p_value.max()),
        table=table,
        subjects=tuple(found.task),
    )
