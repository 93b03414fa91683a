"""The checks that read the records: capabilities that fall, and runs that leave a band of others.

Only metrics whose better direction is known are judged: shares (up), perplexity, bits per byte and
their kin (down, perplexities by their logarithm).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy import stats

from jaxllm.analysis import capabilities
from jaxllm.analysis.checks import ALPHA, Check, Trend, discoveries, trend

# The last doubling of tokens counts as the present, and so many checkpoints are the least.
FEWEST = 5
FEWEST_REFERENCES = 3
_UNTRAINED = 0.01
_TOGETHER = 3  # checkpoints that are averaged where single ones would be too noisy


@dataclasses.dataclass(frozen=True)
class Curve:
    """One task of one run, turned so that up is better.

    Attributes:
      run: Name of the run.
      task: Name of the task.
      metric: Its metric.
      version: Its version; other versions are other tasks.
      is_share: Whether the metric is a share, so that its points can be averaged over tasks.
      params: Parameters of the model; NaN when unknown.
      tokens: Increasing and positive. Shape [n].
      better: The metric, negative where lower is better, perplexities by their logarithm. [n].
      noise: Standard error of one point, at least that of one example more or less; 0 if unknown.
      chance: On the scale of `better`; NaN where there is none.
    """

    run: str
    task: str
    metric: str
    version: str
    is_share: bool
    params: float
    tokens: npt.NDArray[np.float64]
    better: npt.NDArray[np.float64]
    noise: float
    chance: float

    @property
    def recent(self) -> int:
        """How many of the last points count as the present."""
        return recent(self.tokens)

    def recent_trend(self) -> Trend | None:
        """The trend of the recent points, per doubling of tokens; None for fewer than `FEWEST`."""
        if len(self.tokens) < FEWEST:
            return None
        last = slice(-self.recent, None)
        return trend(np.log2(self.tokens[last]), self.better[last], self.noise)

    def is_learned(self) -> bool:
        """Whether the run was above chance before its recent points: else there is nothing to lose.

        What it scored in the first hundredth of its tokens counts as chance too: a model that
        always names the more frequent label has learned nothing.
        """
        before = self.better[: -self.recent][-_TOGETHER:]
        if not len(before):
            return True
        untrained = self.better[self.tokens <= _UNTRAINED * self.tokens[-1]]
        floor = np.fmax(self.chance, np.median(untrained) if len(untrained) else math.nan)
        return not before.mean() - 2 * self.noise <= floor


def recent(tokens: npt.NDArray[np.float64]) -> int:
    """How many of the increasing `tokens` are in the last doubling, `FEWEST` at least."""
    return max(FEWEST, int(np.sum(tokens >= tokens[-1] / 2)))


def curves(points: pd.DataFrame) -> list[Curve]:
    """The curves of charted trajectories, without points that have no value or direction.

    Of several versions of a task in one run the last is taken.
    """
    if points.empty:
        return []
    metrics = points.metric.unique()
    down = points.metric.map({m: capabilities.lower_is_better(m) for m in metrics}).astype(bool)
    share = points.metric.map({m: capabilities.is_share(m) for m in metrics}).astype(bool)
    logarithmic = points.metric.str.contains("perplexity") & (points.value > 0)
    value = points.value.where(~logarithmic, np.log(points.value.where(logarithmic)))
    noise = points.stderr.where(~logarithmic, points.stderr / points.value)
    one_example = (1.0 / points.n.where(points.n > 0)).where(share, 0.0)
    frame = points.assign(
        better=value.where(~down, -value), share=share,
        noise=np.fmax(noise, one_example), chance=points.chance.where(~down, -points.chance),
    )  # fmt: skip
    last = frame.groupby(["run", "task"]).task_version.transform("last")
    keep = (down | share) & np.isfinite(frame.better) & (frame.tokens > 0)
    frame = frame[keep & (frame.task_version == last)]
    frame = frame.sort_values(["run", "task", "tokens"], ignore_index=True)
    frame = frame.drop_duplicates(["run", "task", "tokens"], keep="last")
    tokens, better = frame.tokens.to_numpy(np.float64), frame.better.to_numpy(np.float64)
    errors, params = frame.noise.to_numpy(np.float64), frame.params.to_numpy(np.float64)
    chances, shares = frame.chance.to_numpy(np.float64), frame.share.to_numpy()
    if frame.empty:
        return []
    names = frame[["run", "task", "metric", "task_version"]].to_numpy()
    bounds = np.flatnonzero((names[1:, :2] != names[:-1, :2]).any(axis=1)) + 1
    found = []
    for rows in np.split(np.arange(len(frame)), bounds):
        late = errors[rows][-max(_TOGETHER, len(rows) // 2) :]
        known = late[np.isfinite(late)]
        noise_of_one = float(np.median(known)) if len(known) else 0.0
        end = rows[-1]
        run, task, metric, version = names[end]
        found.append(
            Curve(run, task, metric, version, bool(shares[end]), params[end], tokens[rows],
                  better[rows], noise_of_one, chances[end])
        )  # fmt: skip
    return found


def falling(
    mine: Sequence[Curve], run: str, loss_falls: bool | None, alpha: float = ALPHA
) -> Check:
    """Which capabilities get worse over the last doubling of tokens while the loss falls.

    Null hypothesis for each task: its trend does not fall. The scatter counts as no less than the
    sampling error, and the fall must exceed it. Tasks that were at chance before have nothing to
    lose and are not asked. Over all others the false-discovery rate is held at `alpha`.

    Args:
      mine: The curves of the run.
      run: Its name.
      loss_falls: Whether its loss falls in that time; None when that is not known.
      alpha: False-discovery rate.
    """
    name = "falling capabilities"
    rows, at_chance = [], 0
    for curve in mine:
        line = curve.recent_trend()
        if line is None:
            continue
        if not curve.is_learned():
            at_chance += 1
            continue
        fall = -line.slope * line.span
        p = line.p_below(0.0) if fall > line.scatter else 1.0
        rows.append({"task": curve.task, "fall": fall, "scatter": line.scatter, "now": line.end,
                     "p_value": p})  # fmt: skip
    if not rows:
        few = f"it takes {FEWEST} scored checkpoints of a task"
        return Check(name, run, refused="no task has left chance" if at_chance else few)
    table = pd.DataFrame(rows).sort_values("p_value", ignore_index=True)
    table["found"] = discoveries(table.p_value.to_numpy(), alpha)
    found = table[table.found]
    if found.empty:
        reason = f"None of {len(table)} tasks above chance falls in the last doubling of tokens."
        return Check(name, run, number=0, reason=reason, p_value=float(table.p_value.min()),
                     table=table)  # fmt: skip
    names = ", ".join(f"{row.task} (by {row.fall:.3g})" for row in found.iloc[:3].itertuples())
    more = f" and {len(found) - 3} more" if len(found) > 3 else ""
    while_what = {True: ", while the loss falls", False: ", as the loss does not fall either",
                  None: " (whether the loss falls is not known)"}[loss_falls]  # fmt: skip
    reason = (
        f"{len(found)} of {len(table)} tasks above chance get worse{while_what}: {names}{more}."
    )
    advice = (
        "Compare the data of this phase with that of the phase before, and look at the examples "
        "that were lost; if the model is small, it may be giving up rare skills for frequent text."
    )
    return Check(name, run, True, float(len(found)), reason, advice,
                 p_value=float(found.p_value.max()), table=table,
                 subjects=tuple(found.task))  # fmt: skip


def outside_band(
    mine: Sequence[Curve], run: str, others: Sequence[Curve], alpha: float = ALPHA
) -> Check:
    """Which tasks are worse than other runs were after as many tokens.

    The band is the prediction interval of a line in log parameters through the reference runs
    (through their mean where they have fewer than three sizes), all read at the run's last three
    checkpoints by interpolation in log tokens and averaged over them. Null hypothesis for each
    task: the run is drawn from the same line. The false-discovery rate over tasks is `alpha`.

    Args:
      mine: The curves of the run.
      run: Its name.
      others: The curves of the runs to compare with, of `FEWEST_REFERENCES` or more.
      alpha: False-discovery rate.
    """
    name = "reference band"
    by_task: dict[tuple[str, str, str], list[Curve]] = {}
    for curve in others:
        if curve.run != run:
            by_task.setdefault((curve.task, curve.metric, curve.version), []).append(curve)
    if len({curve.run for curve in others} - {run}) < FEWEST_REFERENCES:
        return Check(name, run, refused=f"it takes {FEWEST_REFERENCES} runs to compare with")
    rows = []
    for curve in mine:
        row = _against(curve, by_task.get((curve.task, curve.metric, curve.version), []))
        if row is not None:
            rows.append({"task": curve.task, **row})
    if not rows:
        return Check(name, run, refused="no task was scored on enough other runs at these tokens")
    table = pd.DataFrame(rows).sort_values("p_value", ignore_index=True)
    table["found"] = discoveries(table.p_value.to_numpy(), alpha)
    found = table[table.found]
    where = f"the band of {int(table.runs.max())} other runs at equal tokens"
    if found.empty:
        return Check(name, run, number=0, reason=f"None of {len(table)} tasks is below {where}.",
                     p_value=float(table.p_value.min()), table=table)  # fmt: skip
    names = ", ".join(
        f"{row.task} ({row.value:.3g}, expected {row.expected:.3g} ± {row.doubt:.2g})"
        for row in found.iloc[:3].itertuples()
    )
    more = f" and {len(found) - 3} more" if len(found) > 3 else ""
    reason = f"{len(found)} of {len(table)} tasks are below {where}: {names}{more}."
    advice = "Check tokenizer, data order and learning rate against those runs before going on."
    return Check(name, run, True, float(len(found)), reason, advice,
                 p_value=float(found.p_value.max()), table=table,
                 subjects=tuple(found.task))  # fmt: skip


def _against(mine: Curve, others: Sequence[Curve]) -> dict[str, float] | None:
    """One task of the run against its reference runs; None where there are too few."""
    clock = np.log(mine.tokens[-_TOGETHER:])
    values, sizes = [], []
    for other in others:
        known = np.log(other.tokens)
        if known[0] <= clock[0] + 1e-9 and clock[-1] <= known[-1] + 1e-9:
            values.append(float(np.interp(clock, known, other.better).mean()))
            sizes.append(other.params)
    n = len(values)
    if n < FEWEST_REFERENCES:
        return None
    y, x = np.array(values), np.log(np.array(sizes, np.float64))
    own = math.log(mine.params) if mine.params > 0 else math.nan
    flat = len(np.unique(x)) < 3 or not np.isfinite([*x, own]).all()
    design = np.ones((n, 1)) if flat else np.column_stack([np.ones(n), x])
    at = np.ones(1) if flat else np.array([1.0, own])
    coefficients = np.linalg.lstsq(design, y, rcond=None)[0]
    dof = n - design.shape[1]
    scatter = math.sqrt(float(np.sum((y - design @ coefficients) ** 2)) / dof)
    leverage = float(at @ np.linalg.inv(design.T @ design) @ at)
    doubt = max(scatter, mine.noise) * math.sqrt(1 + leverage)
    value, expected = float(mine.better[-_TOGETHER:].mean()), float(at @ coefficients)
    p = float(stats.t.cdf((value - expected) / doubt, dof)) if doubt > 0 else 1.0
    return {"value": value, "expected": expected, "doubt": doubt, "runs": n, "p_value": p}
