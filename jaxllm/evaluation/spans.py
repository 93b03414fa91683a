"""Tokenize text into the spans whose log-likelihoods a task needs.

Contexts and continuations are split as in lm-evaluation-harness (`TemplateLM._encode_pair`,
`utils.get_rolling_token_windows`), so that scores are comparable with published ones. Every text
starts with the token that starts a document in training.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np

from jaxllm.errors import UserError


class Tokenizer(Protocol):
    """The part of the `seqio.Vocabulary` interface in use."""

    @property
    def bos_id(self) -> int | None:
        """The token before a document."""

    @property
    def eos_id(self) -> int | None:
        """The token after a document."""

    def encode(self, s: str) -> Sequence[int]:
        """Token ids of `s`, without BOS and EOS."""

    def decode(self, ids: Sequence[int]) -> str:
        """The text of `ids`."""


@dataclasses.dataclass(frozen=True)
class Span:
    """A token span that is scored independently of others.

    Attributes:
      tokens: int32 [L + 1]; inputs are tokens[:-1], targets tokens[1:].
      scored: number of trailing targets that are scored, 1 <= scored <= L.
      truncated: whether the span was truncated on the left to fit the context length.
    """

    tokens: np.ndarray
    scored: int
    truncated: bool = False

    @property
    def length(self) -> int:
        """Number of positions L."""
        return len(self.tokens) - 1


def start_token(vocabulary: Tokenizer) -> int:
    """The token before every text: BOS, or EOS in vocabularies without BOS.

    Raises:
      UserError: the vocabulary has neither.
    """
    for token in (vocabulary.bos_id, vocabulary.eos_id):
        if token is not None and token >= 0:
            return token
    raise UserError("a vocabulary without BOS and EOS cannot score the first token of a text")


def continuations(
    vocabulary: Tokenizer, context: str, texts: Sequence[str], max_length: int
) -> list[Span]:
    """The spans that score each of `texts` after `context`.

    Both are encoded together and split at the token length of the context alone; trailing spaces
    of the context move to the continuation, because tokens begin with a space and do not end in
    one. If that leaves the continuation without a token (its characters merged into the context's
    last token), that last token is scored. Spans are truncated on the left to `max_length`, even
    within a continuation that is longer.
    """
    stripped = context.rstrip()
    before = len(vocabulary.encode(stripped)) if stripped else 0
    start = start_token(vocabulary)
    spans = []
    for text in texts:
        whole = vocabulary.encode(context + text)
        scored = min(len(whole) - min(before, len(whole) - 1), max_length)
        tokens = np.asarray([start, *whole], np.int32)
        cut = len(tokens) > max_length + 1
        spans.append(Span(tokens[-(max_length + 1) :], scored, truncated=cut))
    return spans


def rolling_windows(vocabulary: Tokenizer, text: str, max_length: int) -> Iterator[Span]:
    """Yield the spans that together score every token of a document exactly once.

    The first window starts with BOS and scores the first `max_length` tokens; each further one
    starts with the last token before it and scores the next `max_length`; the last one, with fewer
    left, has as much context as fits (the harness' rolling windows, context_len=1).
    """
    tokens = np.asarray([start_token(vocabulary), *vocabulary.encode(text)], np.int32)
    scored = 0
    while scored < len(tokens) - 1:
        count = min(max_length, len(tokens) - 1 - scored)
        end = scored + count + 1
        yield Span(tokens[max(0, end - max_length - 1) : end], count)
        scored += count
