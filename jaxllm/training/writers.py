"""Where measurements go besides the run directory's own files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol


class Writer(Protocol):
    """Receives what a run measures. `Sequence[Any]` are `jaxllm.run.records.Record`s."""

    def write_metrics(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Takes a line of metrics: numbers, or None where there is no value."""

    def write_records(self, step: int, records: Sequence[Any]) -> None:
        """Takes the scores of a checkpoint."""

    def close(self) -> None:
        """Brings everything to its place."""
