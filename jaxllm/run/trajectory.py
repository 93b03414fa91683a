"""MODEL_DIR/trajectory: the trajectory table, in Parquet files that are written atomically.

    <step>/<task>.parquet             the records of a task at a checkpoint
    <step>/<task>.examples.parquet    its examples, written first: who has records has examples
    <step>.parquet                    the records of all tasks of a checkpoint, in an object store
                                      (thousands of small files would cost a request each), and
                                      those that a branch has from its parent

Scoring again replaces a task's file, which comes before the checkpoint's. A file names the
checkpoint that was scored by its `ManifestEntry.wall_time`: a run that is rolled back saves another
one at the same step.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import re
import zlib
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from etils import epath

from jaxllm.errors import UserError, first_line
from jaxllm.io import is_remote, parquet
from jaxllm.kvstore import KeyValueStore
from jaxllm.run.layout import Layout
from jaxllm.run.records import COLUMNS, Record
from jaxllm.uploads import allowed

_TYPES = {"str": pa.string(), "int": pa.int64(), "float": pa.float64(), "bool": pa.bool_()}
SCHEMA = pa.schema([(f.name, _TYPES[str(f.type)]) for f in dataclasses.fields(Record)])
_RECORDS, _EXAMPLES = ".parquet", ".examples.parquet"
# keys in a file's metadata
_CHECKPOINT, _CRC = b"checkpoint", b"jaxllm.crc32"

# With few rows, compression, dictionaries and statistics cost space, and reading takes five times
# as long.
_OF_FEW_ROWS: dict[str, Any] = {
    "compression": "none", "use_dictionary": False, "write_statistics": False,
    "store_schema": False,
}  # fmt: skip


class TrajectoryStore:
    """The trajectory table of one run directory, local or in an object store."""

    def __init__(self, model_dir: str | os.PathLike[str]):
        self.layout = Layout(model_dir)
        self.path = self.layout.trajectory

    @functools.cached_property
    def _store(self) -> KeyValueStore:
        return KeyValueStore(self.path)

    def write(
        self,
        step: int,
        task: str,
        records: Sequence[Record],
        examples: pd.DataFrame | None = None,
        checkpoint: float | None = None,
    ) -> None:
        """Store the records of one task; `checkpoint` is its `wall_time` in the manifest."""
        if not allowed(self.path):  # the run ends with the reason
            return
        if examples is not None:
            table = pa.Table.from_pandas(examples, preserve_index=False)
            self._store.write({_name(step, task, _EXAMPLES): _bytes(table, compression="zstd")})
        table = pa.Table.from_pylist([dataclasses.asdict(record) for record in records], SCHEMA)
        content = _bytes(table, checkpoint, **_OF_FEW_ROWS)
        self._store.write({_name(step, task, _RECORDS): content})

    def write_table(self, records: pd.DataFrame, checkpoint: float | None = None) -> None:
        """Store records of any steps and tasks, with the columns of `Record`, a file per step."""
        for step, rows in records.groupby("step"):
            table = pa.Table.from_pandas(rows, SCHEMA, preserve_index=False)
            content = _bytes(table, checkpoint, **_OF_FEW_ROWS)
            self._store.write({f"{step}{_RECORDS}": content})

    def abandon(self, step: int, directory: epath.PathLike) -> None:
        """Move all files of a step into `directory`."""
        names = [name for name in self._store.names(str(step)) if _step(name) == step]
        self._store.move(names, directory)

    def compact(self, step: int) -> None:
        """Move the records of a checkpoint into one file, where files cost requests."""
        if not is_remote(self.path):
            return
        files = self._files([step])
        tables = [table for table in self._tables(files).values() if isinstance(table, pa.Table)]
        checkpoints = {_checkpoint(table) for table in tables}
        if len(files) < 2 or len(tables) < len(files) or len(checkpoints) > 1:
            return
        self.write_table(_latest(tables), *checkpoints)
        self._store.delete([name for name in files if "/" in name])

    def scored(self, step: int, checkpoint: float | None = None) -> set[str]:
        """Tasks with readable records at `step`, of the checkpoint with this `wall_time`."""
        return {
            task
            for table in self._tables(self._files([step])).values()
            if isinstance(table, pa.Table) and _is_of(table, checkpoint)
            for task in table["task"].unique().to_pylist()
        }

    def steps(self) -> tuple[int, ...]:
        """Steps with stored records, ascending."""
        return tuple(sorted({_step(name) for name in self._files()}))

    def read(self) -> pd.DataFrame:
        """All records, with the columns of `Record`, ordered by step, task, metric."""
        return self.read_with_problems()[0]

    def read_with_problems(
        self, checkpoints: Mapping[int, float] | None = None
    ) -> tuple[pd.DataFrame, tuple[str, ...]]:
        """As `read`, with a line for each unreadable file, and each of an abandoned checkpoint.

        `checkpoints` are the `wall_time`s of the run's checkpoints by step, as far as known.
        """
        tables, problems = [], []
        for name, table in self._tables(self._files()).items():
            if not isinstance(table, pa.Table):
                problems.append(f"{self.path / name}: unreadable ({table})")
            elif not _is_of(table, (checkpoints or {}).get(_step(name))):
                problems.append(
                    f"{self.path / name}: of a checkpoint that the run has abandoned;"
                    " `jaxllm.evaluate --missing` scores the one in its place"
                )
            else:
                tables.append(table)
        found = _latest(tables).sort_values(["step", "task", "metric"], ignore_index=True)
        return found, tuple(problems)

    def read_examples(self, step: int, task: str) -> pd.DataFrame:
        """The per-example rows of one task at one checkpoint; FileNotFoundError without any."""
        name = _name(step, task, _EXAMPLES)
        (content,) = self._store.read(name)
        if content is None:
            raise FileNotFoundError(self.path / name)
        if _with_crc(content) != content:
            raise UserError(f"{self.path / name} is damaged (its CRC-32 differs)")
        return parquet(content).read().to_pandas()

    def example_steps(self, task: str) -> list[int]:
        """Steps with per-example rows of one task, ascending."""
        names = set(self._store.names())
        return [step for step in self.steps() if _name(step, task, _EXAMPLES) in names]

    def _files(self, steps: Sequence[int] | None = None) -> list[str]:
        """The files with records, of all steps or some; those of single tasks last."""
        names = self._store.names() if steps is None else []
        for step in steps or ():
            names += self._store.names(f"{step}.") + self._store.names(f"{step}/")
        return sorted(filter(_is_records, names), key=lambda name: ("/" in name, name))

    def _tables(self, files: Sequence[str]) -> dict[str, pa.Table | str]:
        contents = self._store.read(*files)
        return {n: _read(c) for n, c in zip(files, contents, strict=True) if c is not None}


def _name(step: int, task: str, suffix: str) -> str:
    # Quoting keeps names with a slash (harness tasks) in one flat folder, and avoids hidden files
    # and clashes with another task's examples.
    return f"{step}/" + re.sub(r"^\.|\.(?=examples$)", "%2E", quote(task, safe=" :,+=")) + suffix


def _step(name: str) -> int:
    return int(name.partition("/")[0].removesuffix(_RECORDS))


def _is_records(name: str) -> bool:
    step, _, file = name.removesuffix(_RECORDS).partition("/")
    return (
        name.endswith(_RECORDS) and not name.endswith(_EXAMPLES)
        and step.isdecimal() and "/" not in file and not file.startswith(".")
    )  # fmt: skip


def _latest(tables: Sequence[pa.Table]) -> pd.DataFrame:
    """All records; of those of one task at one step, only those of the last table with any."""
    frame = pa.concat_tables([SCHEMA.empty_table(), *tables]).to_pandas()
    order = np.repeat(np.arange(len(tables)), [len(table) for table in tables])
    last = pd.Series(order).groupby([frame["step"], frame["task"]]).transform("max")
    return frame[order == last]


def _read(content: bytes) -> pa.Table | str:
    """The records of a file, with the current columns, or the reason why they cannot be read."""
    if _with_crc(content) != content:
        return "its CRC-32 differs"
    try:
        # Files are small and many: `pq.read_table` would set up a data set scan for each.
        file = parquet(content)
        table = file.read(use_threads=False)
        if not table.schema.equals(SCHEMA):
            for field in dataclasses.fields(Record):
                if field.name in table.schema.names:
                    continue
                if field.default is dataclasses.MISSING:
                    return f"no column {field.name}"
                table = table.append_column(field.name, [[field.default] * len(table)])
            table = table.select(COLUMNS).cast(SCHEMA)
        table = table.replace_schema_metadata(file.metadata.metadata)
        _checkpoint(table)  # ValueError if it is none
        return table
    except (OSError, ValueError, pa.ArrowException) as error:
        return first_line(error)


def _checkpoint(table: pa.Table) -> float | None:
    value = (table.schema.metadata or {}).get(_CHECKPOINT)
    return None if value is None else float(value)


def _is_of(table: pa.Table, checkpoint: float | None) -> bool:
    """Whether a table is of this checkpoint, as far as both are known."""
    return None in (checkpoint, _checkpoint(table)) or _checkpoint(table) == checkpoint


def _bytes(table: pa.Table, checkpoint: float | None = None, **options: Any) -> bytes:
    buffer: Any = pa.BufferOutputStream()
    with pq.ParquetWriter(buffer, table.schema, **options) as writer:
        writer.write_table(table)
        if checkpoint is not None:
            writer.add_key_value_metadata({_CHECKPOINT: repr(checkpoint)})
        writer.add_key_value_metadata({_CRC.decode(): "00000000"})
    return _with_crc(buffer.getvalue().to_pybytes())


def _with_crc(content: bytes) -> bytes:
    """A file with its CRC-32 of all but itself; unchanged if it has no place for one."""
    before, key, after = content.rpartition(_CRC + b"\x18\x08")  # Thrift: a string of 8 bytes
    return before + key + b"%08x" % zlib.crc32(before + after[8:]) + after[8:] if key else content
