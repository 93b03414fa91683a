"""A law of learning rate and batch size from the user's own sweep, a suite of runs.

For a size and number of tokens the best learning rate is the vertex of a parabola in its logarithm
(Bjorck et al. 2024, arXiv 2409.19913). Over sizes it is a power law of the parameters (Porian et
al. 2024, arXiv 2406.19146), and of the tokens where the sweep varies these, too.

The loss is that of the last training steps, which every run has. Runs of one size and seed read the
same text in the same order: a hard stretch moves their losses alike, and the vertex not at all.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from jaxllm.errors import UserError, nearest
from jaxllm.io import location
from jaxllm.models.config import ModelConfig
from jaxllm.run.run import Run
from jaxllm.run.suite_layout import SuiteLayout
from jaxllm.training.rules import RULES, Rule, without_embeddings

LAST = 0.02  # of a run's steps; a decay at its end is well below its peak there
NEAR = math.log(4.1)  # of the best rate; further away a loss is no parabola
APART = 0.1  # in logarithms; sizes nearer to a common line do not determine another exponent
_ROUNDED = 2**0.51  # how far the power of two nearest to a law's batch is from it


class Trial(NamedTuple):
    """A finished run of a sweep; parameters without embeddings, batches in tokens."""

    params: float
    tokens: float
    batch: float
    rate: float
    loss: float


class Optimum(NamedTuple):
    """The best learning rate, and batch, of a size and number of tokens."""

    params: float
    tokens: float
    batch: float
    rate: float
    runs: int  # from which it comes
    note: str  # where it was found, and whether that is inside the sweep


def rule_of(name: str) -> Rule:
    """The law of that name, or of the sweep in that suite's directory; UserError if it is none."""
    if name in RULES:
        return RULES[name]
    layout = SuiteLayout(location(name))
    if (suite := layout.declared()) is None:
        raise UserError(
            f"SuiteConfig.rule = {name!r}: neither the directory of a suite nor one of "
            f"{', '.join(RULES)}{nearest(name, RULES)}"
        )
    trials = [trial for run in suite.runs if (trial := _trial(Run(layout.run(run))))]
    if not (found := optima(trials)):
        raise UserError(
            f"SuiteConfig.rule = {name!r}: {len(trials)} of its {len(suite.runs)} runs are "
            "finished, and no three of them share a size and differ in ScheduleConfig.peak_lr"
        )
    used = f"{sum(one.runs for one in found)} of {len(suite.runs)} runs"
    return law(f"{name} (own sweep, {used})", found, suite.rule)


def optima(trials: Iterable[Trial]) -> list[Optimum]:
    """The optimum of each size and number of tokens at which three learning rates were tried.

    Where batches were swept, too, the best is found alike from the losses at each one's best rate.
    """
    table = pd.DataFrame(trials, columns=Trial._fields)
    found = []
    # steps are whole, so that batches of one wish differ a little in their tokens
    for (params, _), of_size in table.groupby(["params", table.tokens.map("{:.2g}".format)]):
        best, runs = [], 0
        for batch, of_batch in of_size.groupby("batch"):
            curve = of_batch.groupby("rate").loss.mean()
            if len(curve) >= 3:
                runs += len(of_batch)
                span = f"{curve.index[0]:g} to {curve.index[-1]:g}"
                best.append((batch, *vertex(np.log(curve.index), curve.to_numpy()), span))
        if not best:
            continue
        tokens = float(of_size.tokens.mean())
        batches, rates, losses, inside, spans = zip(*best, strict=True)
        at, _, among = vertex(np.log(batches), np.array(losses))
        rate, batch = math.exp(np.interp(at, np.log(batches), rates)), math.exp(at)
        nearest_one = int(np.argmin(np.abs(np.log(batches) - at)))
        note = f"{params:,} parameters, {tokens:,.0f} tokens: best of "
        note += f"{spans[nearest_one]} is {rate:.2g}"
        if not inside[nearest_one]:
            note += ", the end of the sweep: the optimum may lie beyond"
        if len(best) > 1:
            note += f"; batch {batch:,.0f} tokens{'' if among else ', the end of its sweep'}"
        found.append(Optimum(params, tokens, batch, rate, runs, note))
    return found


