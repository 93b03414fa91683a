"""Import published results and our own runs as one trajectory table.

    open_source("pythia:evals/")             the Pythia repository's evals/, or its JSONL form
    open_source("harness:results/?tokens_per_step=4194304")   lm-evaluation-harness, 0.3 and 0.4
    open_source("csv:table.csv?run=Model&tokens=Tokens (T)*1e12&values=MMLU,ARC")
    open_source("tensorboard:logs/?tokens_per_step=524288")
    open_source("wandb:exports/?tokens_per_step=524288")
    open_source("run_directory")

Settings follow `?` as `name=value`, separated by `&`. All kinds accept `run`, `family` and `params`
(which override the source) and, if the source counts steps, `tokens_per_step`.

Each number of shots is a separate task: `arc_easy` at five shots is named `arc_easy 5-shot`.
"""

from __future__ import annotations

import os
from urllib.parse import unquote

from etils import epath

from jaxllm.errors import UserError
from jaxllm.interop.importers import csv_table, harness, pythia, tensorboard, wandb
from jaxllm.interop.importers.table import Settings
from jaxllm.run.records import Results
from jaxllm.run.run import Run


def is_import(spec: str | os.PathLike[str]) -> bool:
    """Whether `spec` names results to import, not a run directory."""
    kind, colon, _ = os.fspath(spec).partition(":")
    return bool(colon) and kind in _READERS


def open_source(spec: str | os.PathLike[str]) -> Results:
    """Read `KIND:PATH?settings` or a run directory; UserError if there is nothing to read."""
    spec = os.fspath(spec)
    if not is_import(spec):
        run = Run.open(spec)
        return Results(spec, run.records(), run.metrics().assign(run=run.name), run.problems())
    kind, _, rest = spec.partition(":")
    path, _, query = rest.partition("?")
    pairs = [part.partition("=") for part in query.split("&") if part]
    settings = Settings({unquote(key): unquote(value) for key, _, value in pairs}, spec)
    location = epath.Path(path)
    if not path or not location.exists():
        raise UserError(f"{spec}: there is no {path or 'path'}")
    return _READERS[kind](location, settings)


_READERS = {
    "pythia": pythia.read,
    "harness": harness.read,
    "csv": csv_table.read,
    "tensorboard": tensorboard.read,
    "wandb": wandb.read,
}
