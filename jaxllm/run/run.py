"""A run directory as tables: its records, its logged metrics, its checkpoints."""

from __future__ import annotations

import functools
import json
import math
import os
import re
from typing import Any

import pandas as pd
from etils import epath

from jaxllm.errors import UserError
from jaxllm.run.trajectory import TrajectoryStore


class Run:
    """Reads what a run wrote; a run that is still going is read as far as it got.

    Attributes:
      path: The run directory.
      name: The name in its records, or that of the directory while there are none.
    """

    def __init__(self, model_dir: str | os.PathLike[str]):
        """Opens a run directory.

        Raises:
          UserError: there is no such directory, or nothing in it comes from a run.
        """
        self.path = epath.Path(model_dir)
        self.store = TrajectoryStore(model_dir)
        if not self.path.exists():
            raise UserError(f"{model_dir}: no such directory")
        if not self.path.is_dir():
            raise UserError(f"{model_dir}: a file, not a run directory")
        parts = ("trajectory", "metrics.jsonl", "checkpoints.jsonl")
        if not any((self.path / part).exists() for part in parts):
            found = [p for p in sorted(self.path.iterdir()) if p.is_dir() and _is_run(p, parts)]
            hint = f"; did you mean {', '.join(map(str, found[:3]))}?" if found else ""
            raise UserError(f"{model_dir}: not a run directory, it has no {_either(parts)}{hint}")

    @property
    def name(self) -> str:
        """The run's name in its records, or else the directory's."""
        names = self.records()["run"].unique()
        return str(names[0]) if len(names) == 1 else self.path.name

    def records(self) -> pd.DataFrame:
        """The trajectory table; see `jaxllm.run.records.Record` for its columns."""
        return self._records[0]

    def metrics(self) -> pd.DataFrame:
        """A row per logged step of metrics.jsonl, ordered by step; empty when there is none."""
        return self._metrics[0]

    def checkpoints(self) -> pd.DataFrame:
        """A row per checkpoint of checkpoints.jsonl, ordered by step; empty when there is none."""
        return self._checkpoints[0]

    def planned_tokens(self) -> float:
        """Tokens at the end of the run as its config plans it; NaN where it does not say."""
        config = self.path / "config.gin"
        text = config.read_text() if config.exists() else ""
        steps = re.search(r"^TrainConfig\.steps = (\S+)", text, re.MULTILINE)
        if steps and steps[1].startswith("%"):
            steps = re.search(rf"^{steps[1][1:]} = (\S+)", text, re.MULTILINE)
        tables = [t for t in (self.checkpoints(), self.metrics()) if "tokens" in t]
        rows = pd.concat(tables)[["step", "tokens"]] if tables else pd.DataFrame({"step": []})
        rows = rows[rows.step > 0]
        if not (steps and steps[1].isdigit() and len(rows)):
            return math.nan
        return int(steps[1]) * float(rows.tokens.iloc[-1] / rows.step.iloc[-1])

    def problems(self) -> tuple[str, ...]:
        """A line for everything in the directory that could not be read."""
        return self._records[1] + self._metrics[1] + self._checkpoints[1]

    @functools.cached_property
    def _records(self) -> tuple[pd.DataFrame, tuple[str, ...]]:
        return self.store.read_with_problems()

    @functools.cached_property
    def _metrics(self) -> tuple[pd.DataFrame, tuple[str, ...]]:
        return read_jsonl(self.path / "metrics.jsonl")

    @functools.cached_property
    def _checkpoints(self) -> tuple[pd.DataFrame, tuple[str, ...]]:
        return read_jsonl(self.path / "checkpoints.jsonl")


def _is_run(path: epath.Path, parts: tuple[str, ...]) -> bool:
    return any((path / part).exists() for part in parts)


def _either(parts: tuple[str, ...]) -> str:
    return f"{', '.join(parts[:-1])} or {parts[-1]}"


def read_jsonl(path: epath.Path) -> tuple[pd.DataFrame, tuple[str, ...]]:
    """Rows of a JSON-lines file with an integer `step`; of equal steps the last line holds.

    A writer that was killed leaves half a last line: it is counted and reported, not fatal.
    """
    if not path.exists():
        return pd.DataFrame({"step": pd.Series(dtype="int64")}), ()
    rows: dict[int, dict[str, Any]] = {}
    bad = []
    for number, line in enumerate(path.read_bytes().splitlines(), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
            rows[int(row["step"])] = row
        except (ValueError, KeyError, TypeError):
            bad.append(number)
    frame = pd.DataFrame([rows[step] for step in sorted(rows)], columns=None if rows else ["step"])
    if not bad:
        return frame, ()
    lines = ", ".join(map(str, bad[:5])) + (", …" if len(bad) > 5 else "")
    plural = "lines" if len(bad) > 1 else "line"
    return frame, (f"{path}: {len(bad)} {plural} not readable as JSON (line {lines})",)
