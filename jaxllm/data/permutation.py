"""A pseudo-random permutation of range(n), evaluated one index at a time.

Shuffling a trillion tokens must not need an array of their indices, nor resuming a replay of the
shuffle. A Feistel network on the smallest even number of bits that holds n is a bijection of [0,
2^bits); indices that land outside [0, n) pass through it again ("cycle walking") until they fall
inside, which keeps it a bijection of [0, n). Black and Rogaway, "Ciphers with Arbitrary Finite
Domains", CT-RSA 2002, sections 3 and 5.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import numpy as np

ROUNDS = 6


def derive_key(*parts: object) -> int:
    """A 64-bit key from printable parts: the same on every machine and Python version."""
    text = "\0".join(str(part) for part in parts).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little")


def permute(index: np.ndarray | int, size: int, key: int) -> np.ndarray:
    """The images of `index` under the permutation of `key`, int64 in its shape.

    IndexError if one of these integers is outside [0, size).
    """
    return _walk(index, size, lambda values, half: _feistel(values, half, _round_keys(key)))


def invert(image: np.ndarray | int, size: int, key: int) -> np.ndarray:
    """The inverse of `permute`: a Feistel network with its halves swapped and its keys reversed."""

    def inverse(values: np.ndarray, half: np.uint64) -> np.ndarray:
        return _swap(_feistel(_swap(values, half), half, _round_keys(key)[::-1]), half)

    return _walk(image, size, inverse)


def _walk(
    index: np.ndarray | int, size: int, cipher: Callable[[np.ndarray, np.uint64], np.ndarray]
) -> np.ndarray:
    """A bijection of [0, size) from one of the numbers of twice `half` bits, by cycle walking."""
    values = np.atleast_1d(np.asarray(index, dtype=np.uint64))
    if values.size and (size < 1 or int(values.max()) >= size):
        raise IndexError(f"permutation of {size} asked for index {int(values.max())}")
    if size > 1:
        half = np.uint64(max(1, ((size - 1).bit_length() + 1) // 2))
        values = cipher(values, half)
        outside = np.flatnonzero(values >= np.uint64(size))
        while outside.size:  # fewer than 4 rounds of this on average: 2^bits < 4 * size
            values[outside] = cipher(values[outside], half)
            outside = outside[values[outside] >= np.uint64(size)]
    return values.astype(np.int64).reshape(np.shape(index))


def _swap(values: np.ndarray, half: np.uint64) -> np.ndarray:
    return (values & ((np.uint64(1) << half) - np.uint64(1))) << half | values >> half


def _round_keys(key: int) -> np.ndarray:
    counters = np.arange(1, ROUNDS + 1, dtype=np.uint64)
    return _mix(np.uint64(key & 0xFFFFFFFFFFFFFFFF) + counters * np.uint64(0x9E3779B97F4A7C15))


def _feistel(values: np.ndarray, half: np.uint64, keys: np.ndarray) -> np.ndarray:
    mask = (np.uint64(1) << half) - np.uint64(1)
    left, right = values >> half, values & mask
    for key in keys:
        left, right = right, left ^ (_mix(right ^ key) & mask)
    return (left << half) | right


def _mix(values: np.ndarray) -> np.ndarray:
    """SplitMix64's finalizer: every input bit changes every output bit (wraps around at 2^64)."""
    with np.errstate(over="ignore"):
        values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
