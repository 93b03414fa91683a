"""Files of blocks that each carry a CRC-32, so that no flipped bit of a byte range is read as data.

A block of 4,096 bytes is 4,092 of content, zero after its end, and their CRC-32, little-endian. A
range is read with the blocks that it touches, and checked.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from jaxllm.kvstore import ByteRange, Damaged, KeyValueStore

BLOCK = 4096
CONTENT = BLOCK - 4


def write(files: KeyValueStore, contents: Mapping[str, bytes]) -> None:
    """Write files in blocks, all at once; each is there with its whole content or not at all."""
    files.write({name: _in_blocks(content) for name, content in contents.items()})


def start_reads(files: KeyValueStore, ranges: Sequence[ByteRange]) -> Callable[[], list[bytes]]:
    """Start to read ranges of the contents of files, all at once.

    The result waits for them; `Damaged` if a file is missing, too short or not as written.
    """
    blocks = [(start // CONTENT, -(-stop // CONTENT)) for _, start, stop in ranges]
    wait = files.start_reads(
        [ByteRange(r.name, BLOCK * a, BLOCK * b) for r, (a, b) in zip(ranges, blocks, strict=True)]
    )

    def contents() -> list[bytes]:
        found = []
        try:
            for (name, start, stop), (first, _), stored in zip(ranges, blocks, wait(), strict=True):
                content = _content(stored)
                if content is None:
                    raise Damaged(f"{files.directory}/{name} is damaged")
                found.append(content[start - first * CONTENT : stop - first * CONTENT])
        except Damaged as error:
            remedy = "`python -m jaxllm.prepare --check`, with the run's gin flags, writes it again"
            raise Damaged(f"{error}: {remedy}") from error
        return found

    return contents


def _in_blocks(content: bytes) -> bytes:
    count = -(-len(content) // CONTENT)
    padded = content.ljust(count * CONTENT, b"\0")
    blocks = np.empty((count, BLOCK), np.uint8)
    blocks[:, :CONTENT] = np.frombuffer(padded, np.uint8).reshape(-1, CONTENT)
    blocks[:, CONTENT:] = _sums(padded, CONTENT)[:, None].view(np.uint8)
    return blocks.tobytes()


def _content(stored: bytes) -> bytes | None:
    """The content of blocks; None if one is damaged."""
    blocks = np.frombuffer(stored, np.uint8).reshape(-1, BLOCK)
    sums = np.ascontiguousarray(blocks[:, CONTENT:]).view("<u4").ravel()
    return blocks[:, :CONTENT].tobytes() if (sums == _sums(stored, BLOCK)).all() else None


def _sums(data: bytes, stride: int) -> np.ndarray:
    """The CRC-32 of the content at every `stride` bytes, as uint32 [blocks]."""
    view = memoryview(data)
    sums = [zlib.crc32(view[at : at + CONTENT]) for at in range(0, len(data), stride)]
    return np.array(sums, "<u4")
