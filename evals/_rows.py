"""Rows of a benchmark's files: one JSON object per line, plain or gzip, local or gs://."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from typing import Any

from etils import epath

from jaxllm.errors import UserError


def read_text(path: epath.PathLike) -> str:
    """The text of a file, unpacked.

    Raises:
      UserError: it is not there, or is damaged.
    """
    path = epath.Path(path)
    try:
        data = path.read_bytes()
        return (gzip.decompress(data) if path.suffix == ".gz" else data).decode()
    except FileNotFoundError as error:
        raise UserError(f"no file {path}") from error
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read ({error})") from error


def read_json(path: epath.PathLike) -> Any:
    """A file that is one JSON value.

    Raises:
      UserError: it is not there, or is damaged.
    """
    return _parse(read_text(path), str(path))


def read_rows(path: epath.PathLike) -> Iterator[dict[str, Any]]:
    """The objects of a JSONL file.

    Raises:
      UserError: it is not there, or a line is broken.
    """
    for number, line in enumerate(read_text(path).split("\n"), 1):
        if line.strip():
            yield _parse(line, f"{path}:{number}")


def _parse(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(f"{where}: broken JSON ({error.msg} at column {error.colno})") from error
