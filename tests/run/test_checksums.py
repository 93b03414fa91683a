"""Checksums against a statement in Python's integers, and flips of single bits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxllm.run.checksums import check_arrays, check_json, of_arrays, with_checksums
from tests.training.helpers import mesh

KINDS = ("float32", "bfloat16", "float16", "int32", "uint32", "int8", "float8_e4m3fn", "bool")


def mixed(word: int) -> int:
    """MurmurHash3's fmix32."""
    word = (word ^ word >> 16) * 0x85EBCA6B % 2**32
    word = (word ^ word >> 13) * 0xC2B2AE35 % 2**32
    return word ^ word >> 16


def stated(array: np.ndarray) -> int:
    """The sum of the mixture of word i with that of i, modulo 2^32."""
    words = array.view(f"u{array.dtype.itemsize}").reshape(-1)
    return sum(mixed(int(word) ^ mixed(i)) for i, word in enumerate(words)) % 2**32


def test_the_statement_is_murmurs() -> None:
    """Its finalizer of 1, as published implementations have it."""
    assert mixed(1) == 0x514E28B7


def test_flips_of_the_highest_bits_do_not_cancel() -> None:
    """Of any two signs of 32 bits, and of all of them."""
    array = np.random.default_rng(0).normal(size=16).astype(np.float32)
    good = of_arrays({"a": array})
    for i in range(16):
        for j in range(i):
            flipped = array.copy()
            flipped[[i, j]] *= -1
            assert of_arrays({"a": flipped}) != good, (i, j)
    assert of_arrays({"a": -array}) != good
    zeros = np.zeros(16, np.float32)
    assert of_arrays({"a": -zeros}) != of_arrays({"a": zeros})


def test_sums_of_an_older_version_are_not_compared() -> None:
    check_arrays({"a": np.ones(3)}, {"checksums": {"a": 5}})
    check_arrays({"a": np.ones(3)}, {})


@pytest.mark.parametrize("kind", KINDS)
def test_the_sum_is_the_stated_one_and_every_flip_changes_it(kind: str) -> None:
    values = np.random.default_rng(0).normal(size=(3, 2, 5)) * 3
    array = np.asarray(jnp.asarray(values).astype(kind))
    assert of_arrays({"a": array}) == {"a": stated(array)}
    if kind == "bool":
        return
    for place in range(0, array.nbytes, 3):
        for bit in range(8):
            data = bytearray(array.tobytes())
            data[place] ^= 1 << bit
            flipped = np.frombuffer(bytes(data), array.dtype).reshape(array.shape)
            assert of_arrays({"a": flipped})["a"] != stated(array)


def test_the_sum_does_not_depend_on_the_mesh() -> None:
    array = np.arange(64, dtype=np.float32).reshape(8, 8)
    where = jax.NamedSharding(mesh(8, data=2, fsdp=4), jax.P("data", "fsdp"))
    tree = {"whole": array, "scalar": np.int32(7), "empty": np.zeros((0, 3), np.float32)}
    sums = {name: stated(np.asarray(value)) for name, value in tree.items()}
    assert of_arrays(tree) == sums
    assert of_arrays(tree | {"whole": jax.device_put(array, where)}) == sums
    assert of_arrays({"whole": array.T.copy()})["whole"] != sums["whole"]


def test_the_json_has_a_checksum_of_its_own() -> None:
    known = with_checksums({"sums": {"code": 5.1}}, of_arrays({"a": np.ones(3)}))
    assert check_json(known)["sums"] == {"code": 5.1}
    assert check_json({"of an older version": 1}) == {"of an older version": 1}
    for damaged in ({}, None, known | {"sums": {"code": 5.2}}, known | {"mixed_checksums": {}}):
        with pytest.raises(ValueError, match="its JSON is damaged"):
            check_json(damaged)
    check_arrays({"a": np.ones(3)}, known)
    with pytest.raises(ValueError, match="the checksum of a differs"):
        check_arrays({"a": np.zeros(3)}, known)
