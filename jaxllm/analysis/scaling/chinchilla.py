"""Compute-optimal parameters and tokens: Chinchilla's approaches 2 and 3 (Hoffmann et al., arXiv
2203.15556, section 3), isoFLOP curves and L(N, D) = E + A / N^alpha + B / D^beta; C = 6 N D.

Approach 1, the envelope of training curves, needs runs whose learning rate has fallen at every
budget, and is left out.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy import interpolate, stats

from jaxllm.analysis.curves import Array
from jaxllm.analysis.finding import Finding, amount, power_of_ten
from jaxllm.analysis.registry import SIZES, Study, analysis
from jaxllm.analysis.scaling.fit import (
    BENCHMARK,
    DRAWS,
    FEWEST_SIZES,
    FIT_DRAWS,
    LEVEL,
    UNKNOWN,
    IntervalEstimate,
    family_losses,
    fit,
    names,
    outliers,
    resamples,
    squared_errors,
    usable,
)
from jaxllm.analysis.stats import line_fit, near_equal

DELTA = 1e-3  # error of log L from which the loss of the parametric fit is linear
_FLAT = 1e-4  # exponent below which the loss does not fall
_NO_FLOOR = 0.01  # share of the loss below which an irreducible one counts as none
_GRID = 300
_WINDOW = 2  # number of neighbours on either side of a budget's lowest point


@dataclasses.dataclass(frozen=True)
class ComputeOptimal(Finding):
    """Compute-optimal N and D as power laws of C: N = k C^a, D = C / (6 N).

    The table has the optimum of each budget, with `low`, `high`, the `fitted` N and its log
    `residual` (isoFLOP), or each run's `loss`, `fitted` and log `residual` (parametric).
    `parameters` are A, B, E, alpha, beta of the parametric loss; `draws` [B, 2] are bootstrap draws
    of (log k, a), the fit itself first; `law_draws` [B, 5], those of (log A, alpha, log B, beta,
    log E), are NaN for isoFLOP.
    """

    params_exponent: IntervalEstimate = UNKNOWN  # a
    parameters: dict[str, IntervalEstimate] = dataclasses.field(default_factory=dict)
    draws: Array = dataclasses.field(default_factory=lambda: np.full((1, 2), np.nan), repr=False)
    law_draws: Array = dataclasses.field(
        default_factory=lambda: np.full((1, 5), np.nan), repr=False
    )

    def losses(self, params: Array | float, tokens: Array | float) -> Array:
        """Draws [B] of the parametric loss, the fit first; NaN for the other approaches."""
        return np.exp(_log_loss(self.law_draws.T, np.log(params), np.log(tokens)))


@analysis(
    SIZES,
    "Compute-optimal sizes",
    needs=Study.several_sizes,
    place=40,
    caption="Of finished runs of one family only, since the learning rate of others has yet to "
    "fall; C = 6ND.",
    method="IsoFLOP curves and the parametric loss (Hoffmann et al. 2022, arXiv 2203.15556, §3).",
)
def compute_optimal(study: Study) -> list[Finding]:
    """Apply both approaches to the losses of a study, with a finding each."""
    points, measure, kind, notes = family_losses(study)
    if kind == BENCHMARK:
        reason = f"no training or validation loss is known of three sizes, only {measure}"
        return [Finding.refuse(reason, notes)]
    findings = {"isoFLOP": isoflop(points), "parametric loss": parametric(points)}
    return [
        dataclasses.replace(
            one, title=f"Compute-optimal for the {measure}: {name}", notes=(*notes, *one.notes)
        )
        for name, one in findings.items()
    ]


def _finding(
    approach: str, draws: Array, table: pd.DataFrame, flops: float, count: int,
    notes: tuple[str, ...], seen: pd.DataFrame | None = None,
) -> ComputeOptimal:  # fmt: skip
    """Finding with the optimum at `flops`, the largest budget; none outside the runs `seen`."""
    exponent = IntervalEstimate.of(draws[:, 1])
    params = math.exp(draws[0, 0] + draws[0, 1] * math.log(flops))
    tokens = flops / 6 / params
    optimum = f"{amount(params)} parameters on {amount(tokens)} tokens"
    if seen is not None:
        ranges = (params, seen.params), (tokens, seen.tokens)
        if not all(column.min() <= value <= column.max() for value, column in ranges):
            optimum = "beyond the sizes or the tokens of these runs"
    sentence = (
        f"From {approach} ({count} points), the compute-optimal size grows as C^a with "
        f"a = {exponent}; at {power_of_ten(flops)} FLOPs, the largest budget"
        f"{' with an optimum' if seen is None else ''}, it is {optimum}."
    )
    return ComputeOptimal(sentence, table, notes=notes, params_exponent=exponent, draws=draws)


def _lines(x: Array, rows: Array, weights: Array | None = None) -> Array:
    """Intercepts and slopes [B, 2] of lines through rows [B, n] over x [n], ignoring NaN.

    Rows after the first without a line are left out.
    """
    lines = [line_fit(x, row, weights) for row in rows]
    known = [(float(line.at(0.0)), line.slope) for line in lines[1:] if line is not None]
    assert lines[0] is not None  # it is checked to have enough points
    return np.array([(float(lines[0].at(0.0)), lines[0].slope), *known])


def isoflop(points: pd.DataFrame, *, draws: int = DRAWS, seed: int = 0) -> ComputeOptimal:
    """Approach 2: the minimum of log loss over log N at each budget, then a power law of those.

    The minimum is that of an Akima interpolation (Porian et al., arXiv 2406.19146), where
    Chinchilla fits parabolas; one at a budget's smallest or largest size is no optimum. The noise
    of a loss is the scatter about parabolas through the lowest point and two neighbours on either
    side, shrunk toward that of all budgets; intervals are from a parametric bootstrap with it.
    Scatter of the optima beyond that is a random effect (DerSimonian and Laird's moment estimate,
    1986).

    `points` has a row per run: `params, flops, loss`; `flops` within a tenth of each other are one
    budget, and of several runs of one size and budget the best is used.
    """
    frame, notes = usable(points, ("params", "flops", "loss"))
    budget = near_equal(frame.flops, 1.1)
    frame = frame.assign(flops=np.exp(np.log(frame.flops).groupby(budget).transform("mean")))
    budgets, squares, dof = [], [], []
    for flops, group in frame.groupby("flops"):
        rows = group.groupby("params", as_index=False).loss.min()
        lowest = int(rows.loss.argmin())
        if 0 < lowest < len(rows) - 1:
            x, y = np.log(rows.params.to_numpy()), np.log(rows.loss.to_numpy())
            near = slice(max(0, lowest - _WINDOW), lowest + _WINDOW + 1)
            budgets.append((math.log(flops), x, y))
            squares.append(squared_errors(x[near], y[near], 2))
            dof.append(len(x[near]) - 3)
    lost = frame.flops.nunique() - len(budgets)
    if lost:
        notes += (f"{lost} budgets have no minimum between their smallest and largest size",)
    if len(budgets) < FEWEST_SIZES:
        reason = f"{len(budgets)} budgets have a minimum inside their sizes, {FEWEST_SIZES} needed"
        return ComputeOptimal.refuse(reason, notes)
    if not _curved(frame) < 1 - LEVEL:
        reason = "the losses of a budget are not told apart from a straight line, or from noise"
        return ComputeOptimal.refuse(reason, notes)
    if sum(dof) < 1:
        return ComputeOptimal.refuse(
            "three points per budget leave nothing to tell noise from shape", notes
        )
    noise = np.sqrt((2 * sum(squares) / sum(dof) + np.array(squares)) / (2 + np.array(dof)))
    rng = np.random.default_rng(seed)
    optima, lowest_loss = np.empty((2, draws + 1, len(budgets)))
    for i, (_, x, y) in enumerate(budgets):
        noisy = np.vstack([y, y + rng.normal(0, noise[i], (draws, len(x)))])
        optima[:, i], lowest_loss[:, i] = _minima(x, noisy)
    sure = np.isfinite(optima[0]) & (np.isfinite(optima[1:]).mean(axis=0) > 0.5)
    if not sure.all():
        notes += (f"{int((~sure).sum())} budgets lose their minimum in the noise",)
    if sure.sum() < FEWEST_SIZES:
        reason = f"{int(sure.sum())} budgets have a minimum above the noise, {FEWEST_SIZES} needed"
        return ComputeOptimal.refuse(reason, notes)
    optima, lowest_loss = optima[:, sure], lowest_loss[:, sure]
    log_c = np.array([log_c for log_c, *_ in budgets])[sure]
    variance = np.maximum(np.nanstd(optima[1:], axis=0), 1e-6) ** 2
    extra = _extra_variance(log_c, optima[0], 1 / variance)
    optima[1:] += rng.normal(0, math.sqrt(extra), optima[1:].shape)
    lines = _lines(log_c, optima, 1 / (variance + extra))
    low, high = np.nanquantile(optima[1:], [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0)
    fitted = lines[0, 0] + lines[0, 1] * log_c
    flops, n = np.exp(log_c), np.exp(optima[0])
    with np.errstate(over="ignore"):
        table = pd.DataFrame(
            {"flops": flops, "params": n, "low": np.exp(low), "high": np.exp(high),
             "tokens": flops / 6 / n, "loss": np.exp(lowest_loss[0]),
             "residual": optima[0] - fitted, "fitted": np.exp(fitted)}
        )  # fmt: skip
    return _finding("isoFLOP curves", lines, table, table.flops.max(), len(frame), notes)


def _curved(frame: pd.DataFrame) -> float:
    """p-value of lines instead of parabolas through all points of all budgets (F test).

    Over all points, since those about the lowest of a budget look like a minimum even in noise.
    """
    fits = []
    for _, rows in frame.groupby("flops"):
        if rows.params.nunique() >= 4:
            x, y = np.log(rows.params.to_numpy()), np.log(rows.loss.to_numpy())
            parabola = squared_errors(x, y, 2)
            gain = squared_errors(x, y, 1) - parabola
            fits.append((parabola, gain, math.copysign(gain, np.polyfit(x, y, 2)[0]), len(x) - 3))
    if not fits:
        return 1.0
    parabola, gain, upward, dof = np.sum(fits, axis=0)
    if upward <= 0:
        return 1.0
    return float(stats.f.sf(gain / len(fits) / max(parabola / dof, 1e-300), len(fits), dof))


def _minima(x: Array, y: Array) -> tuple[Array, Array]:
    """Positions and values of the minima of curves y [B, n] over x [n]; NaN at the ends."""
    grid = np.linspace(x[0], x[-1], _GRID)
    values = interpolate.Akima1DInterpolator(x, y, axis=1)(grid)
    lowest = values.argmin(axis=1)
    inside = (lowest > 0) & (lowest < _GRID - 1)
    return np.where(inside, grid[lowest], np.nan), np.where(inside, values.min(axis=1), np.nan)


def _extra_variance(x: Array, y: Array, weights: Array) -> float:
    """Variance about a weighted line beyond 1 / weights (DerSimonian and Laird's moments)."""
    line = line_fit(x, y, weights)
    assert line is not None  # three budgets differ
    excess = float(weights @ (y - line.at(x)) ** 2)
    design = np.stack([np.ones_like(x), x - x.mean()], axis=1)
    inverse = np.linalg.inv((design.T * weights) @ design)
    scale = weights.sum() - np.trace(inverse @ ((design.T * weights**2) @ design))
    return max(0.0, (excess - (len(x) - 2)) / max(scale, 1e-12))


def _log_loss(law: Array, log_n: Array | float, log_d: Array | float) -> Array:
    """log(E + A / N^alpha + B / D^beta) of laws (log A, alpha, log B, beta, log E)."""
    a, alpha, b, beta, e = law
    return np.asarray(np.logaddexp(np.logaddexp(a - alpha * log_n, b - beta * log_d), e))


def parametric(
    points: pd.DataFrame, *, tied: bool = False, floor: bool = True, draws: int = FIT_DRAWS,
    seed: int = 0,
) -> ComputeOptimal:  # fmt: skip
    """Approach 3: L(N, D) = E + A / N^alpha + B / D^beta through all runs.

    Minimizes the sum over runs of the Huber loss (delta 1e-3) of the error of log L, from the grid
    of starts of Hoffmann et al. (appendix D.2), bootstrapped over runs; with the mean an optimizer
    stops early (Besiroglu et al., arXiv 2404.10102). N_opt = G (C/6)^(beta/(alpha+beta)), G =
    (alpha A / (beta B))^(1/(alpha+beta)). Outliers are named and left out, then looked for
    once more.

    `points` has a row per run, or several per `run`: `params, tokens, loss`. `tied` exponents are
    equal (Gadre et al., arXiv 2403.08540); without a `floor`, E is 0.
    """
    frame, notes = usable(points, ("params", "tokens", "loss"))
    if reason := _unidentified(frame, tied):
        return ComputeOptimal.refuse(reason, notes)
    regular = np.ones(len(frame), bool)
    for _ in range(2):
        law = _fit(frame[regular], tied, floor)[0]
        residual = np.log(frame.loss) - _log_loss(law, np.log(frame.params), np.log(frame.tokens))
        regular, previous = ~outliers(residual.to_numpy(), 4 - tied + floor), regular
        if (regular == previous).all():
            break
    if not regular.all():
        notes += (f"Far off the law, and left out: {names(frame[~regular])}.",)
        frame = frame[regular]
    laws = _fit(frame, tied, floor, draws, seed, start=law)
    a, alpha, b, beta, e = laws.T
    exponent = np.minimum(alpha, beta)
    if min(exponent[0], np.quantile(exponent, 0.025)) < _FLAT:
        return ComputeOptimal.refuse(
            "the loss does not fall significantly with size and with tokens", notes
        )
    share = beta / (alpha + beta)
    with np.errstate(divide="ignore"):  # a draw may lack one of the two powers
        log_g = (np.log(alpha) - np.log(beta) + a - b) / (alpha + beta)
    lines = np.stack([log_g - share * math.log(6), share], axis=1)
    values = {"A": np.exp(a), "B": np.exp(b), "E": np.exp(e), "alpha": alpha, "beta": beta}
    parameters = {name: IntervalEstimate.of(v) for name, v in values.items()}
    if floor and parameters["E"].low < _NO_FLOOR * frame.loss.min():
        notes += ("The irreducible loss is not identifiable from these runs.",)
    fitted = np.exp(_log_loss(laws[0], np.log(frame.params), np.log(frame.tokens)))
    table = frame.assign(fitted=fitted, residual=np.log(frame.loss / fitted))
    flops = float((6 * frame.params * frame.tokens).max())
    finding = _finding("the parametric loss", lines, table, flops, len(frame), notes, frame)
    return dataclasses.replace(finding, parameters=parameters, law_draws=laws)


def _fit(
    runs: pd.DataFrame, tied: bool, floor: bool, draws: int = 0, seed: int = 0,
    start: Array | None = None,
) -> Array:  # fmt: skip
    """Fit (log A, alpha, log B, beta, log E) [1 + draws, 5] as `parametric`, from one law or from
    the grid; it stops early where the interval of an exponent is sure to reach down to 0.
    """
    log_n, log_d = np.log(runs.params.to_numpy()), np.log(runs.tokens.to_numpy())
    at_n, at_d = log_n.mean(), log_d.mean()  # centered, A and alpha are nearly independent
    x_n, x_d = log_n - at_n, log_d - at_d
    power, coefficient = (0.0, 0.5, 1.0, 1.5, 2.0), (0.0, 5.0, 10.0, 15.0, 20.0, 25.0)
    grid = itertools.product(coefficient, power, coefficient, power, (-1, -0.5, 0, 0.5, 1))
    starts = np.array([*grid] if start is None else [start])
    starts[:, 0] -= starts[:, 1] * at_n
    starts[:, 2] -= starts[:, 3] * at_d
    bounds = np.array([[-20.0, 0.0, -20.0, 0.0, -20.0], [20.0, 3.0, 20.0, 3.0, 20.0]])
    free = [i for i in range(5) if not (tied and i == 3) and (floor or i < 4)]
    of_free, fixed = np.eye(5)[:, free], np.array([0.0, 0.0, 0.0, 0.0, 0.0 if floor else -np.inf])
    if tied:
        of_free[3] = of_free[1]

    def model(law: Array) -> Array:
        return _log_loss(of_free @ law + fixed, x_n, x_d)

    def jacobian(law: Array) -> Array:
        a, alpha, b, beta, e = of_free @ law + fixed
        by_n, by_d = (np.exp(u - model(law)) for u in (a - alpha * x_n, b - beta * x_d))
        slopes = [by_n, -by_n * x_n, by_d, -by_d * x_d, np.exp(e - model(law))]
        return np.stack(slopes, axis=1) @ of_free

    def flat(laws: Sequence[Array]) -> bool:
        return sum(min(law[1], (of_free @ law)[3]) < _FLAT for law in laws) > 1 + 0.025 * draws

    laws = fit(
        model, jacobian, np.log(runs.loss.to_numpy()),
        np.unique(np.clip(starts, *bounds)[:, free], axis=0),
        resamples(runs.run.to_numpy(), draws, seed),
        bounds=(bounds[0, free].tolist(), bounds[1, free].tolist()), delta=DELTA, hopeless=flat,
    ) @ of_free.T + fixed  # fmt: skip
    laws[:, 0] += laws[:, 1] * at_n
    laws[:, 2] += laws[:, 3] * at_d
    return laws


def _unidentified(frame: pd.DataFrame, tied: bool) -> str:
    """Reason why the terms of N and D are not identifiable from `frame`; "" if they are."""
    if len(frame) < (5 if tied else 8):
        parameters = "four parameters, five" if tied else "five parameters, eight"
        return f"{len(frame)} points do not determine {parameters} are needed"
    for column, name in (("params", "sizes"), ("tokens", "token counts")):
        values = np.sort(np.log(frame[column].to_numpy()))
        distinct = 1 + int((np.diff(values) > 0.01).sum())
        if distinct < FEWEST_SIZES - tied:
            return f"a power law needs {FEWEST_SIZES - tied} different {name}, not {distinct}"
    if abs(np.corrcoef(np.log(frame.params), np.log(frame.tokens))[0, 1]) > 0.98:
        return "tokens grow in step with size, so their effects cannot be told apart"
    return ""
