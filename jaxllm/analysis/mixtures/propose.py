"""The best mixture for a target that the swarm supports.

A law's optimum is where it extrapolates most. So the search stays where the runs are as dense as
usual, ranks mixtures by the upper end of their prediction, averages the best ones as RegMix does,
and shrinks their mean towards the natural shares until every guard holds.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

import numpy as np
import pandas as pd

from jaxllm.analysis.curves import Array
from jaxllm.analysis.mixtures.choice import Fit
from jaxllm.analysis.mixtures.guards import Guards, broken
from jaxllm.analysis.stats import Z95
from jaxllm.data.repetition import MAX_EPOCHS
from jaxllm.errors import UserError

_DRAWN, _ROUNDS, _AVERAGED = 5000, 3, 100


@dataclasses.dataclass(frozen=True)
class Proposal:
    """A proposed mixture."""

    status: str  # "proposed"; "shrunk" where the guards moved the optimum; or "refused"
    reason: str  # of the last two
    mixture: Array  # [k]; the natural shares where refused
    table: pd.DataFrame  # `domain, natural, proposed, epochs`
    guards: pd.DataFrame  # `guard, value, limit` of the proposal
    # `mixture, value, low, high` of the proposal and of the natural shares, their difference, and
    # the law's unguarded optimum. Intervals (95 %) are of a new run's measured value: of the fit by
    # bootstrap, and of the errors on left-out mixtures.
    predicted: pd.DataFrame
    objective: Mapping[str, float]  # target -> its weight; they sum to 1
    targets: pd.DataFrame  # `target` and the columns of `predicted`, of all that have a law
    params: float  # of the runs that this speaks of, as `steps`; NaN where not known
    steps: float

    @property
    def within_noise(self) -> bool:
        """Whether the interval of the difference to the natural mixture includes 0."""
        return bool(self.predicted.set_index("mixture").high["difference"] >= 0)


def propose(
    fit: Fit,
    objective: Mapping[str, float] | None = None,
    natural: Array | None = None,
    budget: float = 1.0,
    tokens: Array | None = None,
    repetition: float = MAX_EPOCHS,
    seed: int = 0,
) -> Proposal:
    """Search the mixture of the least predicted objective.

    `objective`: target -> its weight; None is the mean of all. `natural`: shares [k]; None is those
    of the swarm's run named natural, or its mean. `budget` is of the target run, `tokens` [k] of
    each domain; None repeats nothing. UserError for a target that was not measured or has no law,
    or a budget beyond all repetition.
    """
    swarm, k = fit.swarm, len(fit.swarm.domains)
    middle = swarm.shares.mean(axis=0)
    weights = _weights(fit, objective)
    natural = next(one for one in (natural, swarm.natural, middle) if one is not None)
    natural = natural / natural.sum()
    columns = [swarm.targets.index(target) for target in weights]
    share = np.array(list(weights.values()))
    measured = swarm.values[:, columns] @ share
    noise = _noise(fit.left_out[:, columns] @ share, measured)

    def value(mixtures: Array, count: int | None = 1) -> Array:  # [count, m]
        return np.sum([w * fit.predict[t](mixtures, count) for t, w in weights.items()], axis=0)

    guards = Guards(
        swarm, natural, measured, float(value(natural[None])[0, 0]),
        np.full(k, np.inf) if tokens is None else tokens, budget, repetition,
    )  # fmt: skip
    if guards.cap.sum() < 1:
        raise UserError(
            f"{budget:.3g} tokens repeat every domain more than {repetition:g} times: "
            "lower the budget, or raise the repetition limit"
        )

    def fails(mixture: Array) -> str:
        return broken(guards.table(mixture, float(value(mixture[None])[0, 0])))

    rng = np.random.default_rng(seed)
    free = _search(rng, value, guards, guarded=False)
    assert free is not None
    found = _search(rng, value, guards, guarded=True)
    anchors = [_capped(one, guards.cap) for one in (natural, middle)]
    anchor = next((one for one in anchors if not fails(one)), None)
    status, reason, best = "proposed", "", natural
    if outside := fails(free):
        status = "shrunk"
        reason = f"the law's own optimum is beyond what the runs show: {outside}"
    if anchor is None:
        status = "refused"
        reason = f"not even the natural shares are near the runs: {fails(anchors[0])}"
    elif found is not None:
        best = _shrunk(found, anchor, fails)
    if anchor is not None and value(best[None])[0, 0] >= value(anchor[None])[0, 0]:
        status, best = "refused", natural
        reason = f"nothing near the runs is better than the natural shares; {reason}".rstrip("; ")
    epochs = best * guards.budget / guards.tokens
    compared = np.array([best, natural, free])
    targets = [
        _predictions(law(compared, None), _noise(fit.left_out[:, j], swarm.values[:, j]))
        .assign(target=target)
        for target, law in fit.predict.items() for j in [swarm.targets.index(target)]
    ]  # fmt: skip
    return Proposal(
        status, reason, best,
        pd.DataFrame(
            {"domain": swarm.domains, "natural": natural, "proposed": best, "epochs": epochs}
        ),
        guards.table(best, float(value(best[None])[0, 0])),
        _predictions(value(compared, None), noise),
        weights,
        pd.concat(targets, ignore_index=True),
        swarm.size("params"),
        swarm.size("steps"),
    )  # fmt: skip


def _weights(fit: Fit, objective: Mapping[str, float] | None) -> dict[str, float]:
    wanted = dict.fromkeys(fit.swarm.targets, 1.0) if objective is None else dict(objective)
    fit.swarm.only(list(wanted))
    for target, reason in fit.refused().items():
        if target in wanted:
            raise UserError(f"{target} has no law: {reason}; leave it out of the targets")
    total = sum(wanted.values())
    if not total > 0 or min(wanted.values()) < 0:
        raise UserError(f"weights of the targets {wanted}: need positive ones")
    return {target: weight / total for target, weight in wanted.items() if weight}


def _capped(mixtures: Array, cap: Array) -> Array:
    """Shares [..., k] within `cap`; what is cut goes to the other domains by their shares."""
    mixtures = mixtures + 1e-12
    for _ in range(len(cap)):
        full = mixtures >= cap
        room = 1 - np.where(full, cap, 0.0).sum(axis=-1, keepdims=True)
        rest = np.where(full, 0.0, mixtures)
        scaled = rest * room / np.maximum(rest.sum(axis=-1, keepdims=True), 1e-300)
        mixtures = np.where(full, cap, scaled)
        if (mixtures <= cap * (1 + 1e-9)).all():
            break
    return mixtures


def _search(
    rng: np.random.Generator, value: Callable[..., Array], guards: Guards, guarded: bool
) -> Array | None:
    """Mean of the best of many mixtures, drawn about the natural shares, the runs and the best."""
    x = guards.swarm.shares
    centres, strengths = np.vstack([guards.natural, x]), (1.0, 300.0)
    candidates, levels = np.empty((0, x.shape[1])), np.empty(0)
    for _ in range(_ROUNDS):
        at = centres[rng.integers(len(centres), size=_DRAWN)] + 1e-4
        least, most = np.log(strengths)
        strength = np.exp(rng.uniform(least, most, size=(_DRAWN, 1)))
        drawn = rng.standard_gamma(at * strength * x.shape[1]) + 1e-300
        drawn = np.vstack([drawn / drawn.sum(axis=1, keepdims=True), centres])
        drawn = _capped(drawn, guards.cap)
        if guarded:
            drawn = drawn[guards.near(drawn)]
        if len(drawn):
            candidates = np.vstack([candidates, drawn])
            levels = np.append(levels, value(drawn)[0])
            order = np.argsort(levels)[: 5 * _AVERAGED]
            candidates, levels = candidates[order], levels[order]
            centres, strengths = candidates[:_AVERAGED], (10.0, 1000.0)
    if not len(candidates):
        return None
    draws = value(candidates, None)
    upper = draws[0] + draws[1:].std(axis=0)
    return np.asarray(candidates[np.argsort(upper)[:_AVERAGED]].mean(axis=0))


def _shrunk(found: Array, anchor: Array, fails: Callable[[Array], str]) -> Array:
    """The mixture nearest to `found` on the way to `anchor` that fails no guard."""
    if not fails(found):
        return found
    low, high = 0.0, 1.0
    for _ in range(12):
        middle = (low + high) / 2
        inside = not fails(anchor + middle * (found - anchor))
        low, high = (middle, high) if inside else (low, middle)
    return np.asarray(anchor + low * (found - anchor))


def _noise(predicted: Array, measured: Array) -> float:
    """Root mean squared error on left-out runs, of the half with the better prediction."""
    better = predicted <= np.median(predicted)
    return float(np.sqrt(np.mean((predicted - measured)[better] ** 2)))


def _predictions(values: Array, noise: float) -> pd.DataFrame:
    """Rows of `Proposal.predicted` from the values [B, 3] of three mixtures."""
    columns = {
        "proposed": (values[:, 0], noise),
        "natural": (values[:, 1], noise),
        "difference": (values[:, 0] - values[:, 1], noise * np.sqrt(2)),
        "unguarded": (values[:, 2], noise),
    }
    rows = []
    for name, (draws, error) in columns.items():
        reach = Z95 * float(np.hypot(draws[1:].std(), error))
        rows.append((name, draws[0], draws[0] - reach, draws[0] + reach))
    return pd.DataFrame(rows, columns=["mixture", "value", "low", "high"])
