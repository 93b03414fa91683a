"""Documents of a file: JSON lines, text, Parquet, Arrow and ArrayRecord, local or remote.

JSON has an object per line, or is one array of objects. A text file is split at line ends into
documents of about a megabyte, whose concatenation is the file. A record of ArrayRecord is a
tf.Example, a JSON object, or the text itself where the name of the field is empty. A large file is
read in parts: byte ranges of lines, row groups of Parquet, fractions of the records. Whatever
cannot be read is reported to `on_error` with its line (row, record), and left out.
"""

from __future__ import annotations

import bz2
import contextlib
import dataclasses
import gzip
import hashlib
import io
import itertools
import json
import lzma
import re
import zlib
from collections.abc import Callable, Generator, Iterator, Mapping
from typing import IO, Any, NamedTuple, Protocol

from jaxllm.data import array_record, held_out
from jaxllm.errors import UserError
from jaxllm.io import is_store_error

PART_BYTES = 256 << 20
TEXT_CHUNK_BYTES = 1 << 20
LINES = (".jsonl", ".ndjson", ".json", ".txt")
RECORDS = ".array_record"
FORMATS = (*LINES, ".parquet", ".arrow", RECORDS)
COMPRESSIONS = (".gz", ".zst", ".xz", ".bz2", ".lz4")
_SURROGATE = re.compile(r"[\ud800-\udfff]")
_SHARD = re.compile(r"(\.[a-z_]+)-\d+-of-\d+$")  # TFDS writes x.array_record-00000-of-00010
_BOM = b"\xef\xbb\xbf"

Document = dict[str, str]
Reading = Generator[Document, None, int]


class BadLine(NamedTuple):
    """A line, or a row, without a document: its number in the part, from 1, and why."""

    line: int
    reason: str


OnError = Callable[[BadLine], None]


class Part(Protocol):
    """A stretch of a corpus that is read on its own, in any process."""

    @property
    def file(self) -> str:
        """The file it is in, or another name for messages."""

    @property
    def size(self) -> int:
        """Bytes to read; 0 if unknown."""

    @property
    def key(self) -> str:
        """Hash of what it holds: of equal parts, only one is prepared."""

    def documents(self, on_error: OnError | None = None) -> Reading:
        """The documents in order, as dicts with `text` and `id`; returns the number of lines."""


def suffixes_of(name: str) -> tuple[str, str]:
    """The format and the compression of a file, as suffixes; empty where there is none."""
    name = _SHARD.sub(r"\1", name.lower())
    compression = next((suffix for suffix in COMPRESSIONS if name.endswith(suffix)), "")
    name = name.removesuffix(compression)
    return next((suffix for suffix in FORMATS if name.endswith(suffix)), ""), compression


