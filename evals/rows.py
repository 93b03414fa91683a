"""Read rows of benchmark files (JSON lines, CSV, label lists), plain or gzip, local or gs://.

A row has its location, so that errors about a malformed file name the file, line and field.
"""

from __future__ import annotations

import csv
import io
import json
import zlib
from collections.abc import Iterator, Sequence
from typing import Any

from etils import epath

from jaxllm.errors import UserError, first_line
from jaxllm.evaluation.tasks import Choice
from jaxllm.io import gunzip


class Row(dict[str, Any]):
    """A JSON object, or a line of a table by its column names.

    Attributes:
      where: file and line, for error messages.
    """

    def __init__(self, fields: Any, where: str):
        super().__init__(fields)
        self.where = where


def field(row: Row, name: str, kind: type | tuple[type, ...] = str) -> Any:
    """The value of a field, an object as a `Row` of the same place; UserError for another type."""
    if name not in row:
        known = ", ".join(map(str, row)) or "none"
        raise UserError(f"{row.where}: no field '{name}' (it has {known})")
    value = row[name]
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is int):
        kinds = kind if isinstance(kind, tuple) else (kind,)
        names = " or ".join(k.__name__ for k in kinds)
        raise UserError(f"{row.where}: field '{name}' is {str(value)[:40]!r}, not a {names}")
    return Row(value, row.where) if isinstance(value, dict) else value


def texts(row: Row, name: str) -> tuple[str, ...]:
    """The value of a field that is a list of strings; UserError if it is none."""
    values = field(row, name, list)
    if not all(isinstance(value, str) for value in values):
        raise UserError(f"{row.where}: field '{name}' is not a list of texts")
    return tuple(values)


def objects(row: Row, name: str) -> list[Row]:
    """The objects of a list field, each with its index in its location; UserError if it is none."""
    values = field(row, name, list)
    if not all(isinstance(value, dict) for value in values):
        raise UserError(f"{row.where}: field '{name}' is not a list of objects")
    return [Row(value, f"{row.where}: {name}[{i}]") for i, value in enumerate(values)]


def index_of(row: Row, name: str, among: Sequence[Any]) -> int:
    """The index of a field's value (the answer) `among` the options; UserError if it is none."""
    value = field(row, name, object)
    if value not in among:
        labels = ", ".join(map(str, among))
        raise UserError(f"{row.where}: field '{name}' is {str(value)[:40]!r}, not one of {labels}")
    return list(among).index(value)


def question(row: Row, context: str, options: Sequence[str], answer: int, **details: Any) -> Choice:
    """The multiple-choice question of a row; `details` are further fields of `Choice`.

    UserError for fewer than two options, an empty one, or an answer out of range.
    """
    if len(options) < 2:
        raise UserError(f"{row.where}: {len(options)} options, a question has two or more")
    for number, option in enumerate(options):
        if not option.removeprefix(" "):
            raise UserError(f"{row.where}: option {number + 1} is empty")
    if not 0 <= answer < len(options):
        raise UserError(f"{row.where}: the answer is option {answer + 1} of {len(options)}")
    return Choice(context, tuple(options), answer, **details)


def read_text(path: epath.PathLike) -> str:
    """The text of a file, decompressed; UserError if it is missing or damaged."""
    path = epath.Path(path)
    try:
        data = path.read_bytes()
        return (gunzip(data) if path.suffix == ".gz" else data).decode("utf-8-sig")
    except FileNotFoundError as error:
        raise UserError(f"no file {path}") from error
    except (OSError, EOFError, UnicodeDecodeError, zlib.error) as error:
        raise UserError(f"{path}: cannot be read ({error})") from error


def read_json(path: epath.PathLike) -> Any:
    """The content of a JSON file; UserError if it is missing or damaged."""
    return _parse(read_text(path), str(path))


def read_object(path: epath.PathLike) -> Row:
    """The object of a JSON file; UserError if it is missing, damaged, or no object."""
    value = read_json(path)
    if not isinstance(value, dict):
        raise UserError(f"{path}: not a JSON object")
    return Row(value, str(path))


def read_rows(path: epath.PathLike) -> Iterator[Row]:
    """Yield the objects of a JSONL file; UserError if it is missing, or a line is no object."""
    for number, line in enumerate(read_text(path).split("\n"), 1):
        if line.strip():
            where = f"{path}:{number}"
            value = _parse(line, where)
            if not isinstance(value, dict):
                raise UserError(f"{where}: {line.strip()[:40]!r} is no JSON object")
            yield Row(value, where)


def read_labelled(path: epath.PathLike, labels: epath.PathLike) -> Iterator[Row]:
    """Yield the objects of a JSONL file, each with its line of `labels` as field `label`.

    UserError if a file is missing or malformed, or their lengths differ.
    """
    rows, lines = list(read_rows(path)), read_text(labels).split()
    if len(rows) != len(lines):
        raise UserError(f"{labels}: {len(lines)} labels for the {len(rows)} rows of {path}")
    for row, label in zip(rows, lines, strict=True):
        yield Row({**row, "label": label}, row.where)


def read_csv(path: epath.PathLike, names: Sequence[str] | None = None) -> Iterator[Row]:
    """Yield the rows of a CSV file; `names` are its columns if it has no header line.

    UserError if it is missing, or a line has too few or too many columns.
    """
    lines = csv.reader(io.StringIO(read_text(path), newline=""))
    columns = list(names or next(lines, ()))
    for values in lines:
        where = f"{path}:{lines.line_num}"
        if values and len(values) != len(columns):
            raise UserError(f"{where}: {len(values)} columns, not {len(columns)}")
        if values:
            yield Row(zip(columns, values, strict=True), where)


def _parse(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(f"{where}: broken JSON ({error.msg} at column {error.colno})") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where}: broken JSON ({first_line(error)})") from error
