"""How to split a compute budget between parameters and tokens: Chinchilla's three approaches.

Hoffmann et al., "Training Compute-Optimal Large Language Models" (arXiv 2203.15556), section 3:
the envelope of training curves, isoFLOP parabolas, and the parametric loss
L(N, D) = E + A / N^alpha + B / D^beta. C = 6 N D throughout.
"""

from __future__ import annotations

import dataclasses
import itertools
import math

import numpy as np
import pandas as pd
from scipy import interpolate, stats

from jaxllm.analysis import scaling_fit
from jaxllm.analysis.dynamics import amount
from jaxllm.analysis.scaling_fit import DRAWS, LEVEL, Estimate

DELTA = 1e-3
_GRID = 300
_MIN_SIZES = 3
_WINDOW = 2


@dataclasses.dataclass(frozen=True)
class Allocation:
    """The compute-optimal model for `flops`; `loss` is NaN where the approach gives none."""

    flops: float
    params: Estimate
    tokens: Estimate
    loss: Estimate


@dataclasses.dataclass(frozen=True)
class ComputeOptimal:
    """How the compute-optimal N and D grow with C: N = k C^a, D = C / (6 N).

    Attributes:
      approach: "envelope", "isoFLOP parabolas" or "parametric loss".
      params_exponent: a; `tokens_exponent` is 1 - a.
      parameters: Parametric loss only: A, B, E, alpha, beta.
      table: The optimum of each budget (envelope, isoFLOP; the latter with `low`, `high` and the
        log `residual` of N), or each run's `loss`, `fitted` and log `residual` (parametric).
      n: Points that the fit stands on.
      flops_range: Smallest and largest budget seen; beyond it is extrapolation.
      refused: Why there is no fit, "" where there is one.
      notes: What was left out of the data.
      draws: Bootstrap draws of (log k, a) [B, 2], the fit itself first.
    """

    approach: str
    params_exponent: Estimate
    tokens_exponent: Estimate
    parameters: dict[str, Estimate]
    table: pd.DataFrame
    n: int
    flops_range: tuple[float, float]
    refused: str = ""
    notes: tuple[str, ...] = ()
    draws: np.ndarray = dataclasses.field(default_factory=lambda: np.empty((0, 2)), repr=False)
    law_draws: np.ndarray = dataclasses.field(default_factory=lambda: np.empty((0, 5)), repr=False)

    def at(self, flops: float) -> Allocation:
        """The optimum for a budget of `flops`; all NaN when the fit was refused."""
        if self.refused:
            nothing = Estimate(math.nan)
            return Allocation(flops, nothing, nothing, nothing)
        log_n = self.draws[:, 0] + self.draws[:, 1] * math.log(flops)
        with np.errstate(all="ignore"):  # far outside the data a draw may leave the floats
            n, d = np.exp(log_n), flops / 6 / np.exp(log_n)
            values = self.loss_draws(n, d)
        loss = Estimate.of(values[0], values[1:])
        return Allocation(flops, Estimate.of(n[0], n[1:]), Estimate.of(d[0], d[1:]), loss)

    def loss_draws(self, params: np.ndarray | float, tokens: np.ndarray | float) -> np.ndarray:
        """Draws [B] of the parametric loss, the fit first; one NaN for the other approaches."""
        if not len(self.law_draws):
            return np.array([math.nan])
        n = np.broadcast_to(np.log(params), len(self.law_draws))
        d = np.broadcast_to(np.log(tokens), len(self.law_draws))
        return np.exp(_log_loss(self.law_draws, n[:, None], d[:, None])[:, 0])

    @property
    def sentence(self) -> str:
        """What was found, in one sentence."""
        if self.refused:
            return f"No compute-optimal size from {self.approach}: {self.refused}."
        largest = self.at(self.flops_range[1])
        return (
            f"From {self.approach} ({self.n} points), the compute-optimal size grows as C^a with "
            f"a = {self.params_exponent}; at {self.flops_range[1]:.2g} FLOPs it is "
            f"{amount(largest.params.value)} parameters on {amount(largest.tokens.value)} tokens."
        )


def _refuse(approach: str, reason: str, notes: tuple[str, ...], n: int) -> ComputeOptimal:
    nothing = Estimate(math.nan)
    return ComputeOptimal(
        approach, nothing, nothing, {}, pd.DataFrame(), n, (math.nan, math.nan), reason, notes
    )


