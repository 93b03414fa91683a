"""Observational scaling: principal components of benchmark scores over many model families.

Ruan et al., "Observational Scaling Laws and the Predictability of Language Model Performance"
(arXiv 2405.10938): a few principal components of a table of models and benchmarks explain most of
its variance, and within a family they are linear in log C.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pandas as pd

from jaxllm.analysis.curves import Array, is_share, of_metric
from jaxllm.analysis.finding import Finding
from jaxllm.analysis.registry import SIZES, Study, analysis
from jaxllm.analysis.scaling.fit import LEVEL
from jaxllm.analysis.stats import line_fit

_MIN_MODELS = 10
_MIN_FAMILY = 3
_MAX_MISSING = 0.5


@dataclasses.dataclass(frozen=True)
class Components(Finding):
    """Principal components of models x benchmarks; the finding's table has the models' scores.

    Attributes:
      loadings: benchmarks x components; signed so that the mean loading of the first is positive.
      explained: share of the variance of each component.
      families: a row per family with enough models: slope of the first component per tenfold
        compute, with `low`, `high` (95 %) and `r2`; empty without families and compute.
    """

    loadings: pd.DataFrame = dataclasses.field(default_factory=pd.DataFrame)
    explained: Array = dataclasses.field(default_factory=lambda: np.empty(0))
    families: pd.DataFrame = dataclasses.field(default_factory=pd.DataFrame)


@analysis(
    SIZES,
    "Principal components",
    needs=Study.several_sizes,
    place=60,
    caption="Weights of the tasks in the direction in which the models differ most; models of one "
    "family are no independent evidence.",
)
def principal_components(study: Study) -> Components:
    """Compute the components of the last values of all runs on tasks that are shares."""
    table = study.curves.table
    last = table[of_metric(is_share, table.metric)]
    by_run = last.groupby("run")
    values = last.pivot_table("value", "run", "task")
    return components(values, flops=by_run.flops.max(), family=by_run.family.last())


def components(
    table: pd.DataFrame,
    *,
    count: int = 3,
    flops: pd.Series | None = None,
    family: pd.Series | None = None,
) -> Components:
    """Compute centered, unscaled principal components, imputing gaps by a one-component fit.

    Args:
      table: models x benchmarks, shares from 0 to 1; NaN where a model was not scored.
      count: number of components.
      flops: training compute of the models, same index.
      family: family of the models, same index.
    """
    values = table.apply(pd.to_numeric, errors="coerce").astype("float64")
    values = values.where(np.isfinite(values))
    notes = []
    sparse = values.columns[values.isna().mean() > _MAX_MISSING]
    if len(sparse):
        notes.append(f"benchmarks with most values missing are left out: {', '.join(sparse)}")
    values = values.drop(columns=sparse)
    values = values.drop(columns=values.columns[values.std() == 0])
    bad = values.isna().mean(axis=1) > _MAX_MISSING
    if bad.any():
        notes.append(f"{int(bad.sum())} models lack most of their values")
    values = values[~bad]
    if values.index.has_duplicates:
        notes.append("models of the same name were averaged")
        values = values.groupby(level=0, sort=False).mean()
    if len(values) < _MIN_MODELS or len(values.columns) < 2:
        reason = (
            f"{len(values)} models and {len(values.columns)} benchmarks are too few, "
            f"{_MIN_MODELS} and 2 are needed"
        )
        return Components.refuse(reason, tuple(notes))
    gaps = int(values.isna().sum().sum())
    if gaps:
        notes.append(f"{gaps} missing values were filled in from one component")
    full = _impute(values.to_numpy())
    left, size, right = np.linalg.svd(full - full.mean(axis=0), full_matrices=False)
    sign = np.where(right.sum(axis=1) < 0, -1.0, 1.0)
    names = [f"PC{i + 1}" for i in range(min(count, len(size)))]
    scores = pd.DataFrame((left * size * sign)[:, : len(names)], values.index, names)
    loadings = pd.DataFrame((right.T * sign)[:, : len(names)], values.columns, names)
    explained = (size**2 / (size**2).sum())[: len(names)]
    families = _families(scores.PC1, flops, family)
    sentence = (
        f"Of {len(loadings)} benchmarks over {len(values)} models, one component explains "
        f"{explained[0]:.0%} of the variance and {len(names)} explain {explained.sum():.0%}"
    )
    if len(families):
        sentence += f"; within {len(families)} families it is linear in log compute "
        sentence += f"(median R² {families.r2.median():.2f})"
    return Components(
        f"{sentence}.", scores, notes=tuple(notes), loadings=loadings, explained=explained,
        families=families,
    )  # fmt: skip


def _impute(values: Array, iterations: int = 200) -> Array:
    """Fill NaN with the rank-one fit of the centered table, iterated until convergence."""
    gaps = np.isnan(values)
    full = np.where(gaps, np.nanmean(values, axis=0), values)
    for _ in range(iterations if gaps.any() else 0):
        mean = full.mean(axis=0)
        left, size, right = np.linalg.svd(full - mean, full_matrices=False)
        guess = np.clip(mean + size[0] * np.outer(left[:, 0], right[0]), 0, 1)
        moved = np.abs(guess - full)[gaps].max()
        full = np.where(gaps, guess, values)
        if moved < 1e-6:
            break
    return full


def _families(score: pd.Series, flops: pd.Series | None, family: pd.Series | None) -> pd.DataFrame:
    rows = []
    if flops is not None and family is not None:
        joined = pd.DataFrame({"score": score})
        joined["flops"] = flops[~flops.index.duplicated()].reindex(score.index)
        joined["family"] = family[~family.index.duplicated()].reindex(score.index)
        joined = joined[(joined.flops > 0) & (joined.flops < math.inf)].dropna()
        for name, members in joined.groupby("family"):
            x, y = np.log10(members.flops.to_numpy("float64")), members.score.to_numpy()
            line = line_fit(x, y, fewest=_MIN_FAMILY)
            if line is not None and len(np.unique(x)) >= _MIN_FAMILY:
                half = line.half_interval(LEVEL)
                r2 = np.corrcoef(x, y)[0, 1] ** 2
                rows.append((name, line.slope, line.slope - half, line.slope + half, r2))
    return pd.DataFrame(rows, columns=["family", "slope", "low", "high", "r2"])
