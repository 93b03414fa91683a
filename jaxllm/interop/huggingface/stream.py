"""Orbax checkpoints written and read in pieces: a layer, or some rows of what is not stacked.

Orbax itself wants every array whole. Here a leaf of the tree it saves only knows how to make its
pieces; they are written one after the other, each into its own chunk, and Orbax does the rest
(names, metadata, the commit). Reading goes to TensorStore directly, chunk by chunk.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import orbax.checkpoint as ocp
import tensorstore as ts

from jaxllm.errors import UserError
from jaxllm.run.layout import MODEL


@dataclasses.dataclass(frozen=True)
class Streamed:
    """An array that is made in pieces while it is saved.

    Attributes:
      shape: of the whole.
      dtype: of the whole.
      rows: of its first axis in a piece.
      piece: makes the piece that begins at a row, when the one before it is written.
    """

    shape: tuple[int, ...]
    dtype: Any
    rows: int
    piece: Callable[[int], np.ndarray]

    @property
    def size(self) -> int:
        """Numbers in the whole; Orbax asks."""
        return int(np.prod(self.shape))

    @property
    def nbytes(self) -> int:
        """Bytes of the whole; Orbax asks."""
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
            # Waiting here, and not in the event loop, keeps it to one piece of one array.
            rows.write(value.piece(start), can_reference_source_data_indefinitely=True).result()


def save(directory: Path, tree: Any) -> None:
    """Saves a tree of `Streamed` as the model of a checkpoint directory, which must not exist."""
    handlers = ocp.type_handlers.create_type_handler_registry((Streamed, _Handler()))
    model = ocp.PyTreeCheckpointHandler(type_handler_registry=handlers)
    with ocp.Checkpointer(ocp.CompositeCheckpointHandler(**{MODEL: model})) as checkpointer:
        arguments = ocp.args.Composite(**{MODEL: ocp.args.PyTreeSave(tree)})
        checkpointer.save(directory.absolute(), args=arguments)


class Checkpoint:
    """The parameters of a saved checkpoint, opened but not read."""

    def __init__(self, directory: Path) -> None:
        """Opens DIRECTORY, a `checkpoints/<step>`.

        Raises:
          UserError: it is damaged.
        """
        self._path = directory.absolute() / MODEL
        try:
            metadata = json.loads((self._path / "_METADATA").read_text())
            self._driver = "zarr3" if metadata.get("use_zarr3") else "zarr"
            assert metadata["use_ocdbt"]
        except (OSError, ValueError, KeyError, AssertionError) as error:
            raise UserError(f"checkpoint {directory} is damaged ({error})") from error

    def open(self, name: str) -> ts.TensorStore:
        """A parameter by its name, as 'layers/attention/query'.

        Raises:
          UserError: it is not there.
        """
        spec = {
            "driver": self._driver,
            "kvstore": {
                "driver": "ocdbt",
                "base": f"file://{self._path}/",
                "path": name.replace("/", ".") + "/",
            },
        }
        try:
            return ts.open(spec, open=True, read=True).result()
        except ValueError as error:
            raise UserError(f"checkpoint {self._path.parent}: no parameter {name} in it") from error

    def pieces(self, name: str) -> Iterator[tuple[int, np.ndarray]]:
        """A parameter by consecutive rows of its first axis, with the first row's number.

        Never more than a chunk of it is in memory.
        """
        store = self.open(name)
        chunk = (store.chunk_layout.read_chunk.shape or (1,))[0] or 1
        for start in range(0, store.shape[0], chunk):
            yield start, self._read(store[start : min(start + chunk, store.shape[0])], name)

    def _read(self, store: ts.TensorStore, name: str) -> np.ndarray:
        try:
            return store.read().result()
        except ValueError as error:
            line = str(error).splitlines()[0]
            raise UserError(
                f"checkpoint {self._path.parent}: {name} is damaged ({line})"
            ) from error
