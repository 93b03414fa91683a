"""Orbax checkpoints written in chunks: a layer, or some rows of what is not stacked over layers.

Orbax itself wants every array whole. Here a leaf of the tree it saves makes its chunks when they
are written, one after the other; Orbax does the rest (names, metadata, the commit).
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
    """An array that is made in chunks while it is saved.

    Attributes:
      shape: of the array.
      dtype: of the array.
      rows: of its first axis in a chunk.
      chunk: makes the chunk that begins at a row, when the one before it is written.
    """

    shape: tuple[int, ...]
    dtype: Any
    rows: int
    chunk: Callable[[int], np.ndarray]

    @property
    def size(self) -> int:
        """Number of elements; Orbax asks."""
        return int(np.prod(self.shape))

    @property
    def nbytes(self) -> int:
        """Bytes of the array; Orbax asks."""
        return self.size * np.dtype(self.dtype).itemsize


class _Handler(ocp.type_handlers.NumpyHandler):
    """Writes `Streamed` leaves as Orbax writes NumPy arrays."""

    def __init__(self) -> None:
        super().__init__(deepcopy_host_arrays=False)

    async def _open_and_write(self, value: Any, tspec: dict[str, Any], ts_context: Any) -> None:
        chunk = [value.rows, *value.shape[1:]]
        tspec = tspec | {"metadata": tspec["metadata"] | {"chunks": chunk}}
        store = ts.open(ts.Spec(tspec), create=True, open=True, context=ts_context).result()
        for start in range(0, value.shape[0], value.rows):
            rows = store[start : min(start + value.rows, value.shape[0])]
            # Waiting here, and not in the event loop, keeps it to one chunk of one array.
            rows.write(value.chunk(start), can_reference_source_data_indefinitely=True).result()


def save(directory: Path, tree: Any) -> None:
    """Saves a tree of `Streamed` as the model of a checkpoint directory, which must not exist."""
    handlers = ocp.type_handlers.create_type_handler_registry((Streamed, _Handler()))
    model = ocp.PyTreeCheckpointHandler(type_handler_registry=handlers)
    with ocp.Checkpointer(ocp.CompositeCheckpointHandler(**{MODEL: model})) as checkpointer:
        arguments = ocp.args.Composite(**{MODEL: ocp.args.PyTreeSave(tree)})
        checkpointer.save(directory.absolute(), args=arguments)
