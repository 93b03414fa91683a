"""No layout loses a token, repeats one, or lets one document see another."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxllm.data import store as storing
from jaxllm.data.packing import (
    ConcatSequences,
    PackedSequences,
    complete_packing,
    empty_sequences,
    pack_shard,
    plan_packing,
    start_reads,
    unplanned_shards,
)
from jaxllm.data.store import TokenStore
from jaxllm.data.tokenizer import Separators
from tests.data.conftest import write_store

T = 16
lengths = st.lists(st.integers(2, 60), min_size=1, max_size=40)


class StartsOf:
    """Says where documents begin for tokens that are their places in the corpus."""

    def __init__(self, sizes: list[int]) -> None:
        self.starts = np.cumsum([0, *sizes[:-1]])

    def begins(self, tokens: np.ndarray) -> np.ndarray:
        return np.isin(tokens[1:], self.starts)


def make_store(directory: Path, sizes: list[int]) -> TokenStore:
    """Documents over several shards whose tokens are all different: their places in the corpus."""
    ids = np.arange(sum(sizes), dtype="<u4")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(storing, "SHARD_TOKENS", 100)
        store = write_store(directory, ids, np.array(sizes), parts=min(2, len(sizes)))
    store.separators = StartsOf(sizes)  # type: ignore[assignment]
    return store


@given(
    st.lists(st.lists(st.integers(3, 9), max_size=8), min_size=1, max_size=20),
    st.sampled_from([(1, 2), (1, None), (None, 2)]),
    st.data(),
)
def test_separators_tell_where_documents_begin(documents, separators, data) -> None:
    around = Separators(*separators)
    begin, end = ([] if token is None else [token] for token in around)
    whole = [begin + document + end for document in documents]
    tokens = np.concatenate([np.array(one, np.int32) for one in whole])
    starts = np.zeros(len(tokens), bool)
    starts[np.cumsum([0, *map(len, whole[:-1])])] = True
    low = data.draw(st.integers(0, len(tokens) - 1))
    high = data.draw(st.integers(low + 1, len(tokens)))
    np.testing.assert_array_equal(around.begins(tokens[low:high]), starts[low + 1 : high])
    assert around.count(tokens) == len(documents)


def epoch(layout: ConcatSequences | PackedSequences) -> dict[str, np.ndarray]:
    filled, ranges = empty_sequences(layout.count, T), layout.ranges(range(layout.count))
    for index, chunks in enumerate(start_reads(layout._store, ranges)()):
        layout.fill({name: array[index] for name, array in filled.items()}, chunks)
    return filled


def open_layout(store: TokenStore, layout: str) -> ConcatSequences | PackedSequences:
    if layout == "pack":
        for item in unplanned_shards(store, T):
            pack_shard(T, item)
        complete_packing(store, T)
        assert not unplanned_shards(store, T)
        return PackedSequences(store, T)
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
