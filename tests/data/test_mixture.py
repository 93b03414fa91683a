"""The mixture and the permutation against what they stand for, written out in full."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxllm.data.mixture import MODULUS, STEP, Mixture, floor_sum
from jaxllm.data.permutation import derive_key, permute

weights = st.lists(st.floats(0.001, 1000), min_size=1, max_size=8)
keys = st.integers(0, MODULUS - 1)


@given(st.integers(0, 200), st.integers(1, 99), st.integers(0, 300), st.integers(-900, 900))
def test_floor_sum_is_the_sum(count: int, modulus: int, slope: int, start: int) -> None:
    expected = sum((slope * i + start) // modulus for i in range(count))
    assert floor_sum(count, modulus, slope, start) == expected


@given(weights, keys)
def test_rows_follow_the_points_and_number_each_domain_from_zero(shares, key: int) -> None:
    domains, indices = Mixture(shares, key).sequences(0, 500)
    edges = np.cumsum(np.array(shares) / np.sum(shares))
    seen = dict.fromkeys(range(len(shares)), 0)
    for i, (domain, index) in enumerate(zip(domains.tolist(), indices.tolist(), strict=True)):
        point = (i * STEP + key) % MODULUS / MODULUS
        assert (edges[domain - 1] if domain else 0) <= point + 1e-9
        assert domain == len(shares) - 1 or point - 1e-9 <= edges[domain]
        assert index == seen[domain]
        seen[domain] += 1


@given(weights, keys, st.integers(0, 10**12), st.integers(1, 100))
def test_any_place_can_be_read_without_the_places_before(shares, key, start, skip) -> None:
    mixture = Mixture(shares, key)
    whole = mixture.sequences(start, skip + 50)
    part = mixture.sequences(start + skip, 50)
    for a, b in zip(whole, part, strict=True):
        np.testing.assert_array_equal(a[skip:], b)


@given(weights, keys, st.integers(0, 10**9), st.integers(1, 4000))
def test_every_stretch_has_its_share_of_each_domain(shares, key, start, count) -> None:
    mixture = Mixture(shares, key)
    domains, _ = mixture.sequences(start, count)
    got = np.bincount(domains, minlength=len(shares))
    # Discrepancy of the golden ratio's Weyl sequence: below 3 + log2(n) rows (measured: below 4).
    assert np.all(np.abs(got - count * mixture.weights) < 3 + np.log2(count))
    assert sum(mixture.count(d, start + count) for d in range(len(shares))) == start + count


def test_weights_must_be_shares() -> None:
    for wrong in ([], [1, 0], [1, -1], [float("nan")]):
        with pytest.raises(ValueError, match="positive"):
            Mixture(wrong)


@given(st.integers(1, 5000), keys)
def test_permutation_is_a_bijection(size: int, key: int) -> None:
    np.testing.assert_array_equal(np.sort(permute(np.arange(size), size, key)), np.arange(size))


@given(st.integers(2, 10**15), keys, st.data())
def test_permutation_of_one_index_is_that_of_many(size: int, key: int, data) -> None:
    indices = np.array(data.draw(st.lists(st.integers(0, size - 1), min_size=1, max_size=20)))
    images = permute(indices, size, key)
    assert np.all((images >= 0) & (images < size))
    assert [int(permute(int(i), size, key)) for i in indices] == images.tolist()


def test_permutations_look_random() -> None:
    """Where index 0 goes is uniform over keys, and neighbours do not stay neighbours."""
    size, draws = 10, 4000
    places = [int(permute(0, size, derive_key("seed", draw))) for draw in range(draws)]
    counts = np.bincount(places, minlength=size)
    chi_square = np.sum((counts - draws / size) ** 2) / (draws / size)
    assert chi_square < 27.9  # 99.9 % point with 9 degrees of freedom
    order = permute(np.arange(10_000), 10_000, 5)
    assert abs(np.corrcoef(order[:-1], order[1:])[0, 1]) < 0.04  # 4 / sqrt(n)
    assert np.mean(order == np.arange(10_000)) < 0.001


def test_permutation_refuses_what_is_outside() -> None:
    with pytest.raises(IndexError):
        permute(7, 7, 0)
