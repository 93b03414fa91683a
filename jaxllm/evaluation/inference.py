"""Prompts in, texts out: batches on the mesh, stop strings, and text as it comes.

Tokens are made a few at a time under `jit`; between, the host looks for what ends a text. A
token is drawn with a key of the seed, the number of the prompt and its place in the continuation,
so that the size of a batch does not change a text (but for sums that devices round differently in
batches of other shapes).
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from jaxllm.errors import UserError
from jaxllm.evaluation.spans import Tokenizer, start_token
from jaxllm.models import generation
from jaxllm.models.config import ModelConfig
from jaxllm.models.decoder import Params, unstack_layers
from jaxllm.models.sampling import Sampling
from jaxllm.sharding.rules import batch_sharding, partitioning, replicated

TOKENS_PER_LOOK = 8  # made between two looks at the texts of a batch
WIDTH_MULTIPLE = 64  # prompts are padded to it, so that few programs are compiled
UNFINISHED = "\ufffd"  # what decoders put in place of half a character


class Detokenizer:
    """Text of tokens that come one after the other, in whole characters.

    The text of tokens is not the sum of theirs: bytes make characters together, and SentencePiece
    drops the space before the first. So a window of tokens is decoded with and without the new
    ones, and what is more is new; a window begins anew where a text was whole.

    Args:
      vocabulary: of the tokens.
      context: tokens that come before; their text is not given out.
    """

    def __init__(self, vocabulary: Tokenizer, context: Sequence[int]) -> None:
        self._vocabulary = vocabulary
        self._tokens = list(context)
        self._window, self._read = max(0, len(context) - 5), len(context)

    def add(self, tokens: Sequence[int]) -> str:
        """The text that `tokens` complete, without a character of which bytes are missing."""
        self._tokens += tokens
        old, new = self._texts()
        if len(new) <= len(old) or new.endswith(UNFINISHED):
            return ""
        self._window, self._read = self._read, len(self._tokens)
        return new[len(old) :]

    def rest(self) -> str:
        """What is left at the end, with U+FFFD for half a character."""
        old, new = self._texts()
        self._window = self._read = len(self._tokens)
        return new[len(old) :]

    def _texts(self) -> tuple[str, str]:
        decode = self._vocabulary.decode
        return (
            decode(self._tokens[self._window : self._read]),
            decode(self._tokens[self._window :]),
        )


class Text:
    """A continuation as it grows, up to the first stop string.

    Attributes:
      text: what is certain to belong to it.
      done: whether it has ended.
    """

    def __init__(self, detokenizer: Detokenizer, stop: Sequence[str], ends: Sequence[int]) -> None:
        self._detokenizer, self._stop, self._ends = detokenizer, stop, ends
        self._held = ""  # might be the beginning of a stop string
        self.text, self.done = "", False

    def add(self, tokens: Sequence[int], last: bool) -> str:
        """Takes new tokens, `last` if no more will come; the text that is certain now."""
        if self.done:
            return ""
        cut = next((i for i, token in enumerate(tokens) if token in self._ends), None)
        self.done = last or cut is not None
        new = self._held + self._detokenizer.add(tokens[:cut])
        if self.done:
            new += self._detokenizer.rest()
        found = [(new.find(stop) + len(stop), new.find(stop)) for stop in self._stop if stop in new]
        if found:  # the first to be whole, however many tokens came at once
            new, self.done = new[: min(found)[1]], True
        held = 0 if self.done else max((_overlap(new, stop) for stop in self._stop), default=0)
        self._held = new[len(new) - held :]
        new = new[: len(new) - held]
        self.text += new
        return new


def _overlap(text: str, stop: str) -> int:
    """Characters at the end of `text` that `stop` begins with."""
    lengths = range(min(len(text), len(stop) - 1), 0, -1)
    return next((n for n in lengths if text.endswith(stop[:n])), 0)


class Continuer:
    """Compiled continuation of prompts, for one model on one mesh."""

    def __init__(self, model: ModelConfig, mesh: Mesh) -> None:
        self._mesh = mesh

        @functools.partial(jax.jit, static_argnums=3)
        def start(
            params: Params, prompts: jax.Array, lengths: jax.Array, room: int
        ) -> generation.DecodeState:
            with partitioning(mesh):
                return generation.start_decoding(model, params, prompts, lengths, room)

        @functools.partial(jax.jit, static_argnums=(4, 5, 6), donate_argnums=1)
        def advance(
            params: Params,
            state: generation.DecodeState,
            done: jax.Array,
            seeds: jax.Array,
            count: int,
            ends: tuple[int, ...],
            sampling: Sampling,
        ) -> tuple[generation.DecodeState, jax.Array]:
            state = state._replace(done=state.done | done)
            keys = jax.vmap(jax.random.key)(seeds[:, 0])
            for place in range(1, seeds.shape[1]):
                keys = jax.vmap(jax.random.fold_in)(keys, seeds[:, place])
            with partitioning(mesh):
                state, tokens = generation.decode_n(
                    model, params, state, count, ends, sampling, keys
                )
            return state, jax.lax.with_sharding_constraint(tokens, replicated(mesh))

        self._start, self._advance = start, advance

    def run(
        self,
        params: Params,
        prompts: np.ndarray,
        lengths: np.ndarray,
        texts: Sequence[Text],
        max_new_tokens: int,
        ends: tuple[int, ...],
        sampling: Sampling,
        seeds: Sequence[Sequence[int]],
        look: int = TOKENS_PER_LOOK,
    ) -> Iterator[list[str]]:
        """New text of each row after every `look` tokens, until all have ended.

        Args:
          params: parameters on the mesh.
          prompts: int32 [rows, width], padded on the right.
          lengths: int32 [rows], tokens of each prompt.
          texts: of the first rows; rows beyond are padding.
          max_new_tokens: of each row.
          ends: tokens that end a row, as its text's.
          sampling: how tokens are chosen.
          seeds: for each text the numbers that its random key is made of, alike in length.
          look: tokens between two looks at the texts.
        """
        padding = len(prompts) - len(texts)
        seeded = self._on_devices(np.asarray([*seeds, *[seeds[0]] * padding], np.uint32))
        state = self._start(
            params, self._on_devices(prompts), self._on_devices(lengths), max_new_tokens
        )
        made = 0
        while made < max_new_tokens and not all(text.done for text in texts):
            count = min(look, max_new_tokens - made)
            done = np.asarray([text.done for text in texts] + [True] * padding)
            state, tokens = self._advance(
                params, state, self._on_devices(done), seeded, count, ends, sampling
            )
            made += count
            yield [
                text.add(row.tolist(), last=made == max_new_tokens)
                for text, row in zip(texts, np.asarray(tokens), strict=False)
            ]

    def _on_devices(self, array: np.ndarray) -> Any:
        return jax.make_array_from_callback(
            array.shape, batch_sharding(self._mesh), lambda index: array[index]
        )


def end_ids(vocabulary: Tokenizer) -> tuple[int, ...]:
    """The tokens that end a text."""
    end = vocabulary.eos_id
    return () if end is None or end < 0 else (end,)


class Generator:
    """A model that continues texts.

    Args:
      model: the model.
      params: its parameters on `mesh`, unboxed; they are consumed.
      vocabulary: its vocabulary.
      mesh: where the parameters live.
      max_new_tokens: tokens of a continuation, at most.
      sampling: how tokens are chosen.
      seed: of what is drawn.

    A continuation ends with the vocabulary's EOS, or before the first of the texts in `stop`.
    """

    def __init__(
        self,
        model: ModelConfig,
        params: Params,
        vocabulary: Tokenizer,
        mesh: Mesh,
        max_new_tokens: int,
        sampling: Sampling,
        seed: int,
    ) -> None:
        if max_new_tokens >= model.max_length:
            raise UserError(
                f"{max_new_tokens} new tokens leave no room for a prompt in a context of "
                f"{model.max_length}"
            )
        self._model, self._params, self._mesh = model, unstack_layers(params), mesh
        self._vocabulary, self._count = vocabulary, max_new_tokens
        self._sampling, self._seed, self._ends = sampling, seed, end_ids(vocabulary)
        self._continuer = Continuer(model, mesh)

    def stream(self, prompt: str, stop: Sequence[str] = ()) -> Iterator[str]:
        """The continuation of one prompt in pieces, as they become certain."""
        for pieces in self._run([self._tokens(prompt)], [0], stop, 1, 1):
            yield pieces[0]

    def generate(
        self, prompts: Sequence[str], batch_size: int, stop: Sequence[str] = ()
    ) -> list[str]:
        """The continuations of prompts, `batch_size` (rounded up to fit the mesh) at a time."""
        tokens = [self._tokens(prompt) for prompt in prompts]
        order = sorted(range(len(prompts)), key=lambda number: -len(tokens[number]))
        texts = [""] * len(prompts)
        for first in range(0, len(order), batch_size):
            numbers = order[first : first + batch_size]
            rows = [tokens[number] for number in numbers]
            for pieces in self._run(rows, numbers, stop, batch_size, TOKENS_PER_LOOK):
                for number, piece in zip(numbers, pieces, strict=True):
                    texts[number] += piece
        return texts

    def _tokens(self, prompt: str) -> list[int]:
        encoded = self._vocabulary.encode(prompt.rstrip(" "))
        tokens = [start_token(self._vocabulary), *encoded]
        room = self._model.max_length - self._count
        if len(tokens) > room:
            raise UserError(
                f"a prompt of {len(tokens)} tokens and {self._count} new ones do not fit the "
                f"context of {self._model.max_length}: {prompt[:40]!r}…"
            )
        return tokens

    def _run(
        self,
        rows: Sequence[list[int]],
        numbers: Sequence[int],
        stop: Sequence[str],
        batch_size: int,
        look: int,
    ) -> Iterator[list[str]]:
        """New text of each row after every `look` tokens."""
        shards = self._mesh.shape["data"] * self._mesh.shape["fsdp"]
        batch = -(-batch_size // shards) * shards
        width = -(-max(map(len, rows)) // WIDTH_MULTIPLE) * WIDTH_MULTIPLE
        width = min(width, self._model.max_length - self._count)
        prompts, lengths = np.zeros((batch, width), np.int32), np.ones(batch, np.int32)
        for row, tokens in enumerate(rows):
            prompts[row, : len(tokens)], lengths[row] = tokens, len(tokens)
        texts = [
            Text(Detokenizer(self._vocabulary, tokens[1:]), stop, self._ends) for tokens in rows
        ]
        yield from self._continuer.run(
            self._params, prompts, lengths, texts, self._count, self._ends, self._sampling,
            [(self._seed, number) for number in numbers], look,
        )  # fmt: skip
