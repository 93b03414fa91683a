"""Collapse of normalized loss curves: runs of equal tokens per parameter are one curve.

x is the share of the run's tokens. Two published normalizations: the loss over its final value
("Celerity", arXiv 2509.25087), and the same of the excess over the irreducible loss L0
("supercollapse", arXiv 2507.02119). Both assume one schedule and one AdamW timescale,
B / (eta lambda D).
"""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
from scipy import stats

from jaxllm.analysis.finding import Finding
from jaxllm.analysis.health.result import ALPHA, Check
from jaxllm.analysis.registry import SIZES, Study, analysis
from jaxllm.analysis.scaling.fit import finished
from jaxllm.analysis.stats import Array, line_fit

GRID = np.linspace(0.1, 0.98, 89)  # x
AT = (0.2, 0.3, 0.5, 0.7)  # x of the spreads in the sentence
_ALIKE = 1.1  # ratio up to which tokens per parameter are equal
_SMOOTHED = 100  # parts of a log whose means are its curve
_FINAL = 3  # fewest logged losses whose mean is the final one
_SCHEDULE = 0.1  # difference in learning rate over its peak up to which schedules are equal
_FEWEST = 3  # siblings, for a test
_LATE = 0.2  # share of the curve so far that is tested against the rest


@analysis(
    SIZES,
    "Normalized loss curves",
    needs=lambda study: study.losses.params.nunique() > 1,
    place=20,
    caption="The training loss of finished runs over their final loss, against the share of their "
    "tokens. Runs of equal tokens per parameter, schedule and AdamW timescale should be one curve; "
    "one that leaves it has a fault or other settings.",
    method="Collapse of loss curves (arXiv 2509.25087, arXiv 2507.02119).",
)
def collapse(study: Study) -> Finding:
    """Normalize the loss curves of the finished runs of each group of siblings: of equal tokens per
    parameter, and of one family and learning rate over its peak where they are known.

    Rows of `run, params, tokens_per_param, x, ratio, excess, group`: both normalizations on a grid.
    The irreducible loss is that of a power law of the final losses; without four sizes `excess` is
    NaN.
    """
    parts, lines = list[pd.DataFrame](), []
    for group in _groups(study):
        if group.params.nunique() < 2:
            continue
        final = finished(group, "loss", last=_FINAL).set_index("run")
        floor = _irreducible(final.params.to_numpy(float), final.loss.to_numpy(float))
        each = group.groupby("run", sort=False)
        table = pd.concat([_normalized(rows, final.loss[run], floor) for run, rows in each])
        parts.append(table.assign(group=len(parts)))
        at = ", ".join(f"{100 * spread(table, x):.2f}% at {x:.0%}" for x in AT)
        line = (
            f"{len(final)} runs of {final.params.nunique()} sizes at "
            f"{final.tokens_per_param.mean():.3g} tokens per parameter: over their final losses "
            f"the curves differ by {at} of the tokens"
        )
        if math.isfinite(floor):
            mean = [np.mean([spread(table, x, by) for x in AT]) for by in ("ratio", "excess")]
            line += (
                f" ({mean[0]:.2%} on average; {mean[1]:.2%} of the excess over an irreducible loss "
                f"of {floor:.2f})"
            )
        lines.append(f"{line}.")
    if not parts:
        return Finding.refuse("no two sizes have finished at equal tokens per parameter")
    return Finding(lines[0], pd.concat(parts, ignore_index=True), lines=tuple(lines[1:]))


def spread(table: pd.DataFrame, x: float, by: str = "ratio") -> float:
    """Largest minus smallest normalized loss at `x`, relative to their mean."""
    at = [np.interp(x, rows.x, rows[by]) for _, rows in table.groupby("run")]
    return float(np.ptp(at) / np.mean(at))


