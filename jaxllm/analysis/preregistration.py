"""Forecasts that are written down before a run ends, and scored when it has."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from typing import Any

import pandas as pd

from jaxllm.analysis.curves import Array, is_share, of_metric
from jaxllm.analysis.finding import Finding, amount
from jaxllm.analysis.forecast import KEY_COLUMNS, LEVEL, aligned, forecast
from jaxllm.analysis.registry import AHEAD, Study, analysis
from jaxllm.errors import UserError

_COLUMNS = ["run", *KEY_COLUMNS, "progress", "last", "forecast", "low", "high", "finished_runs",
            "method"]  # fmt: skip
FILES = "preregistered*.json"
HELD, MISSED, PENDING = "held", "missed", "not finished"


def registration(study: Study, date: str, version: str) -> str:
    """Forecasts of all runs in progress, as a JSON file."""
    planned = study.planned_tokens
    tables = [forecast(study.records, run, planned).table for run in planned]
    table = pd.concat([pd.DataFrame(columns=_COLUMNS), *tables])
    if table.empty:
        raise UserError("--preregister: the runs in progress have too few checkpoints to forecast")
    content = {
        "date": date,
        "jaxllm": version,
        "data_sha256": digest(study.records),
        "level": LEVEL,
        "planned_tokens": dict(planned),
        "forecasts": table[_COLUMNS].to_dict("records"),
    }
    return json.dumps(content, indent=1, allow_nan=False) + "\n"


def read(text: bytes, name: str) -> dict[str, Any]:
    """The content of a file of `registration`; UserError with its `name` where it is none."""
    try:
        content = json.loads(text)
        rows = [[row[field] for field in _COLUMNS] for row in content["forecasts"]]
        if not (all(content["planned_tokens"][row[0]] > 0 for row in rows) and content["date"]):
            raise ValueError("no run or no date")
    except (ValueError, LookupError, TypeError) as error:
        raise UserError(f"{name} is no file that --preregister wrote") from error
    return dict(content)


def digest(records: pd.DataFrame) -> str:
    """SHA-256 of the records that a forecast can be made from, in any order."""
    columns = ["run", *KEY_COLUMNS, "params", "tokens", "value"]
    text = records[columns].sort_values(columns).to_csv(index=False)
    return hashlib.sha256(text.encode()).hexdigest()


@analysis(
    AHEAD,
    "Forecasts made before the end",
    needs=lambda study: bool(study.registered),
    place=10,
    caption="Written down by --preregister while the run was in progress.",
    method="The intervals as written, against the mean of the run's last checkpoints; a score "
    "within 3 % of the end is a task's last, unless by its spacing one is due at the end.",
)
def preregistered(study: Study) -> Finding:
    """Score registered forecasts of runs that have finished: their fields, `truth` (NaN before the
    end) and `verdict`; what was missed comes first.
    """
    ends = {
        (of.curve.run, *of.key): (of.curve.tokens[-1] / of.progress[-1], of.smooth().values[-1])
        for of in aligned(study.records)[0]
        if of.finished and not _due(of.progress)
    }
    rows = [_scored(row, one, ends) for one in study.registered for row in one["forecasts"]]
    if not rows:
        return Finding.refuse("the registered files hold no forecast")
    table = pd.DataFrame(rows).sort_values("verdict", key=lambda v: v != MISSED, kind="stable")
    table = table.reset_index(drop=True)
    scored = table[table.verdict != PENDING]
    if scored.empty:
        first = min(one["date"] for one in study.registered)
        return Finding(f"{len(table)} forecasts of {first} wait for the end of their runs.", table)
    shares = scored[of_metric(is_share, scored.metric)]
    alike = shares if len(shares) else scored  # errors in other units have no common mean
    error, naive = ((alike[name] - alike.truth).abs().mean() for name in ("forecast", "last"))
    missed = scored[scored.verdict == MISSED]
    waiting = len(table) - len(scored)
    rest = f"; {waiting} wait for their last score" if waiting else ""
    sentence = (
        f"Of {len(scored)} forecasts registered before the end, {len(scored) - len(missed)} "
        f"intervals held the final value ({LEVEL:.0%} expected); the mean error was {error:.4f}, "
        f"of the value at that time {naive:.4f}{rest}."
    )
    lines = tuple(
        f"Missed: {row.task} of {row.run} ended at {row.truth:.3f}, forecast on {row.date} as "
        f"{row.forecast:.3f} ({row.low:.3f} to {row.high:.3f})."
        for row in missed.itertuples()
    )
    return Finding(sentence, table, lines=lines)


def _due(progress: Array) -> bool:
    """Whether the checkpoint at the end has a score of the task that is not written yet."""
    return len(progress) > 1 and 1 - progress[-1] > 0.99 * (progress[-1] - progress[-2])


def _scored(
    row: Mapping[str, Any], file: Mapping[str, Any], ends: Mapping[Any, tuple[float, float]]
) -> dict[str, Any]:
    """A registered forecast with its truth and verdict."""
    planned = file["planned_tokens"][row["run"]]
    tokens, truth = ends.get((row["run"], *(row[name] for name in KEY_COLUMNS)), (0.0, math.nan))
    finished = tokens >= 0.999 * planned
    inside = row["low"] <= truth <= row["high"]
    return {
        **row,
        "truth": truth if finished else math.nan,
        "verdict": (HELD if inside else MISSED) if finished else PENDING,
        "date": file["date"],
        "planned": amount(planned),
    }
