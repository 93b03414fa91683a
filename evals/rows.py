"""Rows of a benchmark's files (JSON lines, CSV, label lists), plain or gzip, local or gs://.

A row knows where it stands, so that a file of the wrong shape is answered with its name, the line
and the field.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
from collections.abc import Iterator, Sequence
from typing import Any

from etils import epath

from jaxllm.errors import UserError
from jaxllm.evaluation.tasks import Choice


class Row(dict[str, Any]):
    """A JSON object, or a line of a table by its column names.

    Attributes:
      where: file and line, as messages name them.
    """

    def __init__(self, fields: Any, where: str):
        super().__init__(fields)
        self.where = where


def field(row: Row, name: str, kind: type | tuple[type, ...] = str) -> Any:
    """What a row holds under `name`; an object inside it is a `Row` of the same place.

    Raises:
      UserError: it has no such field, or one of another type.
    """
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
    """A field that is a list of texts.

    Raises:
      UserError: it is not there, or is something else.
    """
    values = field(row, name, list)
    if not all(isinstance(value, str) for value in values):
        raise UserError(f"{row.where}: field '{name}' is not a list of texts")
    return tuple(values)


def objects(row: Row, name: str) -> list[Row]:
    """A field that is a list of objects.

    Raises:
      UserError: it is not there, or is something else.
    """
    values = field(row, name, list)
    if not all(isinstance(value, dict) for value in values):
        raise UserError(f"{row.where}: field '{name}' is not a list of objects")
    return [Row(value, row.where) for value in values]


def index_of(row: Row, name: str, among: Sequence[Any]) -> int:
    """Where the value of a field (the answer's label) stands in `among` (the options' labels).

    Raises:
      UserError: it is not there, or is none of them.
    """
    value = field(row, name, object)
    if value not in among:
        labels = ", ".join(map(str, among))
        raise UserError(f"{row.where}: field '{name}' is {str(value)[:40]!r}, not one of {labels}")
    return list(among).index(value)


def question(row: Row, context: str, options: Sequence[str], answer: int, **details: Any) -> Choice:
    """The multiple-choice question of a row; `details` are further fields of `Choice`.

    Raises:
      UserError: fewer than two options, an empty one, or no answer among them.
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
    """The text of a file, unpacked.

    Raises:
      UserError: it is not there, or is damaged.
    """
    path = epath.Path(path)
    try:
        data = path.read_bytes()
        return (gzip.decompress(data) if path.suffix == ".gz" else data).decode("utf-8-sig")
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


def read_object(path: epath.PathLike) -> Row:
    """A file that is one JSON object.

    Raises:
      UserError: it is not there, is damaged, or is another value.
    """
    value = read_json(path)
    if not isinstance(value, dict):
        raise UserError(f"{path}: not a JSON object")
    return Row(value, str(path))


def parts(row: Row, name: str) -> Iterator[Row]:
    """A field that is a list of objects, each of which knows its place in the list.

    Raises:
      UserError: it is not there, or is something else.
    """
    for number, part in enumerate(objects(row, name)):
        part.where = f"{row.where}: {name}[{number}]"
        yield part


def read_rows(path: epath.PathLike) -> Iterator[Row]:
    """The objects of a JSONL file.

    Raises:
      UserError: it is not there, or a line is broken or no object.
    """
    for number, line in enumerate(read_text(path).split("\n"), 1):
        if line.strip():
            where = f"{path}:{number}"
            value = _parse(line, where)
            if not isinstance(value, dict):
                raise UserError(f"{where}: {line.strip()[:40]!r} is no JSON object")
            yield Row(value, where)


def read_labelled(path: epath.PathLike, labels: epath.PathLike) -> Iterator[Row]:
    """The objects of a JSONL file, each with the text of its line in `labels` as field `label`.

    Raises:
      UserError: a file is not there or broken, or they differ in length.
    """
    rows, lines = list(read_rows(path)), read_text(labels).split()
    if len(rows) != len(lines):
        raise UserError(f"{labels}: {len(lines)} labels for the {len(rows)} rows of {path}")
    for row, label in zip(rows, lines, strict=True):
        yield Row({**row, "label": label}, row.where)


def read_csv(path: epath.PathLike, names: Sequence[str] | None = None) -> Iterator[Row]:
    """The lines of a table; `names` are its columns where its first line does not say so.

    Raises:
      UserError: it is not there, or a line has too few or too many columns.
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
