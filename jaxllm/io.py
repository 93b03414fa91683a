"""Atomic writes of files and directories, and JSON lines; local or `gs://`."""

from __future__ import annotations

import atexit
import contextlib
import gzip
import io
import json
import math
import os
import shutil
import tempfile
import traceback
import uuid
import zlib
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import fsspec
from etils import epath

from jaxllm import kvstore
from jaxllm.errors import UserError, first_line
from jaxllm.uploads import Upload, allowed

if TYPE_CHECKING:
    import pandas as pd

_SEAL = ', "crc32": '
LARGEST_TEXT = 1 << 30  # bytes of a decompressed table or file of results
_EXPANSION = 1_000  # uncompressed bytes of a Parquet file per byte
PARTIAL = ".partial-"  # prefix of incomplete directories
_DISK_TEXTS = (
    "permission denied", "read-only file system", "input/output error", "retry attempts failed",
)  # fmt: skip
_STORE_LIBRARIES = (
    "gcsfs", "google", "aiohttp", "s3fs", "aiobotocore", "botocore", "huggingface_hub", "httpx",
    "requests",
)  # fmt: skip


def location(text: str) -> str:
    """A path with `~` expanded and without `file://`; other URLs, as gs://, are unchanged.

    The prefix `hf:`, as in `hf:~/model`, stays.
    """
    prefix = "hf:" if text.startswith("hf:") else ""
    return prefix + os.path.expanduser(text.removeprefix(prefix).removeprefix("file://"))


def is_remote(path: epath.PathLike) -> bool:
    """Whether a path names an object store: `gs://…`."""
    return "://" in os.fspath(path)


