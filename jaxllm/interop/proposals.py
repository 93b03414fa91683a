"""A proposed mixture as files: a gin binding to train with, and JSON with what it predicts."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from etils import epath

from jaxllm.analysis.mixtures.propose import Proposal
from jaxllm.analysis.mixtures.swarm import Swarm
from jaxllm.errors import UserError
from jaxllm.interop.mixture_tables import Columns, read_swarm
from jaxllm.io import atomic_write
from jaxllm.run.suite_layout import SuiteLayout

SMALLEST = 1e-4  # share below which a domain is left out
_TABLES = {"mixture": "table", "predicted": "predicted", "guards": "guards", "targets": "targets"}


def write(path: str, found: Proposal) -> None:
    """Write a proposal: its mixture as .csv, all of it as .json; or as .gin with the .json beside.

    A refusal has no gin file.
    """
    file = epath.Path(path)
    if file.suffix == ".csv":
        atomic_write(file, found.table.to_csv(index=False))
        return
    if file.suffix == ".gin":
        if found.status == "refused":
            return
        atomic_write(file, binding(found) + "\n")
    known: dict[str, Any] = {name: rows(getattr(found, own)) for name, own in _TABLES.items()}
    known |= {name: getattr(found, name) for name in ("status", "reason", "objective")}
    sizes = {"params": found.params, "steps": found.steps}
    known |= {name: None if np.isnan(number) else number for name, number in sizes.items()}
    known |= {"weights": weights(found)} if found.status != "refused" else {}
    atomic_write(file.with_suffix(".json"), json.dumps(known, indent=1) + "\n")


def write_tables(path: str, tables: Mapping[str, pd.DataFrame]) -> None:
    """Write tables as .json, or the first as .csv."""
    text = json.dumps({name: rows(table) for name, table in tables.items()}, indent=1) + "\n"
    if path.endswith(".csv"):
        text = next(iter(tables.values())).to_csv(index=False)
    atomic_write(path, text)


def read(path: str) -> Proposal:
    """The proposal of a .json that `write` wrote, or of the one beside a .gin.

    UserError if there is none.
    """
    file = epath.Path(path).with_suffix(".json")
    if not file.exists():
        raise UserError(f"{file}: no such file; `propose --output={path}` writes it")
    try:
        known = json.loads(file.read_text())
        tables = {own: pd.DataFrame(known[name]) for name, own in _TABLES.items()}
        found = Proposal(
            known["status"], known["reason"], tables["table"].proposed.to_numpy(float),
            objective=known["objective"],
            **{name: float(known[name] or np.nan) for name in ("params", "steps")}, **tables,
        )  # fmt: skip
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{file} is no proposal as `propose --output` writes it") from error
    if found.status == "refused":
        raise UserError(f"{file}: nothing was proposed: {found.reason}")
    return found


def results(found: Proposal, directory: str) -> Swarm:
    """The runs of a suite, with the targets of a proposal; UserError as `read_swarm`."""
    targets = list(map(str, found.targets.target.unique()))
    names = [name.removeprefix("-") for name in targets]
    higher = [name for name, target in zip(names, targets, strict=True) if name != target]
    return read_swarm(directory, Columns(targets=names, higher=higher)).only(targets)


def beside(directory: str) -> tuple[Proposal | None, Swarm | None]:
    """The proposal that lies in a swarm's directory, and the runs that check it, if any.

    UserError as `read`, of one that is there.
    """
    layout = SuiteLayout(directory)
    if not layout.proposal.exists():
        return None, None
    found = read(str(layout.proposal))
    trained = SuiteLayout(layout.check).runs_file.exists()
    return found, results(found, str(layout.check)) if trained else None


def weights(found: Proposal, mixture: str = "proposed") -> dict[str, float]:
    """Its proposed or natural shares as DataConfig takes them: above 0."""
    shares = dict(zip(found.table.domain, found.table[mixture].astype(float), strict=True))
    return {str(name): round(s, 6) for name, s in shares.items() if s >= SMALLEST}


def binding(found: Proposal) -> str:
    """The proposed shares as a gin binding."""
    return f"DataConfig.weights = {weights(found)!r}"


def rows(table: pd.DataFrame) -> list[Mapping[str, Any]]:
    """A table as JSON, a mapping for each row."""
    return json.loads(table.to_json(orient="records"))
