"""Sudden or gradual gains, whether a sudden one is due to the model or the metric, and their ends.

Between checkpoints that are far apart the steps of a smooth curve are large, so a gain is sudden by
the width of its rise, the decades of tokens from 10 to 90 % of it: the interval of the width ends
below 0.3, and smooth rises that are wider are rejected (`rises`).

Accuracy can jump because it only depends on the best answer, while the probability of the right one
rises steadily (Schaeffer et al. 2023, arXiv 2304.15004). But what a continuous metric gains first
is how frequent words are: so the cause is only judged from the level of a guess on, where that is
known: the chance level of a probability among options, or of a likelihood what token frequencies
alone reach, which the scorer measures (records from elsewhere do not say).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd

from jaxllm.analysis.curves import Curve, Curves, counts_examples, is_share, of_metric
from jaxllm.analysis.finding import Finding
from jaxllm.analysis.health import tasks
from jaxllm.analysis.onsets import AT_CHANCE, LEFT, PROVISIONAL, guess, onset
from jaxllm.analysis.registry import NOW, Study, analysis
from jaxllm.analysis.rises import FEWEST, SUDDEN, Rises
from jaxllm.analysis.stats import Z95, false_discovery

METRIC = "sudden in the metric"
MODEL = "sudden in the model"
UNCLEAR = "sudden, cause unclear"
GRADUAL = "gradual"
UNRESOLVED = "not resolved"
NO_GAIN = "no gain"
VERDICTS = (MODEL, METRIC, UNCLEAR, GRADUAL, UNRESOLVED, NO_GAIN)

FALLING = "falling"
SATURATED = "saturated"
GROWING = "growing"
NO_TREND = "no trend seen"
# A share that gains less than this per doubling of tokens is saturated.
MARGIN = 0.01

# Share of a continuous metric's gain before the onset beyond which the metric is the cause.
_EARLY = 0.1
_HARD = ("accuracy", "exact_match")


@analysis(
    NOW,
    "Sudden or gradual",
    place=10,
    caption="Width of each rise: decades of tokens from 10 to 90 % of its gain, with its 95 % "
    "interval. Sudden is what ends left of the line at 0.3, a factor of two in tokens. Bars that "
    "reach the right edge have no upper end: the rise began before the first checkpoint, has not "
    "ended, or is lost in noise.",
    method="Profile likelihood of logistic, Gompertz and power-law rises (Bates and Watts 1988); "
    "false discoveries: Benjamini and Hochberg (1995).",
)
def emergence(study: Study) -> Finding:
    """Measure the widths of all rises, and judge accuracy or exact match of every task by them.

    A row per run, task and metric, of scores, higher is better: `gain`, `width`, `low`, `high` and
    `p` as in `Rises.fit`, `q` adjusted over the `hard` metrics, which are judged; `onset`, the
    tokens where it leaves a guess. `verdict`: sudden where `high` < 0.3 and q < 0.05, gradual where
    `low` >= 0.3. A jump is due to the metric where a continuous one, itself not sudden, made
    significantly more than a tenth of its gain over a guess before the onset; due to the model
    where all made significantly less and are sudden, too. `end`, by a line through a share's last
    doubling of tokens: falling or growing (p < 0.025), saturated if it gains less than `MARGIN` per
    doubling (p < 0.05), else no trend seen.
    """
    curves = study.all_curves.comparable()
    level = curves.points.chance_score.fillna(curves.points.unigram_score)
    curves = Curves(curves.points.assign(chance_score=level), curves.notes)
    table = _widths([curve for curve in curves if (curve.tokens > 0).sum() >= FEWEST])
    if table.empty:
        return Finding.refuse("it takes seven checkpoints with tokens and values", curves.notes)
    notes = curves.notes
    if short := len(curves) - len(table):
        notes += (f"{short} curves have fewer than {FEWEST} checkpoints with tokens: left out.",)
    hard = of_metric(counts_examples, table.metric)
    first = table[hard].sort_values("metric", key=lambda names: ~names.isin(_HARD), kind="stable")
    table["hard"] = table.index.isin(first.drop_duplicates(["run", "task"]).index)
    table = table[table.hard | ~hard]
    table["q"] = false_discovery(table.p.where(table.hard))
    jumps = (table.high < SUDDEN) & (table.q.fillna(table.p) < 0.05)
    shape = np.select([jumps, table.low >= SUDDEN], [UNCLEAR, GRADUAL], UNRESOLVED)
    off = table.state.isin([LEFT, PROVISIONAL])
    none = (table.state == AT_CHANCE) | (~off & (shape == UNRESOLVED))
    table["verdict"] = np.where(none, NO_GAIN, shape)
    for at, row in table[table.hard & (table.verdict == UNCLEAR)].iterrows():
        soft = table[(table.run == row.run) & (table.task == row.task) & ~table.hard]
        table.loc[at, "verdict"] = _cause(soft, row.onset)
    gained = table.hard & (table.verdict != NO_GAIN)
    table["end"] = table.curve.where(gained).map(_end, na_action="ignore").fillna("")
    table = table.drop(columns=["curve", "state"])
    judged = table[table.hard]
    return Finding(_sentence(judged), table, notes=notes, lines=_of_ends(judged))


def _widths(curves: Sequence[Curve]) -> pd.DataFrame:
    """A row per curve, those over the same checkpoints fitted together."""
    grids: dict[tuple[float, ...], list[int]] = {}
    rows: list[dict] = []
    for at, curve in enumerate(curves):
        grids.setdefault(tuple(curve.tokens[curve.tokens > 0]), []).append(at)
        row = {name: getattr(curve, name) for name in ("run", "task", "domain", "metric")}
        state, left = onset(curve)
        row["onset"] = curve.tokens[left] if state == LEFT else math.nan
        rows.append(row | {"n": len(curve.tokens), "curve": curve, "state": state})
    fits = []
    for tokens, members in grids.items():
        scores = [curves[at].scores[curves[at].tokens > 0] for at in members]
        noise = np.array([tasks.noise(curves[at]) for at in members])
        fitted = Rises.of(np.log10(tokens)).fit(np.stack(scores, axis=1), noise)
        fits.append(fitted.set_axis(members))
    return pd.DataFrame(rows).join(pd.concat(fits)) if rows else pd.DataFrame()


def _cause(soft: pd.DataFrame, until: float) -> str:
    """Verdict on a jump that leaves a guess at `until` tokens, by other metrics of the task."""
    known = soft[soft.state == LEFT]
    early = [_early(curve, until) for curve in known.curve]
    jumps = list(known.verdict == UNCLEAR)
    if any(z > Z95 and not jump for z, jump in zip(early, jumps, strict=True)):
        return METRIC
    if early and all(jumps) and all(z < -Z95 for z in early):
        return MODEL
    return UNCLEAR


def _early(curve: Curve, until: float) -> float:
    """How far its gain over a guess before `until` tokens exceeds `_EARLY`, in standard errors."""
    before = np.flatnonzero(curve.tokens < until)
    if not len(before):
        return math.nan
    gains, errors = curve.scores[[before[-1], -1]] - guess(curve), curve.score_stderr
    error = math.hypot(errors[before[-1]], _EARLY * errors[-1])
    return float((gains[0] - _EARLY * gains[1]) / error) if error > 0 else math.nan


def _end(curve: Curve) -> str:
    """How a share moves in the last doubling of tokens; empty where that cannot be said."""
    line = tasks.recent_trend(curve) if is_share(curve.metric) else None
    if line is None:
        return ""
    if line.p_below(0.0) < 0.025:
        return FALLING
    if line.p_below(MARGIN) < 0.05:
        return SATURATED
    return GROWING if line.p_above(0.0) < 0.025 else NO_TREND


def _sentence(judged: pd.DataFrame) -> str:
    """How many gains are sudden, gradual or neither, and how wide they are."""
    gained = judged[judged.verdict != NO_GAIN]
    if gained.empty:
        return f"None of {len(judged):,} accuracies and exact matches has a gain."
    counts = gained.verdict.value_counts()
    parts = [f"{counts[v]:,} {v}" for v in (MODEL, METRIC, UNCLEAR) if v in counts]
    parts = parts or ["none is shown to be sudden"]
    if GRADUAL in counts:
        least = gained.low[gained.verdict == GRADUAL].median()
        parts.append(
            f"{counts[GRADUAL]:,} gradual, in the median at least {least:.1f} decades wide"
        )
    if UNRESOLVED in counts:
        parts.append(f"{counts[UNRESOLVED]:,} not resolved by these checkpoints and their noise")
    return f"{len(gained):,} gain{'s' * (len(gained) > 1)} over the tokens: {'; '.join(parts)}."


def _of_ends(judged: pd.DataFrame) -> tuple[str, ...]:
    """A sentence on the ends of the trajectories with a gain."""
    ends = judged[judged.end != ""].end.value_counts()
    if ends.empty:
        return ()
    counts = "; ".join(f"{number:,} {end}" for end, number in ends.items())
    return (
        f"In the last doubling of tokens: {counts}. Saturated is what gains less than "
        f"{100 * MARGIN:g} point per doubling, at 95 % confidence; of tasks without a trend 2.5 % "
        "at most would be called growing and 2.5 % falling.",
    )