def leaves_collapse(study: Study, run: str) -> Check | None:
    """Whether a run in progress leaves the curve of its finished siblings upwards.

    Its loss over the siblings' mean curve should be a constant, its final loss. The statistic is
    the mean log ratio in the last fifth of what is seen minus that before; its null distribution
    that of another sibling: Student's t, from the siblings' own. None without enough siblings.
    """
    own = study.losses[study.losses.run == run].dropna(subset=["loss"])
    planned = study.planned_tokens.get(run)
    if planned is None or own.empty:
        return None
    ratio = planned / own.params.iloc[0]
    alike = lambda group: all(_of(study, one, run, ratio) for _, one in group.groupby("run"))
    group = next(filter(alike, _groups(study)), None)
    now = own.tokens.max() / planned
    grid = GRID[now >= GRID]
    if group is None or group.run.nunique() < _FEWEST or len(grid) < 20:
        return None
    siblings = [np.log(_curve(rows, 1.0, grid)) for _, rows in group.groupby("run")]
    mean = np.mean(siblings, axis=0)
    late = grid > grid[0] + (1 - _LATE) * (grid[-1] - grid[0])

    def rise(curve: Array) -> float:
        difference = curve - mean
        return float(difference[late].mean() - difference[~late].mean())

    excess = rise(np.log(_curve(own, now, grid)))
    count = len(siblings)
    scale = math.sqrt(sum(rise(one) ** 2 for one in siblings) / (count - 1) * (1 + 1 / count))
    p = float(stats.t.sf(excess / max(scale, 1e-12), count - 1))
    reason = (
        f"In the last {_LATE:.0%} of the tokens so far the loss is {excess:+.2%} off the curve of "
        f"{count} finished runs at equal tokens per parameter, as scaled before (p = {p:.2g})."
    )
    advice = (
        "Compare schedule, learning rate, batch, weight decay and data; if they are equal, look "
        "for a numerical fault."
    )
    return Check("collapse", p < ALPHA, excess, reason, advice, p_value=p)


def _of(study: Study, group: pd.DataFrame, run: str, tokens_per_param: float) -> bool:
    """Whether a run is a sibling: of a group's tokens per parameter, family and schedule."""
    other, ratio = group[["run", "tokens_per_param"]].iloc[0]
    families, shapes = {study.families.get(one) for one in (run, other)}, []
    for one in (run, other):
        rates = study.planned_rates.get(one, np.full(1, math.nan))
        share = np.linspace(1 / len(rates), 1, len(rates))
        shapes.append(np.interp(np.linspace(GRID[0], 1, 10), share, rates / rates.max()))
    return (
        abs(math.log(ratio / tokens_per_param)) <= math.log(_ALIKE)
        and len(families - {None}) < 2
        and not (np.abs(shapes[0] - shapes[1]) > _SCHEDULE).any()
    )


def _groups(study: Study) -> list[pd.DataFrame]:
    """Losses of finished runs, that are no branches: of siblings of equal tokens per parameter."""
    losses = study.losses.dropna(subset=["loss", "params", "tokens"])
    losses = losses[(losses.tokens > 0) & (losses.params > 0) & (losses.loss > 0)]
    losses = losses[~losses.run.isin([*study.planned_tokens, *study.parents])]
    per_run = losses.groupby("run", sort=False)
    losses = losses[per_run.loss.transform("size") >= 10]
    last = losses.groupby("run").tokens.transform("max")
    losses = losses.assign(tokens_per_param=last / losses.params)
    groups: list[list[pd.DataFrame]] = []
    for _, rows in losses.groupby(["tokens_per_param", "run"]):
        for group in groups:
            if all(_of(study, one, *rows[["run", "tokens_per_param"]].iloc[0]) for one in group):
                group.append(rows)
                break
        else:
            groups.append([rows])
    return [pd.concat(group) for group in groups]


def _curve(rows: pd.DataFrame, until: float, grid: Array) -> Array:
    """The smoothed loss at the points of a grid, of a log that ends at x = `until`."""
    rows = rows.sort_values("tokens")
    width = max(1, len(rows) // _SMOOTHED)
    smooth = rows[["tokens", "loss"]].rolling(width).mean().dropna()
    return np.interp(grid, until * smooth.tokens / rows.tokens.iloc[-1], smooth.loss)


def _normalized(rows: pd.DataFrame, final: float, floor: float) -> pd.DataFrame:
    """The curve of one run in both normalizations, on the grid."""
    curve = _curve(rows, 1.0, GRID)
    excess = (curve - floor) / (final - floor)
    table = pd.DataFrame({"x": GRID, "ratio": curve / final, "excess": excess})
    return table.assign(**rows[["run", "params", "tokens_per_param"]].iloc[0])


def _irreducible(params: Array, final: Array) -> float:
    """L0 of final = L0 + a N^-b by least squares of the logs; NaN of less than four sizes."""
    if len(np.unique(params)) < 4:  # three lie on such a law whatever they are
        return math.nan
    errors = {}
    for floor in np.linspace(0, 0.98, 99) * final.min():
        line = line_fit(np.log(params), np.log(final - floor))
        if line is not None and line.slope < 0:
            # In units of the loss, so that floors can be compared.
            errors[floor] = float(np.sum((np.exp(line.at(np.log(params))) + floor - final) ** 2))
    return min(errors, key=errors.__getitem__, default=math.nan)
