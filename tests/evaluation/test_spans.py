"""Splitting text into spans, against what lm-evaluation-harness does and publishes in its tests."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxllm.errors import UserError
from jaxllm.evaluation.spans import continuations, rolling_windows, start_token
from tests.evaluation.helpers import Bytes


class Numbers(Bytes):
    """Text is space-separated token ids."""

    bos_id = 100

    def encode(self, s):
        return [int(word) for word in s.split()]


class Words(Bytes):
    """Greedy longest match, with tokens that begin with a space, as SentencePiece and BPE make."""

    pieces = (" the", " cat", "cat", " ", "t", "h", "e", "c", "a", "ab", "b")

    def encode(self, s):
        ids = []
        while s:
            piece = next(p for p in sorted(self.pieces, key=len, reverse=True) if s.startswith(p))
            ids.append(3 + self.pieces.index(piece))
            s = s[len(piece) :]
        return ids


def pair(span):
    """What the harness calls a window: (what is read, what is predicted)."""
    return span.tokens[:-1].tolist(), span.tokens[len(span.tokens) - span.scored :].tolist()


def test_windows_are_the_harness_rolling_windows():
    # tests/test_utils.py::test_get_rolling_token_windows_v1 of lm-evaluation-harness
    text = " ".join(str(i) for i in range(34))
    assert [pair(span) for span in rolling_windows(Numbers(), text, 10)] == [
        ([100, 0, 1, 2, 3, 4, 5, 6, 7, 8], [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]),
        ([9, 10, 11, 12, 13, 14, 15, 16, 17, 18], [10, 11, 12, 13, 14, 15, 16, 17, 18, 19]),
        ([19, 20, 21, 22, 23, 24, 25, 26, 27, 28], [20, 21, 22, 23, 24, 25, 26, 27, 28, 29]),
        ([23, 24, 25, 26, 27, 28, 29, 30, 31, 32], [30, 31, 32, 33]),
    ]


@given(st.text(max_size=200), st.integers(1, 40))
def test_every_token_of_a_document_is_scored_once_in_order(text, max_length):
    spans = list(rolling_windows(Bytes(), text, max_length))
    scored = [t for span in spans for t in pair(span)[1]]
    assert scored == Bytes().encode(text)
    assert all(span.length <= max_length for span in spans)


def test_continuation_takes_the_spaces_at_the_end_of_the_context():
    # TemplateLM._encode_pair: the tokens after those of the context without its last spaces.
    words = Words()
    (span,) = continuations(words, "the ", ("cat",), 20)
    assert span.tokens.tolist() == [1, *words.encode("the cat")]
    assert span.scored == len(words.encode(" cat")) == 1
    assert not span.truncated


def test_continuation_that_merges_into_the_context_still_has_a_token():
    words = Words()
    (span,) = continuations(words, "a", ("b",), 20)
    assert (span.tokens.tolist(), span.scored) == ([1, *words.encode("ab")], 1)


@given(st.text(max_size=30), st.text(min_size=1, max_size=10), st.integers(40, 80))
def test_bytes_split_where_the_text_does(context, text, max_length):
    (span,) = continuations(Bytes(), context, (text,), max_length)
    expected = len((context[len(context.rstrip()) :] + text).encode())
    assert span.scored == expected
    assert pair(span)[1] == Bytes().encode(context + text)[-expected:]
    assert span.truncated == (len((context + text).encode()) > max_length)
    assert span.length == min(max_length, len((context + text).encode()))


def test_empty_context_reads_the_document_start():
    (span,) = continuations(Bytes(), "", ("ab",), 8)
    assert pair(span) == ([1, 100], [100, 101])


def test_option_longer_than_the_context_length_is_cut():
    (span,) = continuations(Bytes(), "x", ("123456789",), 8)
    assert pair(span)[1] == Bytes().encode("23456789")
    assert (span.scored, span.length, span.truncated) == (8, 8, True)


def test_vocabulary_without_a_document_start_uses_its_end_or_is_refused():
    vocabulary = Bytes()
    vocabulary.bos_id = -1  # what SentencePiece says when there is none
    assert start_token(vocabulary) == vocabulary.eos_id
    vocabulary.eos_id = None
    with pytest.raises(UserError, match="without BOS and EOS"):
        start_token(vocabulary)


def test_tokens_are_int32():
    assert all(s.tokens.dtype == np.int32 for s in rolling_windows(Bytes(), "abc", 2))
