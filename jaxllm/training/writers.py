"""Where measurements go: metrics.jsonl here, and whatever else keeps this protocol."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from etils import epath

from jaxllm.run.run import Run


class Writer(Protocol):
    """Receives what a run measures. `Sequence[Any]` are `jaxllm.run.records.Record`s."""

    def write_metrics(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Takes a line of metrics: numbers, or None where there is no value."""

    def write_records(self, step: int, records: Sequence[Any]) -> None:
        """Takes the scores of a checkpoint."""

    def close(self) -> None:
        """Brings everything to its place."""


class MetricsJsonl:
    """MODEL_DIR/metrics.jsonl: one line per logged step, on the disk when the call returns."""

    def __init__(self, model_dir: epath.PathLike, step: int) -> None:
        """Continues the file after `step`: what a killed process wrote beyond it is dropped."""
        self._lines = Run(model_dir).metrics_lines
        self._lines.keep_until(step)

    def write_metrics(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Adds a line."""
        self._lines.append({"step": step, **metrics})

    def write_records(self, step: int, records: Sequence[Any]) -> None:
        """Nothing: the trajectory store has them."""

    def close(self) -> None:
        """Nothing: every line is already written."""
