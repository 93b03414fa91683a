"""What is read of each run, and the losses of held-out tokens of several for their analyses."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from jaxllm.analysis.finding import amount
from jaxllm.analysis.tokens.runs import TokenRun, TokenStudy
from jaxllm.errors import UserError
from jaxllm.run.token_losses import TokenLosses, TokenSet

FEWEST = 2  # checkpoints of a run
RUNS, TOKENS = 8, 100_000  # of a token set, at most
_ARRAYS = ("tokens", "documents", "positions", "ends")


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
    """The token sets of `runs`, each with its runs by size; adds to `notes` what is left out.

    Of each set at most `RUNS` runs, evenly by size with both ends, and the first `TOKENS` tokens.
    """
    studies = []
    for name in dict.fromkeys(losses.name for run in runs for losses in run.token_losses):
        scored = []
        for run in runs:
            for losses in (one for one in run.token_losses if one.name == name):
                try:
                    scored.append((run, losses, losses.token_set()))
                except UserError as error:
                    notes.append(f"{run.name}: {error}.")
        study = TokenStudy(*_read(name, scored, notes)) if scored else None
        studies += [study] if study and study.runs else []
    return tuple(studies)


def _read(
    name: str, scored: Sequence[tuple[RunData, TokenLosses, TokenSet]], notes: list[str]
) -> tuple[TokenSet, tuple[TokenRun, ...]]:
    """The tokens that most runs have, and their losses in those runs."""
    usual, _ = Counter(tokens.fingerprint for *_, tokens in scored).most_common(1)[0]
    token_set = next(tokens for *_, tokens in scored if tokens.fingerprint == usual)
    others = [run.name for run, _, tokens in scored if tokens.fingerprint != usual]
    if others:
        notes.append(
            f"{', '.join(others)}: the token set {name} has other tokens than in the other runs, "
            "so the report leaves it out there."
        )
    same = [(run, losses) for run, losses, tokens in scored if tokens.fingerprint == usual]
    ordered = sorted(same, key=lambda one: (math.isnan(size := _size(one[0])), size, one[0].name))
    chosen = np.unique(np.linspace(0, len(ordered) - 1, RUNS).round().astype(int))
    if len(chosen) < len(ordered):
        notes.append(f"{name}: {len(chosen)} of {len(ordered)} runs are read, evenly by size.")
    documents, last = token_set.first_documents(TOKENS)
    if (total := len(token_set.tokens)) > last:
        notes.append(f"{name}: the report reads the first {last:,} of {total:,} tokens.")
    runs = []
    for run, losses in (ordered[index] for index in chosen):
        try:
            runs.append(_token_run(run, losses, slice(0, last), notes))
        except UserError as error:
            notes.append(f"{run.name}: {error}.")
    sizes = [run.params for run in runs]
    distinct = len(set(sizes)) == len(sizes) and not any(map(math.isnan, sizes))
    labelled = (
        dataclasses.replace(run, label=amount(run.params) if distinct else run.run) for run in runs
    )
    read = {field: getattr(token_set, field)[:last] for field in _ARRAYS}
    shown = dataclasses.replace(token_set, texts=token_set.texts[:documents], **read)
    return shown, tuple(labelled)


def _size(run: RunData) -> float:
    """Number of parameters; NaN, which is sorted last, if it is unknown."""
    return float([math.nan, *run.records.get("params", pd.Series()).dropna()][-1])


def _token_run(run: RunData, losses: TokenLosses, tokens: slice, notes: list[str]) -> TokenRun:
    headers = losses.headers()
    steps = [step for step, header in headers.items() if not header["not_finite"]]
    if len(steps) < len(headers):
        notes.append(
            f"{run.name}: {len(headers) - len(steps)} checkpoints with losses of {losses.name} "
            "that are not finite are left out."
        )
    if len(steps) < FEWEST:
        raise UserError(f"{losses.path} has {len(steps)} checkpoints; trajectories need {FEWEST}")
    if lacking := sorted(set(run.records.get("step", ())) - set(headers)):
        first = ", ".join(map(str, lacking[:3])) + (", …" if len(lacking) > 3 else "")
        notes.append(
            f"{run.name}: {len(lacking)} scored checkpoints (step {first}) have no losses of "
            f"{losses.name}; {losses.remedy()}."
        )
    clocks = pd.DataFrame(index=pd.Index(steps), columns=["tokens", "flops"], dtype=float)
    for table in (run.checkpoints, run.records):
        known = table.reindex(columns=["step", "tokens", "flops"]).drop_duplicates("step")
        clocks = clocks.fillna(known.set_index("step").reindex(clocks.index).astype(float))
    seen = clocks.tokens.to_numpy()
    known = bool(np.isfinite(seen).all())
    return TokenRun(
        run.name, _size(run), np.array(steps), seen if known else np.array(steps, float),
        clocks.flops.to_numpy(), losses.read(steps, tokens), clock="tokens" if known else "steps",
    )  # fmt: skip
