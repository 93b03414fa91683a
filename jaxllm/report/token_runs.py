"""What is read of each run, and the losses of held-out tokens of several for their analyses."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd

from jaxllm.analysis.tokens.runs import TokenRun, TokenStudy
from jaxllm.errors import UserError
from jaxllm.run.token_losses import TokenLosses

FEWEST = 2  # checkpoints of a run


@dataclasses.dataclass(frozen=True)
class RunData:
    """What is read of a run."""

    name: str
    records: pd.DataFrame
    metrics: pd.DataFrame
    checkpoints: pd.DataFrame = dataclasses.field(default_factory=pd.DataFrame)
    planned_tokens: float = math.nan
    parent: tuple[str, float] | None = None  # of a branch: the run that it left, and its tokens
    mixture: dict[str, float] = dataclasses.field(default_factory=dict)
    domain_weights: dict[str, float] = dataclasses.field(default_factory=dict)
    planned_rates: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(0))
    settings: dict[str, Any] = dataclasses.field(default_factory=dict)
    token_losses: Sequence[TokenLosses] = ()


def token_studies(runs: Sequence[RunData], notes: list[str]) -> tuple[TokenStudy, ...]:
    """The token sets of `runs`, each with its runs by size; adds to `notes` what is left out."""
    studies: dict[str, TokenStudy] = {}
    for run in runs:
        for losses in run.token_losses:
            try:
                token_set, own = losses.token_set(), _token_run(run, losses)
            except UserError as error:
                notes.append(f"{run.name}: {error}.")
                continue
            study = studies.setdefault(losses.name, TokenStudy(token_set, ()))
            if token_set.fingerprint != study.token_set.fingerprint:
                notes.append(
                    f"{run.name}: its token set {losses.name} has other tokens than that of "
                    f"{study.runs[0].run}, so the report leaves it out."
                )
                continue
            notes += _missing(run, losses, own)
            ordered = sorted([*study.runs, own], key=lambda one: (one.params, one.run))
            studies[losses.name] = TokenStudy(study.token_set, tuple(ordered))
    return tuple(study for study in studies.values() if study.runs)


def _token_run(run: RunData, losses: TokenLosses) -> TokenRun:
    steps = losses.steps()
    if len(steps) < FEWEST:
        raise UserError(f"{losses.path} has {len(steps)} checkpoints; trajectories need {FEWEST}")
    clocks = pd.DataFrame(index=pd.Index(steps), columns=["tokens", "flops"], dtype=float)
    for table in (run.checkpoints, run.records):
        known = table.reindex(columns=["step", "tokens", "flops"]).drop_duplicates("step")
        clocks = clocks.fillna(known.set_index("step").reindex(clocks.index).astype(float))
    tokens = clocks.tokens.to_numpy()
    named = run.records.reindex(columns=["family", "params"]).dropna()
    return TokenRun(
        run.name,
        str(named.family.iloc[-1]) if len(named) else run.name,
        float(named.params.iloc[-1]) if len(named) else math.nan,
        np.array(steps),
        tokens if np.isfinite(tokens).all() else np.array(steps, float),
        clocks.flops.to_numpy(),
        losses.read(steps),
    )


def _missing(run: RunData, losses: TokenLosses, own: TokenRun) -> Iterator[str]:
    """A note if checkpoints have records and no token losses."""
    lacking = sorted(set(run.records.get("step", ())) - set(own.steps))
    if lacking:
        first = ", ".join(map(str, lacking[:3])) + (", …" if len(lacking) > 3 else "")
        yield (
            f"{run.name}: {len(lacking)} scored checkpoints (step {first}) have no losses of "
            f"{losses.name}; `python -m jaxllm.evaluate --missing` adds them."
        )