def vertex(x: np.ndarray, y: np.ndarray) -> tuple[float, float, bool]:
    """Place and height of the vertex of a parabola near the lowest point, between its neighbours.

    And whether it is inside of the increasing `x`: at an end that is lowest, nothing is fitted.
    """
    lowest = int(np.argmin(y))
    if lowest in (0, len(x) - 1):
        return float(x[lowest]), float(y[lowest]), False
    away = x - x[lowest]
    near = (np.abs(away) < NEAR) | (np.abs(np.arange(len(x)) - lowest) <= 1)
    a, b, c = np.polyfit(away[near], y[near], 2)
    shift = float(np.clip(-b / (2 * a), away[lowest - 1], away[lowest + 1])) if a > 0 else 0.0
    return float(x[lowest]) + shift, float(c + shift * (b + shift * a)), True


def law(source: str, found: Sequence[Optimum], trained_by: str) -> Rule:
    """The power law through optima, with the range in which they lie.

    Where the sweep's batches are those of the law `trained_by`, it keeps that law's.
    """
    sizes = np.array([(one.params, one.tokens) for one in found])
    rate, formula = _power_law(sizes, [one.rate for one in found])
    batch, batches = _power_law(sizes, [one.batch for one in found])
    if known := RULES.get(trained_by):
        ratios = [one.batch / known.batch_tokens(one.params, one.tokens) for one in found]
        if all(1 / _ROUNDED < ratio < _ROUNDED for ratio in ratios):
            batch, batches = known.batch_tokens, f"that of {trained_by}, with which it was trained"
    (low, below), (high, above) = sizes.min(axis=0) * 0.98, sizes.max(axis=0) * 1.02
    notes = f"learning rate {formula}, batch {batches}", *(one.note for one in found)
    return Rule(source, rate, batch, (low, high), (below, above), notes)


def _power_law(
    sizes: np.ndarray, values: Sequence[float]
) -> tuple[Callable[[float, float], float], str]:
    """Least squares in logarithms: c N^a D^b, without what the sizes do not determine."""
    logs, exponents = np.log(sizes), list[int]()

    def columns(logs: np.ndarray) -> np.ndarray:
        return np.column_stack([np.ones(len(logs)), logs[:, exponents]])

    for axis in (0, 1) if np.ptp(values) else ():
        design = columns(logs)
        rest = logs[:, axis] - design @ np.linalg.lstsq(design, logs[:, axis], rcond=None)[0]
        if np.abs(rest).max() > APART and len(sizes) > design.shape[1]:
            exponents.append(axis)
    fitted = np.linalg.lstsq(columns(logs), np.log(values), rcond=None)[0]
    powers = zip(exponents, fitted[1:], strict=True)
    text = f"{float(f'{math.exp(fitted[0]):.3g}'):g}"
    text += "".join(f" {'ND'[axis]}^{power:.2f}" for axis, power in powers)
    text += "" if exponents else " for every size"
    return lambda n, d: float(np.exp(columns(np.log([[n, d]])) @ fitted)[0]), text


def _trial(run: Run) -> Trial | None:
    """A run of a sweep by its directory; None if it is not finished."""
    from jaxllm.run.restore import saved_json

    if not run.path.exists() or not (ends := [e for e in run.available() if e.kind == "final"]):
        return None
    rows, rate, step = run.metrics(), run.settings().get("ScheduleConfig.peak_lr"), ends[-1].step
    if rate is None or len(rows) < 2 or step < (run.planned_steps() or 0):
        return None
    model = ModelConfig(**saved_json(run.layout, step)["model"])
    late = rows.step > (1 - LAST) * step
    loss = np.average(rows.loss[late], weights=rows.step.diff()[late])
    batch = rows.tokens.diff().iloc[-1] / rows.step.diff().iloc[-1]
    return Trial(without_embeddings(model), rows.tokens.iloc[-1], batch, float(rate), float(loss))
