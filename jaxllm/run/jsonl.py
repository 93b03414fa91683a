"""Files of one JSON object per line that survive being killed in the middle of a line."""

from __future__ import annotations

import contextlib
import io
import json
import math
import os
from collections.abc import Iterable, Mapping
from typing import Any

from etils import epath


def append(path: epath.PathLike, row: Mapping[str, Any]) -> None:
    """Adds one line and brings it to the disk before returning.

    Numbers that JSON has no word for (NaN, infinities) become null.
    """
    with epath.Path(path).open("a") as file:
        file.write(_line(row))
        _to_disk(file)


def read(path: epath.PathLike) -> tuple[list[dict[str, Any]], int]:
    """The rows of the file and the number of lines that are not a whole JSON object.

    A file that does not exist has no rows.
    """
    path = epath.Path(path)
    if not path.exists():
        return [], 0
    rows: list[dict[str, Any]] = []
    broken = 0
    for line in path.read_bytes().split(b"\n"):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        if isinstance(row, dict):
            rows.append(row)
        else:
            broken += 1
    return rows, broken


def keep_until(path: epath.PathLike, step: int) -> int:
    """Drops the rows beyond `step` and what a kill left half-written; returns how many.

    The file is replaced in one move, so that a kill in here loses nothing.
    """
    path = epath.Path(path)
    rows, broken = read(path)
    kept = [row for row in rows if row["step"] <= step]
    dropped = len(rows) - len(kept) + broken
    # The newline may be all that the last line lacks.
    if dropped or (rows and not path.read_bytes().endswith(b"\n")):
        replace_text(path, "".join(map(_line, kept)))
    return dropped


def replace_text(path: epath.PathLike, text: str) -> None:
    """Writes a whole file in one move: a reader sees the old text or the new one."""
    path = epath.Path(path)
    temporary = path.with_name(f"{path.name}.tmp")
    with temporary.open("w") as file:
        file.write(text)
        _to_disk(file)
    temporary.replace(path)


def finite(value: Any) -> Any:
    """`value` with numbers that JSON cannot write replaced by None."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, Iterable) and not isinstance(value, str):
        return [finite(item) for item in value]
    return value


def _line(row: Mapping[str, Any]) -> str:
    return json.dumps(finite(row), allow_nan=False) + "\n"


def _to_disk(file: Any) -> None:
    file.flush()
    # An object store has no file descriptors, and is durable when the file is closed.
    with contextlib.suppress(AttributeError, io.UnsupportedOperation):
        os.fsync(file.fileno())