def _found(
    approach: str, draws: np.ndarray, table: pd.DataFrame, flops: pd.Series, n: int,
    notes: tuple[str, ...], **more: object,
) -> ComputeOptimal:  # fmt: skip
    exponent = draws[:, 1]
    return ComputeOptimal(
        approach=approach,
        params_exponent=Estimate.of(exponent[0], exponent[1:]),
        tokens_exponent=Estimate.of(1 - exponent[0], 1 - exponent[1:]),
        table=table,
        n=n,
        flops_range=(float(flops.min()), float(flops.max())),
        notes=notes,
        draws=draws,
        **{"parameters": {}, **more},  # type: ignore[arg-type]
    )


def _line(x: np.ndarray, y: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Weighted lines y = k + a x, [B, n] -> (k, a) [B, 2]; NaN values of y weigh nothing."""
    weights = np.where(np.isfinite(y), weights, 0.0)
    y = np.nan_to_num(y)
    total = weights.sum(axis=1)
    with np.errstate(all="ignore"):
        mx, my = (weights * x).sum(axis=1) / total, (weights * y).sum(axis=1) / total
        dx = x - mx[:, None]
        slope = (weights * dx * y).sum(axis=1) / (weights * dx**2).sum(axis=1)
    return np.stack([my - slope * mx, slope], axis=1)


def envelope(curves: pd.DataFrame, *, draws: int = DRAWS, seed: int = 0) -> ComputeOptimal:
    """Approach 1: at each FLOP count, the size whose training curve is lowest there.

    Where the smallest or the largest size wins, the optimum may lie beyond what was trained, so
    these stretches are left out. The runs are resampled for the interval.

    Args:
      curves: Several rows per run: `run, params, flops, loss`.
      draws: Bootstrap draws.
      seed: Of the bootstrap.
    """
    approach = "the envelope of training curves"
    points, notes = scaling_fit.usable(curves, ("params", "flops", "loss"))
    lengths = points.groupby("run", sort=False).size() if len(points) else pd.Series(dtype=int)
    points = points[points.run.isin(lengths[lengths > 1].index)] if len(points) else points
    if points.empty or points.params.nunique() < _MIN_SIZES + 2:
        reason = f"it needs training curves of {_MIN_SIZES + 2} sizes, the outer two as bounds"
        return _refuse(approach, reason, notes, len(points))
    grid = np.linspace(math.log(points.flops.min()), math.log(points.flops.max()), _GRID)
    losses, sizes = [], []
    for _, run in points.groupby("run", sort=False):
        run = run.sort_values("flops")
        losses.append(np.interp(grid, np.log(run.flops), run.loss, left=np.nan, right=np.nan))
        sizes.append(math.log(run.params.iloc[0]))
    values, size = np.nan_to_num(np.array(losses), nan=np.inf), np.array(sizes)
    present = scaling_fit.resamples(len(size), draws, seed)
    winners = np.full((draws + 1, _GRID), np.nan)
    for b, kept in enumerate(np.vstack([np.ones(len(size)), present]) > 0):
        best = np.where(kept[:, None], values, np.inf)
        winner = size[np.argmin(best, axis=0)]
        inner = np.isfinite(best.min(axis=0))
        inner &= (winner > size[kept].min()) & (winner < size[kept].max())
        winners[b] = np.where(inner, winner, np.nan)
    inner_sizes = [len(np.unique(row[np.isfinite(row)])) for row in winners]
    if inner_sizes[0] < _MIN_SIZES:
        reason = f"only {inner_sizes[0]} sizes are the best anywhere, {_MIN_SIZES} are needed"
        return _refuse(approach, reason, notes, len(size))
    lines = _line(grid, winners, np.ones_like(winners))
    lines[np.array(inner_sizes) < _MIN_SIZES] = np.nan
    flops, n = np.exp(grid), np.exp(winners[0])
    table = pd.DataFrame(
        {"flops": flops, "params": n, "tokens": flops / 6 / n, "loss": values.min(axis=0)}
    ).dropna(ignore_index=True)
    return _found(approach, _finite(lines), table, table.flops, len(size), notes)


def _finite(draws: np.ndarray) -> np.ndarray:
    """The first row, and those after it that are finite."""
    return np.vstack([draws[:1], draws[1:][np.isfinite(draws[1:]).all(axis=1)]])


def isoflop(
    points: pd.DataFrame, *, curve: str = "akima", draws: int = DRAWS, seed: int = 0
) -> ComputeOptimal:
    """Approach 2: the minimum of log loss over log N at each budget, then a power law of those.

    "parabola" is Chinchilla's curve, here through the lowest point and two neighbours on either
    side, as losses far from the minimum are no parabola. "akima" interpolates (Porian et al.,
    arXiv 2406.19146): its interval is wider, as it takes no shape for granted. A budget whose
    lowest point is its smallest or largest size gives no optimum.

    The noise of a loss is the scatter about the parabolas (half from the budget's own, half from
    all) and is drawn anew for the intervals. What the optima scatter about the power law beyond
    that noise, their shape for instance, is added to every optimum's variance and draws (a random
    effect by DerSimonian and Laird's moment estimate, 1986).

    Args:
      points: A row per run: `params, flops, loss`; `flops` within a tenth of each other are
        one budget. Of several runs of one size and budget the best counts.
      curve: "akima" or "parabola".
      draws: Draws of the noise.
      seed: Of the draws.
    """
    approach = "isoFLOP parabolas" if curve == "parabola" else "isoFLOP curves"
    frame, notes = scaling_fit.usable(points, ("params", "flops", "loss"))
    frame = _same_budgets(frame)
    budgets = []
    for flops, group in frame.groupby("flops"):
        rows = group.groupby("params", as_index=False).loss.min()
        lowest = int(rows.loss.argmin())
        if 0 < lowest < len(rows) - 1:
            x, y = np.log(rows.params.to_numpy()), np.log(rows.loss.to_numpy())
            near = slice(max(0, lowest - _WINDOW), lowest + _WINDOW + 1)
            budgets.append((float(flops), x, y, near))
    lost = frame.flops.nunique() - len(budgets) if len(frame) else 0
    if lost:
        notes += (f"{lost} budgets have no minimum between their smallest and largest size",)
    if len(budgets) < _MIN_SIZES:
        reason = f"{len(budgets)} budgets have a minimum inside their sizes, {_MIN_SIZES} needed"
        return _refuse(approach, reason, notes, len(frame))
    if not _curved(frame) < 1 - LEVEL:
        reason = "the losses of a budget are not told apart from a straight line, or from noise"
        return _refuse(approach, reason, notes, len(frame))
    scatter = [(_residuals(x[near], y[near], 2) ** 2).sum() for _, x, y, near in budgets]
    spare = [len(x[near]) - 3 for _, x, _, near in budgets]
    if sum(spare) < 1:
        reason = "three points per budget leave nothing to tell noise from shape"
        return _refuse(approach, reason, notes, len(frame))
    pooled = sum(scatter) / sum(spare)
    rng = np.random.default_rng(seed)
    optima, lowest_loss = np.empty((2, draws + 1, len(budgets)))
    for i, (_, x, y, near) in enumerate(budgets):
        noise = math.sqrt((2 * pooled + scatter[i]) / (2 + spare[i]))
        noisy = np.vstack([y, y + rng.normal(0, noise, (draws, len(x)))])
        if curve == "parabola":
            x, noisy = x[near], noisy[:, near]
        optima[:, i], lowest_loss[:, i] = _minima(curve, x, noisy)
    log_c = np.log([flops for flops, *_ in budgets])
    sure = np.isfinite(optima[0]) & (np.isfinite(optima[1:]).mean(axis=0) > 0.5)
    if not sure.all():
        notes += (f"{int((~sure).sum())} budgets lose their minimum in the noise",)
    if sure.sum() < _MIN_SIZES:
        reason = f"{int(sure.sum())} budgets have a minimum above the noise, {_MIN_SIZES} needed"
        return _refuse(approach, reason, notes, len(frame))
    optima, lowest_loss, log_c = optima[:, sure], lowest_loss[:, sure], log_c[sure]
    spread = np.nanstd(optima[1:], axis=0)
    weights = 1 / np.maximum(spread, 1e-6) ** 2
    extra = _extra_variance(log_c, optima[0], weights)
    optima[1:] += rng.normal(0, math.sqrt(extra), optima[1:].shape)
    weights = 1 / (1 / weights + extra)
    lines = _finite(_line(log_c, optima, np.broadcast_to(weights, optima.shape)))
    low, high = np.nanquantile(optima[1:], [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0)
    with np.errstate(over="ignore"):
        n, low, high = np.exp(optima[0]), np.exp(low), np.exp(high)
    flops = np.exp(log_c)
    table = pd.DataFrame(
        {"flops": flops, "params": n, "low": low, "high": high,
         "tokens": flops / 6 / n, "loss": np.exp(lowest_loss[0]),
         "residual": optima[0] - lines[0, 0] - lines[0, 1] * log_c}
    )  # fmt: skip
    return _found(approach, lines, table, table.flops, len(frame), notes)


def _same_budgets(frame: pd.DataFrame) -> pd.DataFrame:
    """Budgets within a tenth of each other become one, at their geometric mean."""
    frame = frame.sort_values("flops", ignore_index=True)
    log_c = np.log(frame.flops.astype("float64"))
    budget = (log_c.diff() > math.log(1.1)).cumsum()
    return frame.assign(flops=np.exp(log_c.groupby(budget).transform("mean")))


def _residuals(x: np.ndarray, y: np.ndarray, degree: int) -> np.ndarray:
    return y - np.polyval(np.polyfit(x - x.mean(), y, degree), x - x.mean())


def _curved(frame: pd.DataFrame) -> float:
    """p-value of lines instead of parabolas through all points of all budgets (F test).

    All points, since those about the lowest of a budget look like a minimum even in noise.
    """
    parabola, gain, upward, count, spare = 0.0, 0.0, 0.0, 0, 0
    for _, rows in frame.groupby("flops"):
        if rows.params.nunique() < 4:
            continue
        x, y = np.log(rows.params.to_numpy()), np.log(rows.loss.to_numpy())
        squares = float((_residuals(x, y, 2) ** 2).sum())
        gained = float((_residuals(x, y, 1) ** 2).sum()) - squares
        upward += math.copysign(gained, np.polyfit(x, y, 2)[0])
        parabola, gain = parabola + squares, gain + gained
        count, spare = count + 1, spare + len(x) - 3
    if not count or not spare or upward <= 0:
        return 1.0
    return float(stats.f.sf(gain / count / max(parabola / spare, 1e-300), count, spare))


def _minima(curve: str, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where curves y [B, n] over x [n] have their minimum, and its value; NaN at the ends."""
    if curve == "parabola":
        quadratic, slope, level = np.polyfit(x - x.mean(), y.T, 2)
        at, value = x.mean() - slope / (2 * quadratic), level - slope**2 / (4 * quadratic)
        inside = (quadratic > 0) & (at >= x[0]) & (at <= x[-1])
    else:
        grid = np.linspace(x[0], x[-1], _GRID)
        values = interpolate.Akima1DInterpolator(x, y, axis=1)(grid)
        lowest = values.argmin(axis=1)
        at, value = grid[lowest], values.min(axis=1)
        inside = (lowest > 0) & (lowest < _GRID - 1)
    return np.where(inside, at, np.nan), np.where(inside, value, np.nan)


def _extra_variance(x: np.ndarray, y: np.ndarray, weights: np.ndarray) -> float:
    """Variance about a weighted line beyond 1 / weights (DerSimonian and Laird's moments)."""
    weights = np.where(np.isfinite(y), weights, 0.0)
    intercept, slope = _line(x, y[None], weights[None])[0]
    excess = float((weights * np.nan_to_num(y - intercept - slope * x) ** 2).sum())
    design = np.stack([np.ones_like(x), x - x.mean()], axis=1)
    inverse = np.linalg.inv((design.T * weights) @ design)
    scale = weights.sum() - np.trace(inverse @ ((design.T * weights**2) @ design))
    return max(0.0, (excess - ((weights > 0).sum() - 2)) / max(scale, 1e-12))


def _log_loss(law: np.ndarray, log_n: np.ndarray, log_d: np.ndarray) -> np.ndarray:
    """log(E + A/N^alpha + B/D^beta) for rows (a, alpha, b, beta, e) with A = e^a and so on."""
    a, alpha, b, beta, e = (law[:, [i]] for i in range(5))
    return np.logaddexp(np.logaddexp(a - alpha * log_n, b - beta * log_d), e)


def parametric(points: pd.DataFrame, *, draws: int = DRAWS, seed: int = 0) -> ComputeOptimal:
    """Approach 3: L(N, D) = E + A / N^alpha + B / D^beta through all runs.

    Minimises the sum over runs of Huber(1e-3) of the error of log L, from the grid of starts of
    Hoffmann et al. (appendix D.2), bootstrapped over runs. The sum, not the mean: with the mean
    an optimiser stops early and the published parameters were off (Besiroglu et al., arXiv
    2404.10102). N_opt = G (C/6)^(beta/(alpha+beta)), G = (alpha A / (beta B))^(1/(alpha+beta)).

    Args:
      points: A row per run, or several per `run`: `params, tokens, loss`.
      draws: Bootstrap draws.
      seed: Of the bootstrap.
    """
    approach = "the parametric loss"
    frame, notes = scaling_fit.usable(points, ("params", "tokens", "loss"))
    reason = _unidentified(frame)
    if reason:
        return _refuse(approach, reason, notes, len(frame))
    log_n, log_d = np.log(frame.params.to_numpy()), np.log(frame.tokens.to_numpy())
    target = np.log(frame.loss.to_numpy())
    at_n, at_d = log_n.mean(), log_d.mean()  # centred, A and alpha are nearly independent
    power, coefficient = (0.0, 0.5, 1.0, 1.5, 2.0), (0.0, 5.0, 10.0, 15.0, 20.0, 25.0)
    starts = np.array(
        list(itertools.product(coefficient, power, coefficient, power, (-1, -0.5, 0, 0.5, 1)))
    )
    starts[:, 0] -= starts[:, 1] * at_n
    starts[:, 2] -= starts[:, 3] * at_d
    low, high = (-20.0, 0.0, -20.0, 0.0, -20.0), (20.0, 3.0, 20.0, 3.0, 20.0)

    def model(law: np.ndarray) -> np.ndarray:
        return _log_loss(law, log_n - at_n, log_d - at_d)

    best = scaling_fit.best_fit(model, target, starts, delta=DELTA, low=low, high=high)
    groups = frame.run.to_numpy() if (frame.run != "").all() else None
    weights = scaling_fit.resamples(len(frame), draws, seed, groups)
    again, _ = scaling_fit.fit(
        model, target, np.tile(best, (draws, 1)), weights=weights, delta=DELTA, low=low, high=high
    )
    laws = np.vstack([best, again])
    laws[:, 0] += laws[:, 1] * at_n
    laws[:, 2] += laws[:, 3] * at_d
    a, alpha, b, beta, e = laws.T
    floor = 1e-4
    if min(alpha[0], beta[0]) < floor or np.quantile(np.minimum(alpha, beta), 0.025) < floor:
        reason = "the loss does not fall with size and with tokens beyond doubt"
        return _refuse(approach, reason, notes, len(frame))
    share = beta / (alpha + beta)
    with np.errstate(divide="ignore"):  # a draw may lack one of the two powers
        log_g = (np.log(alpha) - np.log(beta) + a - b) / (alpha + beta)
    lines = np.stack([log_g - share * math.log(6), share], axis=1)
    values = {"A": np.exp(a), "B": np.exp(b), "E": np.exp(e), "alpha": alpha, "beta": beta}
    fitted = np.exp(model(best[None])[0])
    table = frame.assign(fitted=fitted, residual=target - np.log(fitted))
    return _found(
        approach, lines, table, 6 * frame.params * frame.tokens, len(frame), notes,
        parameters={name: Estimate.of(v[0], v[1:]) for name, v in values.items()}, law_draws=laws,
    )  # fmt: skip


def _unidentified(frame: pd.DataFrame) -> str:
    """Why N and D cannot be told apart in `frame`; "" when they can."""
    if len(frame) < 8:
        return f"{len(frame)} points do not determine five parameters, eight are needed"
    for column, name in (("params", "sizes"), ("tokens", "token counts")):
        values = np.sort(np.log(frame[column].to_numpy()))
        distinct = 1 + int((np.diff(values) > 0.01).sum())
        if distinct < _MIN_SIZES:
            return f"{distinct} different {name} do not show a power law, three are needed"
    if abs(np.corrcoef(np.log(frame.params), np.log(frame.tokens))[0, 1]) > 0.98:
        return "tokens grow in step with size, so their effects cannot be told apart"
    return ""
