"""The records of ArrayRecord files, as Grain and TFDS write them, local or remote."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator

from jaxllm.errors import UserError

READ_AT_ONCE = 1024


def read(file: str, part: int, of: int) -> Iterator[tuple[int, bytes]]:
    """The places and contents of the records from fraction `part` / `of` to (`part` + 1) / `of`.

    UserError if the file is damaged.
    """
    from array_record.python.array_record_module import ArrayRecordReader

    with _local(file) as path:
        reader = ArrayRecordReader(path)
        if not reader.ok():
            raise UserError(f"{file} is damaged, or no ArrayRecord")
        count = reader.num_records()
        stop = count * (part + 1) // of
        for first in range(count * part // of, stop, READ_AT_ONCE):
            try:
                records = reader.read(first, min(first + READ_AT_ONCE, stop))
            except RuntimeError as error:
                raise UserError(f"{file} is damaged ({error})") from error
            yield from enumerate(records, first)


@contextlib.contextmanager
def _local(file: str) -> Iterator[str]:
    """The path of a file, or of a copy where it is not local: the reader needs a path."""
    import fsspec

    system, name = fsspec.core.url_to_fs(file)
    if isinstance(system, fsspec.get_filesystem_class("file")):
        yield name
        return
    with tempfile.NamedTemporaryFile() as copy:
        system.get_file(name, copy.name)
        yield copy.name
