"""MODEL_DIR/trajectory: one Parquet file per (checkpoint, task), written atomically.

Rescoring replaces the file, so a crash leaves no partial records and two writers never conflict.
Examples are written before records: a task with records has its examples.
"""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import quote, unquote

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from etils import epath

from jaxllm.errors import first_line
from jaxllm.io import atomic_write, is_remote
from jaxllm.run.layout import Layout
from jaxllm.run.records import COLUMNS, Record

_TYPES = {"str": pa.string(), "int": pa.int64(), "float": pa.float64(), "bool": pa.bool_()}
SCHEMA = pa.schema([(f.name, _TYPES[str(f.type)]) for f in dataclasses.fields(Record)])
_RECORDS, _EXAMPLES = ".parquet", ".examples.parquet"

# With few rows, compression, dictionaries and statistics cost space, and reading takes five times
# as long.
_OF_FEW_ROWS: dict[str, Any] = {
    "compression": "none", "use_dictionary": False, "write_statistics": False,
    "store_schema": False,
}  # fmt: skip


class TrajectoryStore:
    """The trajectory table of one run directory, local or `gs://`."""

    def __init__(self, model_dir: str | os.PathLike[str]):
        self.path = Layout(model_dir).trajectory

    def write(
        self,
        step: int,
        task: str,
        records: Sequence[Record],
        examples: pd.DataFrame | None = None,
    ) -> None:
        """Store the records of one task at one checkpoint, replacing earlier ones.

        Raises:
          ValueError: a record is of another step or task, under which it could not be found.
        """
        for record in records:
            if (record.step, record.task) != (step, task):
                raise ValueError(f"a record of {record.task}@{record.step} in {task}@{step}")
        if examples is not None:
            table = pa.Table.from_pandas(examples, preserve_index=False)
            _write(self._file(step, task, _EXAMPLES), table, compression="zstd")
        table = pa.Table.from_pylist([dataclasses.asdict(record) for record in records], SCHEMA)
        _write(self._file(step, task, _RECORDS), table, **_OF_FEW_ROWS)

    def has(self, step: int, task: str) -> bool:
        """Whether records of `task` at `step` are stored, failed ones included."""
        return self._file(step, task, _RECORDS).exists()

    def scored(self, step: int, since: float = 0.0) -> set[str]:
        """Tasks with readable records at `step`, written after `since`, in Unix seconds.

        Records older than their checkpoint are from a branch that a rollback has abandoned.
        """
        files = {task: self._file(step, task, _RECORDS) for task in self.tasks(step)}
        return {
            task
            for task, file in files.items()
            if _mtime(file) >= int(since) and isinstance(_read(file), pa.Table)
        }

    def steps(self) -> tuple[int, ...]:
        """Steps with stored records, ascending."""
        if not self.path.exists():
            return ()
        return tuple(sorted(int(p.name) for p in self.path.iterdir() if p.name.isdigit()))

    def tasks(self, step: int) -> tuple[str, ...]:
        """Tasks with stored records at `step`, in alphabetical order."""
        folder = self.path / str(step)
        names = [p.name for p in folder.iterdir()] if folder.exists() else []
        return tuple(sorted(unquote(n.removesuffix(_RECORDS)) for n in names if _is_records(n)))

    def read(self) -> pd.DataFrame:
        """All records, with the columns of `Record`, ordered by step, task, metric."""
        return self.read_with_problems()[0]

    def read_with_problems(self) -> tuple[pd.DataFrame, tuple[str, ...]]:
        """As `read`, with a line for each unreadable file."""
        files = [self._file(step, t, _RECORDS) for step in self.steps() for t in self.tasks(step)]
        problems, tables = [], [SCHEMA.empty_table()]
        with ThreadPoolExecutor(8) as pool:
            # Threads hide the latency of object stores; on a disk they only cost time.
            results = (pool.map if is_remote(self.path) else map)(_read, files)
            for file, result in zip(files, results, strict=True):
                if isinstance(result, pa.Table):
                    tables.append(result)
                else:
                    problems.append(f"{file}: unreadable ({result})")
        frame = pa.concat_tables(tables).to_pandas()
        return frame.sort_values(["step", "task", "metric"], ignore_index=True), tuple(problems)

    def read_examples(self, step: int, task: str) -> pd.DataFrame:
        """The per-example rows of one task at one checkpoint; FileNotFoundError without any."""
        return pd.read_parquet(pa.BufferReader(self._file(step, task, _EXAMPLES).read_bytes()))

    def _file(self, step: int, task: str, suffix: str) -> epath.Path:
        # Quoting keeps names with a slash (harness tasks) in one flat folder, and avoids hidden
        # files and clashes with another task's examples.
        name = re.sub(r"^\.|\.(?=examples$)", "%2E", quote(task, safe=" :,+="))
        return self.path / str(step) / (name + suffix)


def _is_records(name: str) -> bool:
    return name.endswith(_RECORDS) and not name.endswith(_EXAMPLES) and not name.startswith(".")


def _mtime(file: epath.Path) -> float:
    """Modification time in Unix seconds; whole seconds in object stores."""
    return file.stat().mtime if is_remote(file) else os.path.getmtime(file)


def _read(file: epath.Path) -> pa.Table | str:
    """The records of a file, with the current columns, or the reason why they cannot be read."""
    try:
        # Files are small and many: `pq.read_table` would set up a data set scan for each.
        table = pq.ParquetFile(pa.BufferReader(file.read_bytes())).read(use_threads=False)
        if table.schema.equals(SCHEMA):
            return table
        missing = [name for name in COLUMNS if name not in table.schema.names]
        return f"no column {missing[0]}" if missing else table.select(COLUMNS).cast(SCHEMA)
    except (OSError, pa.ArrowException) as error:
        return first_line(error)


def _write(file: epath.Path, table: pa.Table, **options: Any) -> None:
    buffer: Any = pa.BufferOutputStream()
    pq.write_table(table, buffer, **options)
    atomic_write(file, buffer.getvalue().to_pybytes())