def atomic_write(path: epath.PathLike, data: str | bytes) -> None:
    """Replace a file atomically: a reader, and a failed write, see the old content or the new.

    OSError with its name, not the temporary file's, if it cannot be written.
    """
    path = epath.Path(path)
    content = data.encode() if isinstance(data, str) else data
    if is_remote(path):
        kvstore.write_file(path, content)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = f"{path.parent}/.{uuid.uuid4().hex}.tmp"
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            _to_disk(file)
        os.replace(temporary, path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            os.remove(temporary)
        if isinstance(error, OSError) and error.errno:
            raise OSError(error.errno, error.strerror, os.fspath(path)) from error
        raise


def is_store_error(error: Exception) -> bool:
    """Whether a library for object stores raised it: as a type of its own, or as a mere OSError."""
    module = type(error).__module__
    if type(error) is OSError and error.errno is None and error.__traceback__:
        *_, (frame, _) = traceback.walk_tb(error.__traceback__)
        module = frame.f_globals.get("__name__", module)
    return module.partition(".")[0] in _STORE_LIBRARIES


@contextlib.contextmanager
def disk_errors(
    doing: str, consequence: str = "", errnos: Collection[int] | None = None
) -> Iterator[None]:
    """Convert a disk's errors inside to a UserError: `cannot <doing>: <reason><consequence>`.

    These are OSErrors, with `errnos` only those, errors of object stores, and errors of Orbax and
    TensorStore, which are known by their text.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        reason, text = first_line(error), str(error).lower().replace("_", " ")
        if isinstance(error, OSError) and (errnos is None or error.errno in errnos):
            reason = error.strerror or reason
        elif "space left" in text or "quota exceeded" in text:
            reason = "no space is left on the disk"
        elif not is_store_error(error) and not any(words in text for words in _DISK_TEXTS):
            raise
        raise UserError(f"cannot {doing}: {reason}{consequence}") from error


@contextlib.contextmanager
def new_directory(target: str | Path) -> Iterator[Path]:
    """A directory to fill for an output that a user names, absent or empty, uploaded if remote."""
    remote = is_remote(target)
    path: Any = epath.Path(target) if remote else Path(target).absolute()
    if path.exists() and not (path.is_dir() and not any(path.iterdir())):
        raise UserError(f"{path} exists already: name a directory that does not")
    if not remote:
        partial = path.with_name(PARTIAL + path.name)
        shutil.rmtree(partial, ignore_errors=True)  # left by a killed process
        with disk_errors(f"write {path}"):
            partial.mkdir(parents=True)
            try:
                yield partial
                for file in partial.rglob("*"):
                    if file.is_file():
                        with open(file, "rb") as written:
                            os.fsync(written.fileno())
                if path.exists():
                    path.rmdir()
                os.rename(partial, path)
            finally:
                shutil.rmtree(partial, ignore_errors=True)
        return
    with disk_errors(f"write {target}"), tempfile.TemporaryDirectory() as local:
        yield Path(local)
        system, root = fsspec.core.url_to_fs(os.fspath(target))
        try:
            system.put(f"{local}/", root, recursive=True)
        except BaseException:
            with contextlib.suppress(OSError):
                system.rm(root, recursive=True)
            raise


def fetched(path: epath.PathLike) -> Path:
    """A file or directory, or a copy of that of an object store until the process ends."""
    if not is_remote(path):
        return Path(path)
    local = tempfile.mkdtemp()
    atexit.register(shutil.rmtree, local, ignore_errors=True)
    system, root = fsspec.core.url_to_fs(os.fspath(path))
    with disk_errors(f"copy {path} to {local}"):
        if system.isfile(root):
            copy = Path(local) / os.path.basename(root)
            system.get_file(root, copy)
            return copy
        if not system.isdir(root):
            raise UserError(f"{path}: no such file or directory")
        system.get(f"{root.rstrip('/')}/", local, recursive=True)
    return Path(local)


def sealed(value: Mapping[str, Any]) -> str:
    """A JSON object with the CRC-32 of its text as its last field."""
    text = json.dumps(value, allow_nan=False)
    return f"{text[:-1]}{_SEAL}{zlib.crc32(text.encode())}}}"


def unsealed(text: bytes) -> Any:
    """The value of `sealed` text, or of JSON without a CRC; ValueError if it is damaged."""
    content, seal, crc = text.rpartition(_SEAL.encode())
    if seal and crc.rstrip() != b"%d}" % zlib.crc32(content + b"}"):
        raise ValueError("its CRC-32 differs")
    return json.loads(content + b"}" if seal else text)


def read_json(path: epath.PathLike) -> dict[str, Any]:
    """A JSON object from a file; UserError if the file is missing, or is not a JSON object."""
    try:
        value = json.loads(epath.Path(path).read_bytes().decode("utf-8-sig"))
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or first_line(error)}") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not JSON ({error})") from error
    if not isinstance(value, dict):
        raise UserError(f"{path}: holds no JSON object")
    return value


def parquet(content: bytes) -> Any:
    """The pyarrow.parquet.ParquetFile of a table, whose declared size is that of a real one.

    ValueError if it is none, or a few bytes stand for a table that fills the memory.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    file = pq.ParquetFile(pa.BufferReader(content))
    groups = [file.metadata.row_group(i) for i in range(file.metadata.num_row_groups)]
    rows, size = sum(g.num_rows for g in groups), sum(g.total_byte_size for g in groups)
    if rows > len(content) or size > _EXPANSION * len(content):
        raise ValueError(f"{len(content):,} bytes declare {rows:,} rows of {size:,} bytes")
    return file


def gunzip(content: bytes) -> bytes:
    """Decompress gzip data, if it is that; OSError or EOFError if damaged, or far too large."""
    if content[:2] != b"\x1f\x8b":
        return content
    with gzip.GzipFile(fileobj=io.BytesIO(content)) as file:
        found = file.read(LARGEST_TEXT + 1)
    if len(found) > LARGEST_TEXT:
        raise OSError(f"{len(content):,} bytes of gzip hold more than {LARGEST_TEXT:,}")
    return found


class JsonLines:
    """A file of one JSON object per line, each with an integer `step`; a kill costs one line.

    A line has a CRC, so that one with a flipped bit is taken for incomplete.

    In an object store it is replaced: in the background every `upload_seconds`, or at once if 0.
    """

    def __init__(self, path: epath.PathLike, upload_seconds: float = 0.0) -> None:
        self.path = epath.Path(path)
        self._upload = Upload(path, upload_seconds) if is_remote(path) else None
        self._at_once = upload_seconds == 0
        self._content: bytes | None = None  # of a remote file that this process has written

    def append(self, row: Mapping[str, Any]) -> None:
        """Append one line, on disk before returning; non-finite numbers become null."""
        if not allowed(self.path):  # the run ends with the reason
            return
        if self._upload is None:
            with self.path.open("a") as file:
                file.write(_line(row))
                _to_disk(file)
            return
        content = self._content = self._bytes() + _line(row).encode()
        self._upload.put(lambda: content)
        if self._at_once:
            self._upload.flush()

    def flush(self) -> None:
        """Upload lines that are not yet uploaded."""
        if self._upload is not None:
            self._upload.flush()

    def _bytes(self) -> bytes:
        if self._content is not None:
            return self._content
        if self._upload is not None:
            return kvstore.read_file(self.path) or b""
        return self.path.read_bytes() if self.path.exists() else b""

    def read(self) -> tuple[list[dict[str, Any]], list[int]]:
        """The rows, none of a missing file, and the 1-based numbers of lines without one."""
        rows: list[dict[str, Any]] = []
        broken: list[int] = []
        for number, line in enumerate(self._bytes().split(b"\n"), start=1):
            if not line.strip():
                continue
            try:
                row = unsealed(line)
            except (ValueError, RecursionError):
                row = None
            step = row.get("step") if isinstance(row, dict) else None
            if type(step) is int and abs(step) < 1 << 63:
                rows.append(row)
            else:
                broken.append(number)
        return rows, broken

    def table(self) -> tuple[pd.DataFrame, tuple[str, ...]]:
        """A row per step, ordered, the last of repeated ones; and a line on unreadable lines."""
        import pandas as pd

        rows, broken = self.read()
        by_step = {row["step"]: row for row in rows}
        of_steps: Any = [by_step[step] for step in sorted(by_step)]
        frame = pd.DataFrame(of_steps or {"step": pd.Series(dtype="int64")})
        if not broken:
            return frame, ()
        numbers = ", ".join(map(str, broken[:5])) + (", …" if len(broken) > 5 else "")
        count = f"{len(broken)} line{'s' * (len(broken) > 1)}"
        return frame, (f"{self.path}: {count} not readable as JSON (line {numbers})",)

    def keep_until(self, step: int) -> None:
        """Drop rows after `step` and incomplete lines, atomically."""
        if not allowed(self.path):
            return
        rows, broken = self.read()
        remaining = [row for row in rows if row["step"] <= step]
        # A complete last line may still lack its newline.
        complete = not broken and (not rows or self._bytes().endswith(b"\n"))
        if len(remaining) < len(rows) or not complete:
            self.flush()
            atomic_write(self.path, "".join(map(_line, remaining)))
            self._content = None


def finite(value: Any) -> Any:
    """`value` with non-finite numbers replaced by None, for JSON."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, Iterable) and not isinstance(value, str):
        return [finite(item) for item in value]
    return value


def _line(row: Mapping[str, Any]) -> str:
    return sealed(finite(row)) + "\n"


def _to_disk(file: Any) -> None:
    file.flush()
    os.fsync(file.fileno())
