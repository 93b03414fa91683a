"""Observational scaling: public models of many families as one scaling law of capabilities.

Ruan et al., "Observational Scaling Laws and the Predictability of Language Model Performance"
(arXiv 2405.10938): a few principal components S of a table of models and benchmarks stand for
capability; a task follows sigma(w.S + w0) across families, and S is linear in log C within one.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pandas as pd
from scipy import special, stats

from jaxllm.analysis import scaling_fit
from jaxllm.analysis.scaling_fit import DRAWS, LEVEL, Estimate

_MIN_MODELS = 10
_MIN_FAMILY = 3
_MAX_FLOOR = 0.2
_MAX_MISSING = 0.5


@dataclasses.dataclass(frozen=True)
class Capabilities:
    """Principal components of a table of models and benchmarks.

    Attributes:
      scores: Models x components; the sign makes the mean benchmark rise with the first.
      loadings: Benchmarks x components.
      explained: Share of the variance of each component.
      families: A row per family with enough models: slope of the first component per tenfold
        compute, with `low`, `high`, `r2`, `n`. Empty without families and compute.
      n: Number of models.
      refused: Why there are no components, "" where there are.
      notes: What was left out or filled in.
    """

    scores: pd.DataFrame
    loadings: pd.DataFrame
    explained: np.ndarray
    families: pd.DataFrame
    n: int
    refused: str = ""
    notes: tuple[str, ...] = ()

    @property
    def table(self) -> pd.DataFrame:
        """The scores."""
        return self.scores

    @property
    def sentence(self) -> str:
        """What was found, in one sentence."""
        if self.refused:
            return f"No common capabilities: {self.refused}."
        text = (
            f"Of {len(self.loadings)} benchmarks over {self.n} models, one component explains "
            f"{self.explained[0]:.0%} of the variance and {len(self.explained)} explain "
            f"{self.explained.sum():.0%}"
        )
        if len(self.families):
            median = self.families.r2.median()
            text += f"; within {len(self.families)} families it is linear in log compute "
            text += f"(median R² {median:.2f})"
        return text + "."


def capabilities(
    table: pd.DataFrame,
    *,
    components: int = 3,
    flops: pd.Series | None = None,
    family: pd.Series | None = None,
) -> Capabilities:
    """Centred, unscaled principal components; gaps are filled by a one-component fit.

    Args:
      table: Models x benchmarks, shares from 0 to 1; NaN where a model was not scored.
      components: How many to keep.
      flops: Training compute of the models, same index.
      family: Family of the models, same index.
    """
    values = table.apply(pd.to_numeric, errors="coerce").astype("float64")
    values = values.where(np.isfinite(values))
    notes = []
    sparse = values.columns[values.isna().mean() > _MAX_MISSING]
    if len(sparse):
        notes.append(f"benchmarks with most values missing are left out: {', '.join(sparse)}")
    values = values.drop(columns=sparse)
    flat = values.columns[values.std() == 0]
    values = values.drop(columns=flat)
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
        empty = pd.DataFrame()
        return Capabilities(empty, empty, np.array([]), empty, len(values), reason, tuple(notes))
    gaps = int(values.isna().sum().sum())
    if gaps:
        notes.append(f"{gaps} missing values were filled in from one component")
    full = _impute(values.to_numpy())
    centred = full - full.mean(axis=0)
    left, size, right = np.linalg.svd(centred, full_matrices=False)
    keep = min(components, len(size))
    sign = np.where(right[:keep].sum(axis=1) < 0, -1.0, 1.0)
    names = [f"PC{i + 1}" for i in range(keep)]
    scores = pd.DataFrame(left[:, :keep] * size[:keep] * sign, values.index, names)
    loadings = pd.DataFrame((right[:keep] * sign[:, None]).T, values.columns, names)
    return Capabilities(
        scores, loadings, (size**2 / (size**2).sum())[:keep],
        _families(scores.PC1, flops, family), len(values), "", tuple(notes),
    )  # fmt: skip


def _impute(values: np.ndarray, iterations: int = 200) -> np.ndarray:
    """Fills NaN with the rank-one fit of the centred table, repeated until it settles."""
    gaps = np.isnan(values)
    full = np.where(gaps, np.nanmean(values, axis=0), values)
    for _ in range(iterations):
        mean = full.mean(axis=0)
        left, size, right = np.linalg.svd(full - mean, full_matrices=False)
        guess = np.clip(mean + size[0] * np.outer(left[:, 0], right[0]), 0, 1)
        moved = np.abs(guess - full)[gaps].max() if gaps.any() else 0.0
        full = np.where(gaps, guess, values)
        if moved < 1e-6:
            break
    return full


def _families(score: pd.Series, flops: pd.Series | None, family: pd.Series | None) -> pd.DataFrame:
    columns = ["family", "slope", "low", "high", "r2", "n"]
    if flops is None or family is None:
        return pd.DataFrame(columns=columns)
    rows = []
    joined = pd.DataFrame({"score": score})
    joined["flops"] = flops[~flops.index.duplicated()].reindex(score.index)
    joined["family"] = family[~family.index.duplicated()].reindex(score.index)
    joined = joined[(joined.flops > 0) & (joined.flops < math.inf)].dropna()
    for name, members in joined.groupby("family"):
        x = np.log10(members.flops.to_numpy("float64"))
        if len(np.unique(x)) < _MIN_FAMILY:
            continue
        line = stats.linregress(x, members.score)
        reach = stats.t.ppf((1 + LEVEL) / 2, len(x) - 2) * line.stderr
        rows.append((name, line.slope, line.slope - reach, line.slope + reach,
                     line.rvalue**2, len(x)))  # fmt: skip
    return pd.DataFrame(rows, columns=columns)


@dataclasses.dataclass(frozen=True)
class CapabilityLaw:
    """A task as a sigmoid of what models are measured by: (1 - b) sigma(w.x + w0) + b.

    Attributes:
      task: Name of the task.
      inputs: Names of x.
      weights: w0 and w, by name, and the floor b.
      table: A row per model: `value`, `predicted`, `held_out`.
      train_error: Mean absolute error on the models fitted.
      test_error: On the models held out; `constant_error`: of predicting them by the mean of the
        models fitted.
      constant_error: See there.
      n_train: Models fitted; `n_test`: held out.
      n_test: See there.
      refused: Why there is no law, "" where there is one.
    """

    task: str
    inputs: tuple[str, ...]
    weights: dict[str, Estimate]
    table: pd.DataFrame
    train_error: float
    test_error: float
    constant_error: float
    n_train: int
    n_test: int
    refused: str = ""

    @property
    def sentence(self) -> str:
        """What was found, in one sentence."""
        if self.refused:
            return f"No capability law of {self.task}: {self.refused}."
        return (
            f"{self.task} follows a sigmoid of {', '.join(self.inputs)}: mean absolute error "
            f"{self.test_error:.3f} on {self.n_test} models held out "
            f"({self.train_error:.3f} on the {self.n_train} fitted, "
            f"{self.constant_error:.3f} from their mean)."
        )


def capability_law(
    inputs: pd.DataFrame, task: pd.Series, held_out: pd.Series, *, draws: int = DRAWS, seed: int = 0
) -> CapabilityLaw:
    """Fits a task to `inputs` (components, or log compute) and scores it on models held out.

    Args:
      inputs: Models x inputs.
      task: Value of the task per model, a share from 0 to 1; its name is the task's.
      held_out: True for the models that the fit must not see, e.g. those above some compute.
      draws: Bootstrap draws of models.
      seed: Of the bootstrap.
    """
    name, columns = str(task.name or "the task"), tuple(str(c) for c in inputs.columns)
    frame = inputs[~inputs.index.duplicated()].astype("float64")
    frame = frame.assign(value=task[~task.index.duplicated()].reindex(frame.index))
    frame = frame.assign(held_out=held_out[~held_out.index.duplicated()].reindex(frame.index))
    frame = frame.replace([math.inf, -math.inf], math.nan).dropna()
    test = frame.held_out.astype(bool).to_numpy()
    x, y = frame[list(inputs.columns)].to_numpy(), frame.value.to_numpy("float64")
    n = int((~test).sum())

    def refuse(reason: str) -> CapabilityLaw:
        nan = math.nan
        return CapabilityLaw(name, columns, {}, pd.DataFrame(), nan, nan, nan, n, int(test.sum()),
                             reason)  # fmt: skip

    if n < _MIN_MODELS or n < 3 * (x.shape[1] + 2):
        return refuse(f"{n} models are too few for {x.shape[1] + 2} parameters")
    if np.ptp(y[~test]) == 0:
        return refuse("all models fitted have the same value")
    center, scale = x[~test].mean(axis=0), x[~test].std(axis=0)
    scale = np.where(scale > 0, scale, 1.0)
    unit = (x - center) / scale
    fitted = unit[~test]

    def model(law: np.ndarray, at: np.ndarray = fitted) -> np.ndarray:
        floor = law[:, [-1]]
        return floor + (1 - floor) * special.expit(law[:, [0]] + law[:, 1:-1] @ at.T)

    starts = np.zeros((9, x.shape[1] + 2))
    starts[:, 0] = np.repeat([-3.0, -1.0, 1.0], 3)
    starts[:, 1] = np.tile([0.3, 1.0, 3.0], 3)
    low, high = [-30.0] * (x.shape[1] + 1) + [0.0], [30.0] * (x.shape[1] + 1) + [_MAX_FLOOR]
    best = scaling_fit.best_fit(model, y[~test], starts, low=low, high=high)
    again, _ = scaling_fit.fit(
        model, y[~test], np.tile(best, (draws, 1)),
        weights=scaling_fit.resamples(n, draws, seed), low=low, high=high,
    )  # fmt: skip
    found = np.vstack([best, again])
    found[:, 1:-1] /= scale
    found[:, 0] -= found[:, 1:-1] @ center
    predicted = model(best[None], unit)[0]
    errors = np.abs(predicted - y)
    constant = np.abs(y[test] - y[~test].mean())
    names = ("w0", *columns, "floor")
    return CapabilityLaw(
        name, columns,
        {key: Estimate.of(v[0], v[1:]) for key, v in zip(names, found.T, strict=True)},
        pd.DataFrame({"value": y, "predicted": predicted, "held_out": test}, index=frame.index),
        float(errors[~test].mean()), float(errors[test].mean()) if test.any() else math.nan,
        float(constant.mean()) if test.any() else math.nan, n, int(test.sum()),
    )  # fmt: skip
