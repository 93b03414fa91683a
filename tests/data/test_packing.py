"""No layout loses a token, repeats one, or lets one document see another."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxllm.data.packing import ConcatSequences, PackedSequences, empty_sequences, plan_packing
from jaxllm.data.store import TokenStore, TokenWriter

T = 16
lengths = st.lists(st.integers(2, 60), min_size=1, max_size=40)


def make_store(directory: Path, sizes: list[int]) -> TokenStore:
    """Documents whose tokens are all different: token = place in the corpus."""
    writer = TokenWriter(directory, np.dtype("<u4"))
    writer.add(np.arange(sum(sizes), dtype=np.uint32), np.array(sizes))
    writer.finish(text_bytes=0, empty=0, bad=0)
    return TokenStore(directory)


def epoch(layout: ConcatSequences | PackedSequences) -> dict[str, np.ndarray]:
    filled = empty_sequences(layout.count, T)
    for index in range(layout.count):
        layout.fill({name: array[index] for name, array in filled.items()}, index)
    return filled


def open_layout(store: TokenStore, layout: str) -> ConcatSequences | PackedSequences:
    if layout == "pack":
        return PackedSequences(store, plan_packing(store.starts, T, window=7))
    return ConcatSequences(store, T, masked=layout == "concat_masked")


@pytest.mark.parametrize("layout", ["concat", "concat_masked", "pack"])
@settings(deadline=None)
@given(sizes=lengths)
def test_every_token_is_a_target_once_per_epoch(tmp_path_factory, layout: str, sizes) -> None:
    store = make_store(tmp_path_factory.mktemp("store"), sizes)
    sequences = epoch(open_layout(store, layout))
    counted = sequences["weights"] > 0
    first = np.cumsum([0, *sizes[:-1]])
    expected = np.setdiff1d(np.arange(sum(sizes)), first)  # all but what opens a document
    np.testing.assert_array_equal(np.sort(sequences["targets"][counted]), expected)
    # What is read is the token before, and padding is read by nobody.
    np.testing.assert_array_equal(sequences["inputs"][counted], sequences["targets"][counted] - 1)
    assert np.all(sequences["segment_ids"][counted] > 0)
    padding = sequences["segment_ids"] == 0
    assert not sequences["weights"][padding].any() and not sequences["inputs"][padding].any()


@pytest.mark.parametrize("layout", ["concat_masked", "pack"])
@settings(deadline=None)
@given(sizes=lengths)
def test_segments_are_documents_and_positions_count_in_them(tmp_path_factory, layout, sizes):
    store = make_store(tmp_path_factory.mktemp("store"), sizes)
    document = np.repeat(np.arange(len(sizes)), sizes)
    sequences = epoch(open_layout(store, layout))
    for inputs, segments, positions in zip(
        sequences["inputs"], sequences["segment_ids"], sequences["positions"], strict=True
    ):
        for segment in range(1, segments.max() + 1):
            where = np.flatnonzero(segments == segment)
            assert len(where), "segments are numbered without gaps"
            np.testing.assert_array_equal(np.diff(where), 1)
            assert len(set(document[inputs[where]])) == 1
            np.testing.assert_array_equal(positions[where], np.arange(len(where)))


@settings(deadline=None)
@given(sizes=lengths)
def test_concat_attends_across_documents(tmp_path_factory, sizes) -> None:
    store = make_store(tmp_path_factory.mktemp("store"), sizes)
    sequences = epoch(open_layout(store, "concat"))
    whole = sequences["segment_ids"][:-1]  # the last sequence may be padded
    assert np.all(whole == 1)
    np.testing.assert_array_equal(
        sequences["positions"][:-1], np.tile(np.arange(T), (len(whole), 1))
    )


@given(st.lists(st.integers(2, 100), min_size=1, max_size=300), st.integers(8, 64))
def test_packing_fits_and_wastes_little(sizes, length: int) -> None:
    plan = plan_packing(np.cumsum([0, *sizes]), length)
    filled = np.add.reduceat(plan.lengths, plan.edges[:-1])
    assert filled.max() <= length
    assert filled.sum() == sum(sizes) - len(sizes)
    # No two sequences could have been one, so all but one are more than half full.
    room = np.sort(filled)
    assert len(room) < 2 or room[0] + room[1] > length
