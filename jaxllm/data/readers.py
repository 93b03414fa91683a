"""Documents from files: .jsonl, .json and .txt, plain or compressed with .gz or .zst.

JSON has an object per line, or is one array of objects; `text` is the document, `id` is optional. A
text file is split at line ends into documents of about a megabyte, whose concatenation is the file.
Unreadable lines are reported to `on_error` as `file:line: reason` and left out.
"""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import zlib
from collections.abc import Callable, Iterator
from typing import IO, Any

from etils import epath

from jaxllm.errors import UserError

COMPRESSIONS = (".gz", ".zst")
FORMATS = (".jsonl", ".json", ".txt")
TEXT_CHUNK_BYTES = 1 << 20

OnError = Callable[[str], None]


def raise_on_error(message: str) -> None:
    """The default `on_error`: raise UserError at the first unreadable line."""
    raise UserError(message)


def file_format(path: epath.PathLike) -> str | None:
    """`.jsonl`, `.json` or `.txt`, before any compression suffix; None for other formats."""
    name = epath.Path(path).name
    for suffix in COMPRESSIONS:
        name = name.removesuffix(suffix)
    return next((suffix for suffix in FORMATS if name.endswith(suffix)), None)


def read_documents(
    path: epath.PathLike, on_error: OnError = raise_on_error
) -> Iterator[dict[str, str]]:
    """Documents of a file, in order, as dicts with `text` and `id`.

    Raises:
      UserError: the file is missing, of an unknown format, or its compression is damaged.
    """
    path = epath.Path(path)
    kind = file_format(path)
    if kind is None:
        raise UserError(f"{path}: not one of {FORMATS} (with .gz or .zst or neither)")
    try:
        with _open(path) as lines:
            if kind == ".txt":
                yield from _text_documents(path, lines, on_error)
            else:
                yield from _json_documents(path, lines, on_error)
    except FileNotFoundError as error:
        raise UserError(f"no file {path}") from error
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path}: cannot be read to its end ({error})") from error


@contextlib.contextmanager
def _open(path: epath.Path) -> Iterator[Any]:
    with path.open("rb") as raw:
        if path.suffix == ".gz":
            with gzip.open(raw) as stream:
                yield stream
        elif path.suffix == ".zst":
            import pyarrow

            # zstandard's own reader accepts truncated files; Arrow's raises.
            with pyarrow.CompressedInputStream(pyarrow.PythonFile(raw, "r"), "zstd") as stream:
                yield io.BufferedReader(stream, 1 << 20)
        else:
            yield raw


def _json_documents(
    path: epath.Path, lines: IO[bytes], on_error: OnError
) -> Iterator[dict[str, str]]:
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        where = f"{path}:{number}"
        try:
            if number == 1 and line.lstrip()[:1] == b"[":
                rows = json.loads(line + lines.read())
            else:
                rows = [json.loads(line)]
        except UnicodeDecodeError as error:
            on_error(f"{where}: invalid UTF-8 ({error.reason} at byte {error.start})")
        except json.JSONDecodeError as error:
            on_error(f"{where}: broken JSON ({error.msg} at column {error.colno})")
        else:
            for index, row in enumerate(rows):
                identity = f"{path.name}:{number}" + (f"[{index}]" if len(rows) > 1 else "")
                if not isinstance(row, dict) or not isinstance(row.get("text"), str):
                    on_error(f"{where}: no `text` string in {_shorten(row)}")
                elif _has_surrogate(row["text"]):
                    on_error(f"{where}: half of a surrogate pair, which UTF-8 cannot hold")
                else:
                    yield {"text": row["text"], "id": str(row.get("id", identity))}


def _text_documents(
    path: epath.Path, lines: IO[bytes], on_error: OnError
) -> Iterator[dict[str, str]]:
    chunk: list[str] = []
    size, first = 0, 1
    for number, line in enumerate(lines, 1):
        try:
            chunk.append(line.decode())
        except UnicodeDecodeError as error:
            on_error(f"{path}:{number}: invalid UTF-8 ({error.reason} at byte {error.start})")
            continue
        size += len(line)
        if size >= TEXT_CHUNK_BYTES:
            yield {"text": "".join(chunk), "id": f"{path.name}:{first}"}
            chunk, size, first = [], 0, number + 1
    if chunk:
        yield {"text": "".join(chunk), "id": f"{path.name}:{first}"}


def _has_surrogate(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return True
    return False


def _shorten(row: object) -> str:
    text = repr(row)
    return text if len(text) <= 60 else text[:57] + "..."
