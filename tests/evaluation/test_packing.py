"""Packing loses nothing, mixes nothing, and wastes little."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxllm.evaluation.packing import bin_pack, pack, sequence_lengths, target_counts
from jaxllm.evaluation.spans import Span


def make(lengths, seed=0):
    rng = np.random.RandomState(seed)
    return [
        Span(rng.randint(3, 1000, n + 1).astype(np.int32), scored=rng.randint(1, n + 1))
        for n in lengths
    ]


@st.composite
def questions(draw):
    """Spans over an alphabet of two tokens, so that they begin alike in every way there is."""
    lengths = draw(st.lists(st.integers(1, 30), max_size=40))
    return [
        Span(
            np.asarray(draw(st.lists(st.integers(3, 4), min_size=n + 1, max_size=n + 1)), np.int32),
            draw(st.integers(1, n)),
        )
        for n in lengths
    ]


def seen_from(batch, row, place):
    """The tokens that the one at `place` attends to, in order: what TreeBatch says."""
    before = np.arange(place + 1)
    before = before[batch.visible_until[row, : place + 1] > place]
    return before, batch.inputs[row, before]


@given(questions(), st.sampled_from([(32,), (8, 32)]))
def test_every_scored_target_is_predicted_from_exactly_what_comes_before_it(spans, lengths):
    batches = pack(spans, lengths=lengths, tokens_per_batch=64)
    found = []
    for item in batches:
        b = item.batch
        width = b.target_index.shape[1]
        assert b.inputs.shape in {(64 // n, n) for n in lengths}
        assert width in target_counts(b.inputs.shape[1])
        slots, targets = b.target_index.reshape(-1), b.targets.reshape(-1)
        for number, start, end in zip(item.spans, item.starts, item.ends, strict=True):
            span = spans[number]
            assert end - start == span.scored and start // width == (end - 1) // width
            row = start // width
            for k, slot in enumerate(range(start, end)):
                read = span.length - span.scored + k + 1
                places, tokens = seen_from(b, row, slots[slot])
                np.testing.assert_array_equal(tokens, span.tokens[:read])
                np.testing.assert_array_equal(b.positions[row, places], np.arange(read))
                assert targets[slot] == span.tokens[read]
            found.append(number)
        assert item.tokens <= b.inputs.size
    assert sorted(found) == list(range(len(spans)))
    assert sum(item.tokens for item in batches) <= sum(span.length for span in spans)


def test_what_options_and_questions_share_is_read_once():
    rng = np.random.RandomState(0)
    shots = rng.randint(3, 1000, 400)
    spans = []
    for _ in range(10):
        question = rng.randint(3, 1000, 50)
        for letter in (3, 4, 5, 6):
            spans.append(Span(np.append(np.append(shots, question), letter).astype(np.int32), 1))
    (batch,) = pack(spans, lengths=(1024,), tokens_per_batch=1024)
    # every span's last token is its target: the shots, the questions, and the place before the
    # letter once for each option
    assert batch.tokens == 400 + 10 * (50 - 1) + 40


def test_padding_is_small_for_many_short_spans():
    lengths = np.random.RandomState(0).randint(10, 60, 1000)
    batches = pack(make(lengths), lengths=(128, 512), tokens_per_batch=2048)
    positions = sum(batch.batch.inputs.size for batch in batches)
    assert sum(batch.tokens for batch in batches) > 0.95 * positions
    # One example per row, padded to the longest: what this replaces.
    assert positions < 0.65 * len(lengths) * lengths.max()


@given(st.lists(st.integers(1, 100), min_size=1, max_size=80))
def test_rows_hold_no_more_than_they_can_and_two_are_never_half_empty(lengths):
    rows = bin_pack(lengths, (100,))
    filled = [sum(lengths[i] for i in members) for _, members in rows]
    assert max(filled) <= 100
    # Any-fit packings leave at most one row half empty, so they use < 2 x the optimum.
    assert sum(f <= 50 for f in filled) <= 1


@pytest.mark.parametrize(
    ("longest", "shortest", "expected"),
    [(2048, 128, (128, 512, 2048)), (256, 128, (256,)), (512, 128, (128, 512)), (64, 128, (64,))],
)
def test_sequence_lengths_are_few(longest, shortest, expected):
    assert sequence_lengths(longest, shortest) == expected
