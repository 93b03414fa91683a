"""Write Orbax checkpoints in chunks: one layer, or some rows of an unstacked parameter.

Orbax itself needs every array in memory. Here each leaf of the saved tree creates its chunks one
at a time, as they are written; Orbax does the rest (names, metadata, the commit).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import orbax.checkpoint as ocp
import tensorstore as ts

from jaxllm.run.layout import MODEL


@dataclasses.dataclass(frozen=True)
class Streamed:
    """An array that is created in chunks while it is saved.

    Attributes:
      shape: shape of the array.
      dtype: dtype of the array.
      rows: chunk size along the first axis.
      chunk: first row -> chunk; called after the previous chunk has been written.
    """

    shape: tuple[int, ...]
    dtype: Any
    rows: int
    chunk: Callable[[int], np.ndarray]

    @property
    def size(self) -> int:
        """Number of elements; required by Orbax."""
        return int(np.prod(self.shape))

    @property
    def nbytes(self) -> int:
        """Size in bytes; required by Orbax."""
        return self.size * np.dtype(self.dtype).itemsize


class _Handler(ocp.type_handlers.NumpyHandler):
    """Type handler that writes `Streamed` leaves as NumPy arrays."""

    def __init__(self) -> None:
        super().__init__(deepcopy_host_arrays=False)

    async def _open_and_write(self, value: Any, tspec: dict[str, Any], ts_context: Any) -> None:
        chunk = [value.rows, *value.shape[1:]]
        tspec = tspec | {"metadata": tspec["metadata"] | {"chunks": chunk}}
        store = ts.open(ts.Spec(tspec), create=True, open=True, context=ts_context).result()
        for start in range(0, value.shape[0], value.rows):
            rows = store[start : min(start + value.rows, value.shape[0])]
            # Waiting here, not in the event loop, holds only one chunk of one array in memory.
            rows.write(value.chunk(start), can_reference_source_data_indefinitely=True).result()


def save(directory: Path, tree: Any) -> None:
    """Save a tree of `Streamed` as the model of a checkpoint directory, which must not exist."""
    handlers = ocp.type_handlers.create_type_handler_registry((Streamed, _Handler()))
    model = ocp.PyTreeCheckpointHandler(type_handler_registry=handlers)
    with ocp.Checkpointer(ocp.CompositeCheckpointHandler(**{MODEL: model})) as checkpointer:
        arguments = ocp.args.Composite(**{MODEL: ocp.args.PyTreeSave(tree)})
        checkpointer.save(directory.absolute(), args=arguments)