@dataclasses.dataclass(frozen=True)
class FilePart:
    """A part of a file.

    From `start` to `stop` (None: the end): the lines that begin in this range of bytes, this range
    of Parquet row groups, or the records from fraction start / stop to (start + 1) / stop.
    """

    file: str  # its path or URL
    size: int  # bytes to read, as stored
    version: str = ""  # what changes with the content of the file
    start: int = 0
    stop: int | None = None
    text: str = "text"  # field of the text, a.b if nested; empty where a record is the text
    held_out: bool | None = None  # whether to read what `held_out` takes, or the rest; None: all

    @property
    def key(self) -> str:
        """A hash of what the part holds, wherever the file lies."""
        held = (suffixes_of(self.file), self.size, self.version, self.start, self.stop, self.text)
        rule = () if self.held_out is None else (self.held_out, held_out.RULE)
        return hashlib.sha256(repr((*held, *rule)).encode()).hexdigest()[:16]

    def documents(self, on_error: OnError | None = None) -> Reading:
        """The documents in order, as dicts with `text` and `id`; returns the number of lines.

        UserError if the file is missing or damaged, or has no such field; without `on_error` also
        at the first line without a document.
        """
        if self.held_out is None:
            return (yield from self._documents(on_error or self._raise))
        # What cannot be read is reported with the rest.
        report = (lambda bad: None) if self.held_out else on_error or self._raise
        return (yield from held_out.select(self._documents(report), self.held_out))

    def _documents(self, on_error: OnError) -> Reading:
        kind, compression = suffixes_of(self.file)
        if not kind:
            raise UserError(
                f"{self.file}: not one of {', '.join(FORMATS)}, plain or with"
                f" {', '.join(COMPRESSIONS)}"
            )
        with storage_errors(f"{self.file} cannot be read to its end"):
            if kind == RECORDS:
                return (yield from self._records(on_error))
            with open_file(self.file) as raw, _decompressed(raw, compression) as stream:
                if kind in (".parquet", ".arrow"):
                    return (yield from self._rows(stream, kind, on_error))
                lines = self._lines(stream)
                read = _text_documents if kind == ".txt" else _json_documents
                return (yield from read(self, lines, on_error))

    def _raise(self, bad: BadLine) -> None:
        raise UserError(f"{self.file}:{bad.line}: {bad.reason}")

    def _lines(self, stream: IO[bytes]) -> Iterator[bytes]:
        """The lines that begin in the part."""
        position = self.start
        if self.start:
            stream.seek(self.start - 1)
            position += len(stream.readline()) - 1
        for line in stream:
            if self.stop is not None and position >= self.stop:
                return
            position += len(line)
            yield line

    def _rows(self, stream: IO[bytes], kind: str, on_error: OnError) -> Reading:
        import pyarrow as pa
        import pyarrow.parquet as pq

        field, *inner = self.text.split(".")
        number = 0
        try:
            file = pq.ParquetFile(stream) if kind == ".parquet" else pa.ipc.open_stream(stream)
            names = (file.schema_arrow if kind == ".parquet" else file.schema).names
            if field not in names:
                raise UserError(f"{self.file} has no column {field}; it has {', '.join(names)}")
            if kind == ".parquet":
                stop = file.num_row_groups if self.stop is None else self.stop
                groups = range(self.start, stop)
                file = file.iter_batches(row_groups=groups, columns=[field], batch_size=1024)
            for batch in file:
                for value in batch.column(field).to_pylist():
                    number += 1
                    text = _field(value, inner)
                    yield from _checked(text, f"{self._name}:{number}", number, on_error, self.text)
        except pa.ArrowInvalid as error:
            raise UserError(f"{self.file} is damaged ({error})") from error
        return number

    def _records(self, on_error: OnError) -> Reading:
        number = 0
        records = array_record.read(self.file, self.start, self.stop or 1)
        for number, (place, record) in enumerate(records, 1):
            try:
                text = _record_text(record, self.text)
            except ValueError as error:  # UnicodeDecodeError and JSONDecodeError, too
                on_error(BadLine(number, str(error)))
            else:
                yield from _checked(text, f"{self._name}:{place}", number, on_error, self.text)
        return number

    @property
    def _name(self) -> str:
        return self.file.rpartition("/")[2]


