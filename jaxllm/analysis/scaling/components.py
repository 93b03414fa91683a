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

_COMPONENTS = 3
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
    table: pd.DataFrame, *, flops: pd.Series | float = math.nan, family: pd.Series | str = ""
) -> Components:
    """Compute centered, unscaled principal components, imputing gaps by a one-component fit.

    Args:
      table: models x benchmarks, shares from 0 to 1; NaN where a model was not scored.
      flops: training compute of the models, same index.
      family: family of the models, same index.
    """
    notes = []
    sparse = table.columns[table.isna().mean() > _MAX_MISSING]
    if len(sparse):
        notes.append(f"benchmarks with most values missing are left out: {', '.join(sparse)}")
    values = table.drop(columns=sparse)
    values = values.drop(columns=values.columns[values.std() == 0])
    bad = values.isna().mean(axis=1) > _MAX_MISSING
    if bad.any():
        notes.append(f"{int(bad.sum())} models lack most of their values")
    values = values[~bad]
    if len(values) < _MIN_MODELS or len(values.columns) < 2:
        reason = (
            f"{len(values)} models and {len(values.columns)} benchmarks are too few, "
            f"{_MIN_MODELS} and 2 are needed"
        )
        return Components.refuse(reason, tuple(notes))
    gaps = int(values.isna().sum().sum())
    if gaps:
        notes.append(f"{gaps} missing values were filled in from one component")
    left, size, right = _svd(_impute(values.to_numpy("float64")))
    sign = np.where(right.sum(axis=1) < 0, -1.0, 1.0)
    names = [f"PC{i + 1}" for i in range(min(_COMPONENTS, len(size)))]
    scores = pd.DataFrame((left * size * sign)[:, : len(names)], values.index, names)
    loadings = pd.DataFrame((right.T * sign)[:, : len(names)], values.columns, names)
    explained = (size**2 / (size**2).sum())[: len(names)]
    sentence = (
        f"Of {len(loadings)} benchmarks over {len(values)} models, one component explains "
        f"{explained[0]:.0%} of the variance and {len(names)} explain {explained.sum():.0%}"
    )
    families = _families(pd.DataFrame({"score": scores.PC1, "flops": flops, "family": family}))
    if len(families):
        sentence += f"; within {len(families)} families it is linear in log compute "
        sentence += f"(median R² {families.r2.median():.2f})"
    return Components(
        f"{sentence}.", scores, notes=tuple(notes), loadings=loadings, explained=explained,
        families=families,
    )  # fmt: skip


def _svd(values: Array) -> tuple[Array, Array, Array]:
    """Singular value decomposition of the centered table."""
    left, size, right = np.linalg.svd(values - values.mean(axis=0), full_matrices=False)
    return left, size, right


def _impute(values: Array, iterations: int = 200) -> Array:
    """Fill NaN with the rank-one fit of the centered table, iterated until convergence."""
    gaps = np.isnan(values)
    full = np.where(gaps, np.nanmean(values, axis=0), values)
    for _ in range(iterations if gaps.any() else 0):
        left, size, right = _svd(full)
        guess = np.clip(full.mean(axis=0) + size[0] * np.outer(left[:, 0], right[0]), 0, 1)
        moved = np.abs(guess - full)[gaps].max()
        full = np.where(gaps, guess, values)
        if moved < 1e-6:
            break
    return full


def _families(models: pd.DataFrame) -> pd.DataFrame:
    """Lines of `score` over log10 `flops` of each `family`."""
    models = models[(models.flops > 0) & (models.flops < math.inf)].dropna()
    rows = []
    for name, members in models.groupby("family"):
        x, y = np.log10(members.flops.to_numpy("float64")), members.score.to_numpy()
        line = line_fit(x, y, fewest=_MIN_FAMILY)
        if line is not None and len(np.unique(x)) >= _MIN_FAMILY:
            half = line.half_interval(LEVEL)
            r2 = np.corrcoef(x, y)[0, 1] ** 2
            rows.append((name, line.slope, line.slope - half, line.slope + half, r2))
    return pd.DataFrame(rows, columns=["family", "slope", "low", "high", "r2"])
