"""Outputs of measurements besides the run directory's own files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol


class Writer(Protocol):
    """A receiver of a run's measurements. `Sequence[Any]` are `jaxllm.run.records.Record`s."""

    def write_metrics(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Write a line of metrics: numbers, or None where there is no value."""

    def write_records(self, step: int, records: Sequence[Any]) -> None:
        """Write the records of a scored checkpoint."""

    def close(self) -> None:
        """Flush and close."""
