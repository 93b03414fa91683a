"""Checksums of a checkpoint: what is read back is what was saved, in every bit.

Of an array it is the sum of its words modulo 2^32, each mixed with its index by MurmurHash3's
finalizer (Appleby 2011), a bijection: one changed element always changes it, and several do but
once in 2^32, whatever bits they share. It is computed where the array lies, on any mesh alike.
TensorStore has none for what Orbax saves.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

_ARRAYS, _JSON = "mixed_checksums", "crc32"  # "checksums" were other sums


def array_name(key: tuple[Any, ...]) -> str:
    """The name of a leaf by its path, such as 'layers/attention/query'."""
    names = (getattr(k, "key", getattr(k, "idx", getattr(k, "name", k))) for k in key)
    return "/".join(map(str, names))


def with_checksums(metadata: Mapping[str, Any], sums: Mapping[str, int]) -> dict[str, Any]:
    """The JSON of a checkpoint with the checksums of its arrays, and its own."""
    known = {**metadata, _ARRAYS: sums}
    return known | {_JSON: _crc(known)}


def check_json(metadata: Mapping[str, Any] | None) -> dict[str, Any]:
    """The JSON of a checkpoint; ValueError if it is damaged."""
    known = dict(metadata or {})
    if not known or known.pop(_JSON, None) not in (None, _crc(known)):
        raise ValueError("its JSON is damaged")
    return known


def check_arrays(tree: Any, metadata: Mapping[str, Any]) -> None:
    """Raise ValueError if arrays differ from the JSON's checksums; all processes must call it."""
    saved = metadata.get(_ARRAYS, {})
    for name, value in of_arrays(tree).items():
        if saved.get(name, value) != value:
            raise ValueError(f"the checksum of {name} differs")


def of_arrays(tree: Any) -> dict[str, int]:
    """The checksum of each array of a tree, by name; all processes must call it."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    # One at a time: programs with collectives that run at once can deadlock on CPU devices.
    return {array_name(key): int(checksum(leaf)) for key, leaf in leaves}


def _crc(known: Mapping[str, Any]) -> int:
    return zlib.crc32(json.dumps(known, sort_keys=True).encode())


def _mixed(word: jax.Array) -> jax.Array:
    word = (word ^ (word >> 16)) * jnp.uint32(0x85EBCA6B)
    word = (word ^ (word >> 13)) * jnp.uint32(0xC2B2AE35)
    return word ^ (word >> 16)


@jax.jit
def checksum(array: Any, first: int = 0) -> jax.Array:
    """The checksum of an array, uint32; or that of its rows from `first` on, which add up to it."""
    bits = 8 * array.dtype.itemsize
    words = array.astype(jnp.uint8) if array.dtype == bool else array.view(f"uint{bits}")
    index = jnp.zeros(array.shape, jnp.uint32)
    for axis, size in enumerate(array.shape):
        place = jax.lax.broadcasted_iota(jnp.uint32, array.shape, axis)
        index = index * size + place + (0 if axis else jnp.uint32(first))
    return jnp.sum(_mixed(words.astype(jnp.uint32) ^ _mixed(index)), dtype=jnp.uint32)
