"""Corpora in files: .jsonl, .json and .txt, plain or compressed with .gz or .zst.

JSON has an object per line, or is one array of objects; `text` is the document, `id` is optional. A
text file is split at line ends into documents of about a megabyte, whose concatenation is the file.
Unreadable lines are reported to `on_error` as `file:line: reason` and left out.
"""

from __future__ import annotations

import contextlib
import dataclasses
import gzip
import io
import json
import re
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import IO, Any, Protocol

from etils import epath

from jaxllm.errors import UserError

COMPRESSIONS = (".gz", ".zst")
FORMATS = (".jsonl", ".json", ".txt")
# Splits of corpora, and the prefixes of their file names.
SPLITS = {"train": ("train",), "validation": ("valid", "dev"), "test": ("test",)}
TEXT_CHUNK_BYTES = 1 << 20
_SURROGATE = re.compile(r"[\ud800-\udfff]")

OnError = Callable[[str], None]


def raise_on_error(message: str) -> None:
    """The default `on_error`: raise UserError at the first unreadable line."""
    raise UserError(message)


class Corpus(Protocol):
    """Documents that are read in Python; `seqio_source.CorpusSource` is their SeqIO source."""

    @property
    def splits(self) -> tuple[str, ...]:
        """The splits that have documents."""

    def documents(self, split: str, on_error: OnError = raise_on_error) -> Iterator[dict[str, str]]:
        """The documents of a split in order, as dicts with `text` and `id`."""

    def fingerprint(self, split: str) -> str:
        """A string that changes with the documents."""


@dataclasses.dataclass(frozen=True)
class FileCorpus:
    """The files of one domain, by split, in the order of their names."""

    root: str
    files: Mapping[str, tuple[str, ...]]

    @property
    def splits(self) -> tuple[str, ...]:
        """The splits that have files."""
        return tuple(self.files)

    def documents(self, split: str, on_error: OnError = raise_on_error) -> Iterator[dict[str, str]]:
        """The documents of the files of a split."""
        for file in self.files[split]:
            yield from read_documents(file, on_error)

    def fingerprint(self, split: str) -> str:
        """The names (below the domain), sizes and modification times of the files."""
        stats = []
        for file in self.files[split]:
            stat = epath.Path(file).stat()
            stats.append((file.removeprefix(self.root), stat.length, stat.mtime))
        return repr(stats)

    def size(self, split: str) -> int:
        """Total size of the files in bytes, as stored."""
        return sum(epath.Path(file).stat().length for file in self.files.get(split, ()))


def directory_corpora(directory: epath.PathLike) -> dict[str, FileCorpus]:
    """The domains of a corpus directory: `<domain>/[<source>/]<split>*.<suffix>`.

    Raises:
      UserError: there is no such directory, or no training file in it.
    """
    root = epath.Path(directory)
    if not root.is_dir():
        raise UserError(f"DataConfig.corpus_dir: no directory {root}")
    corpora = {}
    for domain in sorted(path for path in root.iterdir() if path.is_dir()):
        files: dict[str, list[str]] = {}
        for file in sorted(_files_below(domain), key=str):
            files.setdefault(_split_of(file.name), []).append(str(file))
        if files:
            ordered = {split: tuple(files[split]) for split in SPLITS if split in files}
            corpora[domain.name] = FileCorpus(str(domain), ordered)
    if not any("train" in corpus.files for corpus in corpora.values()):
        raise UserError(f"{root}: no <domain>/[<source>/]train*.jsonl or .txt file (.gz, .zst)")
    return corpora


def _files_below(domain: epath.Path) -> Iterator[epath.Path]:
    for path in domain.iterdir():
        below: Iterable[epath.Path] = path.iterdir() if path.is_dir() else [path]
        yield from (file for file in below if _format(file) and not file.is_dir())


def _split_of(name: str) -> str:
    matching = (split for split, prefixes in SPLITS.items() if name.startswith(prefixes))
    return next(matching, "train")


def _format(path: epath.Path) -> str | None:
    """`.jsonl`, `.json` or `.txt`, before any compression suffix; None for other formats."""
    name = path.name
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
    kind = _format(path)
    if kind is None:
        raise UserError(f"{path}: not one of {FORMATS} (with .gz or .zst or neither)")
    read = _text_documents if kind == ".txt" else _json_documents
    try:
        with _open(path) as lines:
            yield from read(path, lines, on_error)
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
            continue
        except json.JSONDecodeError as error:
            on_error(f"{where}: broken JSON ({error.msg} at column {error.colno})")
            continue
        for index, row in enumerate(rows):
            identity = f"{path.name}:{number}" + (f"[{index}]" if len(rows) > 1 else "")
            text = row.get("text") if isinstance(row, dict) else None
            if not isinstance(text, str):
                on_error(f"{where}: no `text` string in {repr(row)[:60]}")
            elif _SURROGATE.search(text):
                on_error(f"{where}: half of a surrogate pair, which UTF-8 cannot hold")
            else:
                yield {"text": text, "id": str(row.get("id", identity))}


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
