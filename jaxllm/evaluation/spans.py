"""Tokenize examples into the spans whose log-likelihoods a task needs, or into prompts.

Contexts and continuations are split as in lm-evaluation-harness (`TemplateLM._encode_pair`,
`utils.get_rolling_token_windows`), so that scores are comparable with published ones. Every text
starts with the token that starts a document in training.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np

from jaxllm.errors import UserError
from jaxllm.evaluation.noise import LENGTH, corrupt
from jaxllm.evaluation.tasks import Document, Prompt, Question


class Tokenizer(Protocol):
    """The part of the `seqio.Vocabulary` interface in use."""

    @property
    def vocab_size(self) -> int:
        """Number of token ids."""

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
    """A token span that is scored independently of others, or a prompt."""

    tokens: np.ndarray  # int32 [L + 1]; inputs are tokens[:-1], targets tokens[1:]
    scored: int  # number of trailing targets that are scored, 1 <= scored <= L; 0 of a prompt
    truncated: bool = False  # whether the span was truncated on the left to fit the context length
    part: int = 0  # which of its example's sums it counts towards, where there are several

    @property
    def length(self) -> int:
        """Number of positions L."""
        return len(self.tokens) - 1


def start_token(vocabulary: Tokenizer) -> int:
    """The token before every text: BOS, or else EOS; UserError if the vocabulary has neither."""
    for token in (vocabulary.bos_id, vocabulary.eos_id):
        if token is not None and token >= 0:
            return token
    raise UserError("a vocabulary without BOS and EOS cannot score the first token of a text")


def scored_spans(
    example: Question | Document, vocabulary: Tokenizer, max_length: int
) -> tuple[list[Span], int]:
    """The spans of an example, and the number of dropped few-shot examples.

    One span for each option, one for a cloze, one per part of a noisy document, or a document's
    rolling windows, after its context. Whole few-shot examples are dropped from the left
    until all options fit; a question that still does not fit is truncated on the left.
    """
    if isinstance(example, Document) and example.noise:
        return noisy_spans(vocabulary, example, max_length), 0
    if isinstance(example, Document):
        known = len(vocabulary.encode(example.context)) if example.context else 0
        text = example.context + example.text
        return list(rolling_windows(vocabulary, text, max_length, example.ids, known)), 0
    if isinstance(example, Prompt):
        continued = [(example.context, example.targets[:1])]
    elif example.contexts:
        pairs = zip(example.contexts, example.options, strict=True)
        continued = [(context, (option,)) for context, option in pairs]
    else:
        continued = [(example.context, example.options)]
    for dropped in range(len(example.shots) + 1):
        before = _few_shot_text(example, dropped)
        spans = [
            span
            for context, texts in continued
            for span in continuations(vocabulary, before + context, texts, max_length)
        ]
        if not any(span.truncated for span in spans):
            break
    return spans, dropped


def prompt_span(
    example: Question, vocabulary: Tokenizer, max_length: int
) -> tuple[list[Span], int]:
    """The tokens of a prompt, and the number of dropped few-shot examples, as in `scored_spans`.

    Trailing spaces are stripped, because a space belongs to the token that follows it.
    """
    for dropped in range(len(example.shots) + 1):
        text = (_few_shot_text(example, dropped) + example.context).rstrip(" ")
        tokens = np.asarray([start_token(vocabulary), *vocabulary.encode(text)], np.int32)
        if len(tokens) <= max_length:
            break
    return [Span(tokens[-max_length:], 0, truncated=len(tokens) > max_length)], dropped


def _few_shot_text(example: Question, dropped: int) -> str:
    """The text before a question, without its first `dropped` few-shot examples."""
    return example.description + "".join(example.shots[dropped:])


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
    return [_scored_after(vocabulary, before, context + text, max_length) for text in texts]


def _scored_after(vocabulary: Tokenizer, before: int, text: str, max_length: int) -> Span:
    """The span that scores a text after its first `before` tokens, but at least its last one."""
    ids = vocabulary.encode(text)
    scored = min(len(ids) - min(before, len(ids) - 1), max_length)
    tokens = np.asarray([start_token(vocabulary), *ids], np.int32)
    return Span(tokens[-(max_length + 1) :], scored, len(tokens) > max_length + 1)


def rolling_windows(
    vocabulary: Tokenizer, text: str, max_length: int, ids: Sequence[int] | None = None,
    known: int = 0,
) -> Iterator[Span]:  # fmt: skip
    """Yield the spans that together score every token after `known` ones exactly once.

    The first window starts with BOS and scores the first `max_length` tokens; each further one
    starts with the last token before it and scores the next `max_length`; the last one, with fewer
    left, has as much context as fits (the harness' rolling windows, context_len=1).
    """
    ids = vocabulary.encode(text) if ids is None else ids
    tokens = np.asarray([start_token(vocabulary), *ids], np.int32)
    for start in range(min(known, max(len(ids) - 1, 0)), len(tokens) - 1, max_length):
        end = min(start + max_length, len(tokens) - 1) + 1
        first = max(0, end - max_length - 1)
        yield Span(tokens[first:end], end - 1 - start, known > 0 and first > 0)


def noisy_spans(vocabulary: Tokenizer, document: Document, max_length: int) -> list[Span]:
    """The first tokens of a document, corrupted: a span per run of one part, after all before it.

    They are 100, or half of `max_length`, which leaves room for insertions.
    """
    ids = vocabulary.encode(document.text)[: min(LENGTH, max_length // 2)]
    special = [i for i in (vocabulary.bos_id, vocabulary.eos_id) if i is not None]
    among = np.setdiff1d(np.arange(vocabulary.vocab_size), special)
    tokens, parts = corrupt(np.asarray(ids, np.int32), document.noise, among, document.text)
    tokens = np.asarray([start_token(vocabulary), *tokens], np.int32)
    bounds = np.flatnonzero(np.diff(parts, prepend=-1, append=-1))
    runs = itertools.pairwise(bounds.tolist())
    return [Span(tokens[: end + 1], end - start, part=int(parts[start])) for start, end in runs]
