"""Whether new runs on the proposal and on the natural mixture bear a prediction out."""

from __future__ import annotations

import dataclasses

import numpy as np
import pandas as pd
from scipy import stats

from jaxllm.analysis.curves import Array
from jaxllm.analysis.finding import Finding, amount
from jaxllm.analysis.mixtures.propose import Proposal
from jaxllm.analysis.mixtures.swarm import Swarm
from jaxllm.errors import UserError

HELD, FAILED, NOISE = "held", "did not hold", "within noise"
OBJECTIVE = "objective"
_SAME_MIXTURE = 2e-3  # total variation; floors and rounding
_SAME_SIZE = 0.01
_LEVEL = 0.95


@dataclasses.dataclass(frozen=True)
class Check(Finding):
    """The outcome of a check, with a note of what it does not speak of in runs of another size.

    `table` has `target, mixture, predicted, predicted_low, predicted_high, measured, low, high,
    spread, runs`, where mixture is proposed, natural or difference, and `spread` the standard
    deviation over seeds. The first target is the objective. Intervals are of 95 %, the measured
    ones of the mean over seeds by Student's t.
    """

    verdict: str = ""  # HELD, FAILED or NOISE, of the objective's difference, proposal less natural


def check(proposal: Proposal, runs: Swarm) -> Check:
    """Compare what is predicted of a proposal with new runs.

    At the size that the laws speak of, the measured difference must agree with the predicted one;
    at any other its sign must. A difference that seeds alone explain is noise. UserError if the
    runs differ in size, are of other mixtures, or fewer than two seeds of each.
    """
    runs.check_alike()
    known, of = proposal.table.set_index("domain").reindex(runs.domains).fillna(0.0), {}
    for name in ("proposed", "natural"):
        of[name] = np.abs(runs.shares - known[name].to_numpy()).sum(axis=1) / 2 < _SAME_MIXTURE
        if of[name].sum() < 2:
            raise UserError(
                f"{of[name].sum()} of {len(runs)} runs are scored on the {name} mixture: need two "
                "seeds, whose spread is the noise"
            )
    if (of["proposed"] & of["natural"]).any():
        raise UserError("the proposal is the natural mixture: there is nothing to check")
    values = dict(zip(runs.targets, runs.values.T, strict=True))
    objective = np.sum([w * values[target] for target, w in proposal.objective.items()], axis=0)
    parts = [_compared(OBJECTIVE, objective, of, proposal.predicted)]
    for target, predicted in proposal.targets.groupby("target", sort=False):
        parts.append(_compared(str(target), values[str(target)], of, predicted))
    table = pd.concat(parts if len(parts) > 2 else parts[:1], ignore_index=True)
    differences = table[table.mixture == "difference"]
    size = {axis: (getattr(proposal, axis), runs.size(axis)) for axis in ("params", "steps")}
    alike = all(abs(there / at - 1) < _SAME_SIZE for at, there in size.values())
    verdict = _verdict(differences.iloc[0], alike)
    notes = () if alike else (_caveat(size),)
    return Check(_sentence(verdict, differences), table, notes=notes, verdict=verdict)


def _compared(target: str, y: Array, of: dict[str, Array], predicted: pd.DataFrame) -> pd.DataFrame:
    """The rows of `Check.table` of a target with values y [n]."""
    proposed, natural = (y[of[name]] for name in ("proposed", "natural"))
    n, m = len(proposed), len(natural)
    freedom = n + m - 2
    spread = np.sqrt((proposed.var() * n + natural.var() * m) / freedom)
    reach = spread * float(stats.t.ppf((1 + _LEVEL) / 2, freedom))
    known = predicted.set_index("mixture")
    rows = []
    for mixture, mean, scale, count in (
        ("proposed", proposed.mean(), np.sqrt(1 / n), n),
        ("natural", natural.mean(), np.sqrt(1 / m), m),
        ("difference", proposed.mean() - natural.mean(), np.sqrt(1 / n + 1 / m), n + m),
    ):
        expected = known.loc[mixture]
        rows.append(
            {
                "target": target, "mixture": mixture, "predicted": expected.value,
                "predicted_low": expected.low, "predicted_high": expected.high, "measured": mean,
                "low": mean - scale * reach, "high": mean + scale * reach, "spread": spread,
                "runs": count,
            }
        )  # fmt: skip
    return pd.DataFrame(rows)


def _verdict(row: pd.Series, alike: bool) -> str:
    """The verdict on a row of differences."""
    if row.low <= 0 <= row.high:
        return NOISE
    apart = row.low > row.predicted_high or row.high < row.predicted_low
    return FAILED if row.measured * row.predicted < 0 or (alike and apart) else HELD


def _sentence(verdict: str, differences: pd.DataFrame) -> str:
    row, each = differences.iloc[0], differences.iloc[1:]
    head = "The difference is within noise" if verdict == NOISE else f"The prediction {verdict}"
    right = int((each.measured * each.predicted > 0).sum())
    moved = f"; {right} of {len(each)} targets moved as predicted" if len(each) else ""
    return (
        f"{head}: the proposal measures {row.measured:+.4f} against the natural mixture "
        f"({row.low:+.4f} to {row.high:+.4f} by its seeds), predicted was {row.predicted:+.4f} "
        f"({row.predicted_low:+.4f} to {row.predicted_high:+.4f}){moved}."
    )


def _caveat(size: dict[str, tuple[float, float]]) -> str:
    at, there = (
        f"{amount(size['params'][i])} parameters and {amount(size['steps'][i])} steps"
        for i in (0, 1)
    )
    return (
        f"The laws speak of {at}, these runs have {there}: only the order of the two mixtures is "
        "predicted here, not their values or the size of the difference; for these fit with "
        "--at_params or --at_steps."
    )
