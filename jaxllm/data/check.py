"""Take back what is damaged or missing in prepared corpora, so that `prepare` writes it again."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from jaxllm.data.jobs import Runner
from jaxllm.data.store import Shard, TokenStore, digest_of, read_parts
from jaxllm.kvstore import KeyValueStore


class CheckItem(NamedTuple):
    """A shard to compare with its digest; `size` is its number of tokens."""

    directory: str
    shard: Shard
    size: int


def take_back(stores: Iterable[TokenStore], run: Runner) -> list[str]:
    """Remove the records of damaged parts, and of corpora with such parts.

    Returns:
      One line per such corpus.
    """
    stores = list(stores)
    items = [
        CheckItem(s.files.directory, shard, shard.tokens) for s in stores for shard in s.shards
    ]
    run(check, items, "check")
    found = []
    for store in stores:
        parts = list(dict.fromkeys(_part(shard) for shard in store.shards))
        damaged = read_parts(store.files, parts).count(None)
        if damaged:
            store.files.delete([f"{store.name}.json"])
            found.append(f"{store.files.directory}: {damaged} of {len(parts)} parts were damaged")
    return found


def check(item: CheckItem) -> None:
    """The job that removes the record of a part if one of its shards is not as it was written."""
    files, name = KeyValueStore(item.directory), item.shard.name
    tokens, starts = files.read(f"{name}.tokens", f"{name}.starts")
    if tokens is None or starts is None or digest_of(tokens, starts) != item.shard.digest:
        files.delete([f"{_part(item.shard)}.json"])


def _part(shard: Shard) -> str:
    return shard.name.rpartition("-")[0]
