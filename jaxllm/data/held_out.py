"""A validation split for a corpus without one: documents of its first files, by their hash.

In the first parts, which make LEADING_BYTES, a document is held out if the hash of its text falls
into the first HELD_OUT of all hashes, until LIMIT_CHARS of a part are; so are copies of it. All
others are for training. Thus the split is read from the first parts only, and every other part is
prepared as if nothing were held out.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Generator, Iterable

HELD_OUT = 0.01
LEADING_BYTES = 100_000_000
LIMIT_CHARS = 1_000_000
RULE = (
    f"no validation split: {HELD_OUT:.0%} of the documents in the first"
    f" {LEADING_BYTES / 1e6:.0f} MB are held out"
)


def leading(sizes: Iterable[int]) -> int:
    """The number of parts, of these sizes in bytes, of which documents are held out."""
    before = itertools.accumulate(sizes, initial=0)
    return sum(1 for total in list(before)[:-1] if total < LEADING_BYTES)


def select(
    documents: Generator[dict[str, str], None, int], chosen: bool
) -> Generator[dict[str, str], None, int]:
    """The documents of a part that are held out; or if not `chosen`, the others."""
    found: set[bytes] = set()
    chars = 0
    while not (chosen and chars >= LIMIT_CHARS):
        try:
            document = next(documents)
        except StopIteration as end:
            return end.value
        text = document["text"]
        digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
        if chars < LIMIT_CHARS and int.from_bytes(digest) < HELD_OUT * 2**64:
            found.add(digest)
            chars += len(text)
        if (digest in found) == chosen:
            yield document
    return 0
