"""What the analyses of capability dynamics share: clean trajectories, one grid, findings.

Every metric is read as a *score* that grows as the model gets better: an accuracy is its own
score, bits per byte and Brier scores count negatively, a perplexity counts as minus its logarithm.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy import stats

from jaxllm.analysis.capabilities import charted, lower_is_better
from jaxllm.analysis.curves import Panel
from jaxllm.run.records import OK

Array = npt.NDArray[np.float64]


@dataclasses.dataclass(frozen=True)
class Finding:
    """What an analysis returns.

    Attributes:
      sentence: What was found, in one plain sentence made from the numbers.
      table: The numbers, a tidy row each; what the columns mean stands at the analysis.
      refused: Why there is no answer; empty where there is one.
      notes: What of the input was left out or mended, a sentence each.
    """

    sentence: str
    table: pd.DataFrame
    refused: str = ""
    notes: tuple[str, ...] = ()


def refusal(reason: str, columns: tuple[str, ...], notes: tuple[str, ...] = ()) -> Finding:
    """The finding that there is nothing to find, and why."""
    return Finding(f"No answer: {reason}.", pd.DataFrame(columns=list(columns)), reason, notes)


def clean(records: pd.DataFrame) -> tuple[pd.DataFrame, tuple[str, ...]]:
    """One finite value per run, task and checkpoint, and a note on everything mended.

    Adds the columns `score`, `doubt` (its standard error) and `floor` (the score of a guess).
    Records with several metrics per task are reduced to the primary one. Runs of one name that
    differ in size or family get longer names; of records of one checkpoint the last one holds.
    """
    notes: list[str] = []
    frame = records.copy()
    named = frame.groupby("run", sort=False)[["family", "params"]].nunique(dropna=False)
    for run in named.index[(named > 1).any(axis=1)]:
        mine = frame.run == run
        longer = frame.run + " (" + frame.family.astype(str) + ", " + frame.params.astype(str) + ")"
        frame.loc[mine, "run"] = longer[mine]
        notes.append(f"{frame[mine].run.nunique()} runs are called {run}; they are kept apart.")
    if len(frame) and frame.groupby(["run", "task"]).metric.nunique().max() > 1:
        frame = charted(frame)
    good = np.isfinite(frame.value.astype(float)) & np.isfinite(frame.tokens.astype(float))
    good &= frame.status == OK
    if not good.all():
        notes.append(f"{int((~good).sum()):,} of {len(good):,} records have no value.")
    frame = frame[good]
    repeated = frame.duplicated(["run", "task", "tokens"], keep="last")
    if repeated.any():
        notes.append(f"{int(repeated.sum()):,} repeated records: the last of each is used.")
        frame = frame[~repeated]
    lower = frame.metric.map(lower_is_better).astype(bool)
    logged = frame.metric.str.contains("perplexity") & (frame.value > 0)
    sign = np.where(lower, -1.0, 1.0)
    value, chance = frame.value.astype(float), frame.chance.astype(float)
    with np.errstate(all="ignore"):
        frame = frame.assign(
            score=sign * np.where(logged, np.log(value), value),
            doubt=np.where(logged, frame.stderr / value, frame.stderr.astype(float)),
            floor=sign * np.where(logged, np.log(chance), chance),
        )
    return frame.sort_values(["run", "task", "tokens"], ignore_index=True), tuple(notes)


def panel(cleaned: pd.DataFrame) -> Panel:
    """What `clean` returns, on the grid of all its checkpoints."""
    run, runs = pd.factorize(cleaned.run)
    task, tasks = pd.factorize(cleaned.task)
    tokens, at = np.unique(cleaned.tokens.to_numpy(float), return_inverse=True)
    score = np.full((len(runs), len(tokens), len(tasks)), math.nan)
    stderr = score.copy()
    score[run, at, task] = cleaned.score
    stderr[run, at, task] = cleaned.doubt
    by_task = cleaned.groupby("task", sort=False)[["domain", "floor"]].last()
    params = cleaned.groupby("run", sort=False).params.last()
    return Panel(
        tuple(map(str, runs)), params.loc[list(runs)].to_numpy(float), tuple(map(str, tasks)),
        tuple(by_task.domain.loc[list(tasks)].astype(str)), tokens, score, stderr,
    )  # fmt: skip


def same_benchmark(first: str, second: str) -> bool:
    """Whether two tasks ask the same questions, with other numbers of worked examples."""
    return first.split(" ")[0] == second.split(" ")[0]


def false_discovery(pvalues: pd.Series) -> Array:
    """P-values adjusted for their number (Benjamini and Hochberg 1995); NaN stays NaN."""
    values = pvalues.to_numpy(float)
    known = np.isfinite(values)
    if known.any():
        values = values.copy()
        values[known] = stats.false_discovery_control(values[known])
    return values


def least_squares(design: Array, y: Array) -> tuple[Array, float]:
    """Coefficients of the columns of `design`, and the sum of squared residuals (above 0)."""
    coefficients: Array = np.asarray(np.linalg.lstsq(design, y, rcond=None)[0], float)
    residual = y - design @ coefficients
    return coefficients, max(float(residual @ residual), 1e-300)


def amount(number: float) -> str:
    """Tokens, FLOPs or parameters as people say them: 300B, 2.1M."""
    for size, suffix in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "K")):
        if abs(number) >= size:
            return f"{number / size:.3g}{suffix}"
    return f"{number:.3g}"