def parts_of(file: str, size: int, version: str, text: str = "text") -> list[FilePart]:
    """The parts of a file of `size` bytes."""
    whole = FilePart(file, size, version, text=text)
    kind, compression = suffixes_of(file)
    if size <= PART_BYTES or compression or kind == ".arrow":
        return [whole]
    if kind == ".parquet":
        return _row_groups(whole)
    if kind == RECORDS:
        of = -(-size // PART_BYTES)
        return [dataclasses.replace(whole, size=size // of, start=i, stop=of) for i in range(of)]
    with storage_errors(f"{file} cannot be read"), open_file(file) as stream:
        head = stream.read(1 << 16).removeprefix(_BOM).lstrip()
    if kind != ".txt" and head.startswith(b"["):  # an array is one line
        return [whole]
    edges = [*range(0, size, PART_BYTES), size]
    return [
        dataclasses.replace(whole, size=stop - start, start=start, stop=stop)
        for start, stop in itertools.pairwise(edges)
    ]


def _row_groups(whole: FilePart) -> list[FilePart]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    with storage_errors(f"{whole.file} cannot be read"), open_file(whole.file) as stream:
        try:
            meta = pq.ParquetFile(stream).metadata
        except pa.ArrowInvalid as error:
            raise UserError(f"{whole.file} is damaged ({error})") from error
        sizes = [meta.row_group(i).total_byte_size for i in range(meta.num_row_groups)]
    parts: list[FilePart] = []
    start = total = 0
    for group, size in enumerate(sizes, 1):
        total += size
        if total >= PART_BYTES or group == len(sizes):
            parts.append(dataclasses.replace(whole, size=total, start=start, stop=group))
            start, total = group, 0
    return parts


def open_file(path: str) -> Any:
    """A file open for reading bytes: a local path, or a URL of any store that fsspec knows."""
    import fsspec

    return fsspec.open(path, "rb").open()


@contextlib.contextmanager
def storage_errors(failure: str) -> Iterator[None]:
    """Convert what storage and decompression raise inside to a UserError: `<failure> (<why>)`."""
    try:
        yield
    except FileNotFoundError as error:
        raise UserError(f"{failure}: no such file or bucket") from error
    except Exception as error:
        known = OSError | EOFError | ImportError | ValueError | zlib.error | lzma.LZMAError
        if isinstance(error, known) or is_store_error(error):
            raise UserError(f"{failure} ({_reason(error)})") from error
        raise


@contextlib.contextmanager
def _decompressed(raw: IO[bytes], compression: str) -> Iterator[Any]:
    if not compression:
        yield raw
    elif compression in (".zst", ".lz4"):
        import pyarrow

        # zstandard's own reader accepts truncated files; Arrow's raises.
        codec = {".zst": "zstd", ".lz4": "lz4"}[compression]
        with pyarrow.CompressedInputStream(pyarrow.PythonFile(raw, "r"), codec) as stream:
            yield io.BufferedReader(stream, 1 << 20)
    else:
        reader: Any = {".gz": gzip.open, ".xz": lzma.open, ".bz2": bz2.open}[compression]
        with reader(raw) as stream:
            yield stream


def _reason(error: BaseException) -> str:
    if "requires too much memory" in str(error):  # of zstd --long=28 and above
        return "compress it again with a window of 128 MB or less, as zstd --long=27"
    return str(error)


def _json_documents(part: FilePart, lines: Iterator[bytes], on_error: OnError) -> Reading:
    number, begun = 0, False
    for number, line in enumerate(lines, 1):
        if number == 1 and not part.start:
            line = line.removeprefix(_BOM)
        if not line.strip():
            continue
        try:
            if not begun and not part.start and line.lstrip().startswith(b"["):
                rows = json.loads(line + b"".join(lines))
            else:
                rows = [json.loads(line)]
        except (ValueError, RecursionError) as error:  # of UTF-8, JSON, and Python's limits
            on_error(BadLine(number, f"broken JSON ({getattr(error, 'msg', error)})"))
            continue
        finally:
            begun = True
        for index, row in enumerate(rows):
            place = f"{part._name}:{number}" + (f"[{index}]" if len(rows) > 1 else "")
            identity = str(row.get("id", place)) if isinstance(row, Mapping) else place
            text = _field(row, part.text.split("."))
            yield from _checked(text, identity, number, on_error, part.text, row)
    return number


def _text_documents(part: FilePart, lines: Iterator[bytes], on_error: OnError) -> Reading:
    chunk: list[str] = []
    size, first, number = 0, 1, 0
    for number, line in enumerate(lines, 1):
        try:
            chunk.append(line.decode())
        except UnicodeDecodeError as error:
            on_error(BadLine(number, f"invalid UTF-8 ({error.reason} at byte {error.start})"))
            continue
        size += len(line)
        if size >= TEXT_CHUNK_BYTES:
            yield {"text": "".join(chunk), "id": f"{part._name}:{first}"}
            chunk, size, first = [], 0, number + 1
    if chunk:
        yield {"text": "".join(chunk), "id": f"{part._name}:{first}"}
    return number


def _record_text(record: bytes, field: str) -> Any:
    """The text of a record, if it has one; ValueError if it is of no kind that is read."""
    if not field:
        return record.decode()
    if record.startswith(b"{"):
        return _field(json.loads(record), field.split("."))
    import tensorflow as tf
    from google.protobuf.message import DecodeError

    try:
        features = tf.train.Example.FromString(record).features.feature
    except DecodeError as error:
        raise ValueError("neither a tf.Example nor a JSON object (text = '' reads text)") from error
    name = field if field in features else field.replace(".", "/")  # as TFDS nests them
    values = features[name].bytes_list.value if name in features else []
    return values[0].decode() if len(values) == 1 else None


def _field(row: Any, path: list[str]) -> Any:
    for name in path:
        row = row.get(name) if isinstance(row, Mapping) else None
    return row


def _checked(
    text: Any, identity: str, number: int, on_error: OnError, field: str, row: Any = None
) -> Iterator[Document]:
    if not isinstance(text, str):
        on_error(BadLine(number, f"no `{field}` string in {repr(row if row else text)[:60]}"))
    elif _SURROGATE.search(text):
        on_error(BadLine(number, "half of a surrogate pair, which UTF-8 cannot hold"))
    else:
        yield {"text": text, "id": identity}
