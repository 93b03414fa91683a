"""Files of a directory or a bucket, read in byte ranges and written whole, through TensorStore.

TensorStore runs requests concurrently, repeats those that fail for a while, and writes atomically.
"""

from __future__ import annotations

import collections
import contextlib
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jaxllm.errors import UserError

# How often a failed request to a bucket is repeated: for about five minutes in all.
RETRIES: dict[str, Any] = {"max_retries": 14, "initial_delay": "1s", "max_delay": "32s"}
# A request that gets no byte for a minute counts as failed; TensorStore would wait for ever.
for _name, _value in (("TIME_SECONDS", "60"), ("LIMIT_BYTES", "1")):
    os.environ.setdefault(f"TENSORSTORE_CURL_LOW_SPEED_{_name}", _value)

# TensorStore's counters, and what they are called in a run's metrics.
_COUNTERS = {
    "read": "requests/read", "list": "requests/read", "write": "requests/written",
    "retries": "requests/repeated", "bytes_read": "bytes/read", "bytes_written": "bytes/written",
}  # fmt: skip

_REASONS = {  # of TensorStore's statuses, where they are a user's mistake
    "NOT_FOUND": "there is no such bucket",
    "PERMISSION_DENIED": "this account may not read or write there",
}


def traffic() -> dict[str, int]:
    """Requests of this process to buckets so far, and their bytes; empty before the first.

    These are all that go through TensorStore: Orbax's checkpoints as well as our files.
    """
    counts: collections.Counter[str] = collections.Counter()
    if tensorstore := sys.modules.get("tensorstore"):
        for driver in ("gcs", "s3"):
            prefix = f"/tensorstore/kvstore/{driver}/"
            for metric in tensorstore.experimental_collect_matching_metrics(prefix):
                if name := _COUNTERS.get(metric["name"].removeprefix(prefix)):
                    counts[name] += sum(value["value"] for value in metric["values"])
    return dict(counts) if counts.total() else {}


def read_file(path: str | os.PathLike) -> bytes | None:
    """The content of a file; None if it does not exist."""
    directory, _, name = os.fspath(path).rpartition("/")
    return KeyValueStore(directory).read(name)[0]


def write_file(path: str | os.PathLike, content: bytes) -> None:
    """Write one file, see `KeyValueStore.write`."""
    directory, _, name = os.fspath(path).rpartition("/")
    KeyValueStore(directory).write({name: content})


class Damaged(UserError):
    """A file is missing, too short, or not as it was written."""


class ByteRange(NamedTuple):
    """Bytes start .. stop - 1 of a file."""

    name: str
    start: int
    stop: int


class KeyValueStore:
    """The files below `directory`: a local path, gs:// or s3://."""

    def __init__(self, directory: str | os.PathLike) -> None:
        import tensorstore as ts

        self.directory = os.fspath(directory).rstrip("/")
        with self._errors():
            self._store = ts.KvStore.open(_spec(self.directory)).result()

    def __reduce__(self) -> tuple[Any, ...]:
        return KeyValueStore, (self.directory,)

    def read(self, *names: str) -> list[bytes | None]:
        """The contents of files, read at once; None for those that do not exist."""
        with self._errors():
            futures = [self._store.read(name) for name in names]
            found = [future.result() for future in futures]
        return [one.value if one.state == "value" else None for one in found]

    def start_reads(self, ranges: Sequence[ByteRange]) -> Callable[[], list[bytes]]:
        """Start to read byte ranges, all at once; the result waits, with Damaged if any lacks."""
        with self._errors():
            futures = [self._store.read(r.name, byte_range=slice(r.start, r.stop)) for r in ranges]

        def wait() -> list[bytes]:
            contents = []
            for (name, start, stop), future in zip(ranges, futures, strict=True):
                with self._errors():
                    try:
                        content = future.result().value
                    except ValueError as error:
                        if "OUT_OF_RANGE" not in str(error):
                            raise
                        content = b""
                if len(content) != stop - start:
                    raise Damaged(f"{self.directory}/{name} is missing or too short")
                contents.append(content)
            return contents

        return wait

    def write(self, files: Mapping[str, bytes | None]) -> None:
        """Write files, all at once; each is there with its whole content or not at all."""
        with self._errors():
            for future in [self._store.write(name, data) for name, data in files.items()]:
                future.result()

    def read_version(self, name: str) -> tuple[bytes | None, bytes]:
        """The content of a file, None if it does not exist, and the version of it."""
        with self._errors():
            found = self._store.read(name).result()
        return found.value if found.state == "value" else None, found.stamp.generation

    def write_version(self, name: str, content: bytes, version: bytes) -> bool:
        """Write a file if it still has this version, and return whether it had.

        Some stores of others write it anyway.
        """
        with self._errors():
            return bool(self._store.write(name, content, if_equal=version).result().generation)

    def delete(self, names: Sequence[str]) -> None:
        """Delete files, all at once; those that do not exist are no matter."""
        self.write(dict.fromkeys(names))

    def move(self, names: Sequence[str], directory: str | os.PathLike) -> None:
        """Move files into another directory, under the same names."""
        contents = zip(names, self.read(*names), strict=True)
        KeyValueStore(directory).write({name: content for name, content in contents if content})
        self.delete(names)

    def names(self, prefix: str = "") -> list[str]:
        """The names of the files that begin with `prefix`, sorted."""
        import tensorstore as ts

        end = prefix[:-1] + chr(ord(prefix[-1]) + 1) if prefix else ""
        with self._errors():
            keys = self._store.list(ts.KvStore.KeyRange(prefix, end)).result()
        return sorted(name.decode() for name in keys)

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except (ValueError, OSError, RuntimeError) as error:  # the types of TensorStore's statuses
            reason = str(error).split(" [")[0]  # without the response and the place in its source
            status, _, text = reason.partition(": ")
            if status in _REASONS:
                reason = f"{_REASONS[status]} ({text})"
            raise UserError(f"{self.directory}: {reason}") from error


def _spec(directory: str) -> Any:
    scheme, _, rest = directory.rpartition("://")
    if not scheme:
        return {"driver": "file", "path": f"{Path(directory).absolute()}/"}
    bucket, _, path = rest.partition("/")
    path = f"{path}/" if path else ""
    if scheme not in ("gs", "s3"):
        raise UserError(f"{directory}: name a local directory, gs:// or s3://")
    endpoint = os.environ.get("AWS_ENDPOINT_URL") if scheme == "s3" else None
    other = {"endpoint": endpoint, "aws_region": "us-east-1"} if endpoint else {}
    context = {"gcs_request_retries" if scheme == "gs" else "s3_request_retries": RETRIES}
    driver = {"gs": "gcs", "s3": "s3"}[scheme]
    return {"driver": driver, "bucket": bucket, "path": path, "context": context, **other}
