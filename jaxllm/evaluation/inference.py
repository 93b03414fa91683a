"""Generation: batched prompts on the mesh, stop strings, and streamed text.

Tokens are decoded in chunks under `jit`; between chunks the host searches for stop strings. The
sampling key of a token is derived from the seed, the prompt's index and the token's position in
the continuation, so that the batch size does not change a text (except through rounding, which
depends on the batch shape).
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jaxllm.errors import UserError
from jaxllm.evaluation.spans import Tokenizer, start_token
from jaxllm.models import generation
from jaxllm.models.config import ModelConfig
from jaxllm.models.decoder import Params, unstack_layers
from jaxllm.models.sampling import Sampling
from jaxllm.sharding.rules import batch_sharding, partitioning, replicated

DECODE_CHUNK = 8  # tokens decoded between two checks for stop strings
WIDTH_MULTIPLE = 64  # prompts are padded to a multiple of it, to compile few programs
UNFINISHED = "\ufffd"  # a decoder's replacement for an incomplete character


class Detokenizer:
    """Incremental decoding of tokens to complete characters.

    The text of a sequence is not the concatenation of its tokens' texts: several byte tokens form
    one character, and SentencePiece drops a leading space. So a window of tokens is decoded with
    and without the new ones, and the difference is the new text; the window advances when the text
    ends in a complete character.

    Args:
      vocabulary: vocabulary of the tokens.
      context: preceding tokens, whose text is not returned.
    """

    def __init__(self, vocabulary: Tokenizer, context: Sequence[int]) -> None:
        self._vocabulary = vocabulary
        self._tokens = list(context)
        self._window, self._read = max(0, len(context) - 5), len(context)

    def add(self, tokens: Sequence[int]) -> str:
        """Append `tokens` and return the new text, up to the last complete character."""
        self._tokens += tokens
        old, new = self._texts()
        if len(new) <= len(old) or new.endswith(UNFINISHED):
            return ""
        self._window, self._read = self._read, len(self._tokens)
        return new[len(old) :]

    def rest(self) -> str:
        """The remaining text, with U+FFFD for an incomplete character."""
        old, new = self._texts()
        self._window = self._read = len(self._tokens)
        return new[len(old) :]

    def _texts(self) -> tuple[str, str]:
        decode = self._vocabulary.decode
        return (
            decode(self._tokens[self._window : self._read]),
            decode(self._tokens[self._window :]),
        )


class StreamedText:
    """A growing continuation, up to the first stop string.

    Attributes:
      text: the final part: no stop string can begin in it any more.
      done: whether the continuation has ended.
    """

    def __init__(
        self, detokenizer: Detokenizer, stop: Sequence[str], eos_ids: Sequence[int]
    ) -> None:
        self._detokenizer, self._stop, self._eos_ids = detokenizer, stop, eos_ids
        self._held = ""  # a possible beginning of a stop string
        self.text, self.done = "", False

    def add(self, tokens: Sequence[int], last: bool) -> str:
        """Append tokens (`last`: the final ones) and return the newly final text."""
        if self.done:
            return ""
        cut = next((i for i, token in enumerate(tokens) if token in self._eos_ids), None)
        self.done = last or cut is not None
        new = self._held + self._detokenizer.add(tokens[:cut])
        if self.done:
            new += self._detokenizer.rest()
        stops = [(new.find(stop) + len(stop), new.find(stop)) for stop in self._stop if stop in new]
        if stops:  # the one that ends first, whatever the chunk size
            new, self.done = new[: min(stops)[1]], True
        held = 0 if self.done else max((_overlap(new, stop) for stop in self._stop), default=0)
        self._held = new[len(new) - held :]
        new = new[: len(new) - held]
        self.text += new
        return new


def _overlap(text: str, stop: str) -> int:
    """Length of the longest suffix of `text` that is a proper prefix of `stop`."""
    lengths = range(min(len(text), len(stop) - 1), 0, -1)
    return next((n for n in lengths if text.endswith(stop[:n])), 0)


@dataclasses.dataclass(frozen=True)
class PromptBatch:
    """Prompts of one device batch.

    Attributes:
      prompts: int32 [B, T], padded on the right; sequences beyond `numbers` are padding.
      lengths: int32 [B], number of tokens of each prompt.
      numbers: index of each prompt among all prompts.
    """

    prompts: np.ndarray
    lengths: np.ndarray
    numbers: Sequence[int]

    @classmethod
    def of(
        cls, prompts: Sequence[Sequence[int]], numbers: Sequence[int], rows: int, width: int
    ) -> PromptBatch:
        """Pad the prompts with indices `numbers` to a batch [rows, width]."""
        tokens, lengths = np.zeros((rows, width), np.int32), np.ones(rows, np.int32)
        for row, prompt in enumerate(prompts):
            tokens[row, : len(prompt)], lengths[row] = prompt, len(prompt)
        return cls(tokens, lengths, numbers)


class DecodeLoop:
    """Compiled prefill and decoding, for one model on one mesh."""

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
            eos_ids: tuple[int, ...],
            sampling: Sampling,
        ) -> tuple[generation.DecodeState, jax.Array, jax.Array]:
            state = state._replace(done=state.done | done)
            keys = jax.vmap(jax.random.key)(seeds[:, 0])
            for place in range(1, seeds.shape[1]):
                keys = jax.vmap(jax.random.fold_in)(keys, seeds[:, place])
            with partitioning(mesh):
                state, tokens = generation.decode_n(
                    model, params, state, count, eos_ids, sampling, keys
                )
            invalid = jnp.any(jnp.isnan(state.logits), axis=-1)
            return state, *jax.lax.with_sharding_constraint((tokens, invalid), replicated(mesh))

        self._start, self._advance = start, advance

    def run(
        self,
        params: Params,
        batch: PromptBatch,
        vocabulary: Tokenizer,
        max_new_tokens: int,
        stop: Sequence[str],
        sampling: Sampling,
        seeds: Sequence[Sequence[int]],
        chunk: int = DECODE_CHUNK,
    ) -> Iterator[list[str]]:
        """Yield the new text of each prompt after every `chunk` tokens, until all have ended.

        Args:
          params: parameters on the mesh.
          batch: the prompts.
          vocabulary: vocabulary of the prompts; its EOS ends a text.
          max_new_tokens: maximum number of new tokens of each prompt.
          stop: stop strings, excluded from the text.
          sampling: the sampling method.
          seeds: for each prompt the integers of its random key, equal in number.
          chunk: tokens decoded between two checks for stop strings.

        Raises:
          UserError: the model's logits are NaN.
        """
        count, ends = len(batch.numbers), eos_ids(vocabulary)
        padding = len(batch.prompts) - count
        contexts = [batch.prompts[i, 1 : batch.lengths[i]].tolist() for i in range(count)]
        texts = [StreamedText(Detokenizer(vocabulary, c), stop, ends) for c in contexts]
        seeded = self._on_devices(np.asarray([*seeds, *[seeds[0]] * padding], np.uint32))
        prompts, lengths = self._on_devices(batch.prompts), self._on_devices(batch.lengths)
        state = self._start(params, prompts, lengths, max_new_tokens)
        made = 0
        while made < max_new_tokens and not all(text.done for text in texts):
            new = min(chunk, max_new_tokens - made)
            done = self._on_devices(np.asarray([t.done for t in texts] + [True] * padding))
            state, tokens, invalid = self._advance(params, state, done, seeded, new, ends, sampling)
            if wrong := int(np.asarray(invalid)[:count].sum()):
                raise UserError(f"the model's logits are NaN for {wrong} of {count} prompts")
            made += new
            yield [
                text.add(row.tolist(), last=made == max_new_tokens)
                for text, row in zip(texts, np.asarray(tokens), strict=False)
            ]

    def _on_devices(self, array: np.ndarray) -> Any:
        return jax.make_array_from_callback(
            array.shape, batch_sharding(self._mesh), lambda index: array[index]
        )


def eos_ids(vocabulary: Tokenizer) -> tuple[int, ...]:
    """The ids that end a text: EOS, if the vocabulary has one."""
    end = vocabulary.eos_id
    return () if end is None or end < 0 else (end,)


class Generator:
    """Text generation for one model.

    Args:
      model: the model.
      params: its parameters on `mesh`, unboxed; they are consumed.
      vocabulary: its vocabulary.
      mesh: mesh of the parameters.
      max_new_tokens: maximum length of a continuation, in tokens.
      sampling: the sampling method.
      seed: seed of the sampling keys.

    A continuation ends with the vocabulary's EOS, or before the first stop string.
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
        self._room = model.max_length - max_new_tokens
        if self._room < 1:
            raise UserError(
                f"{max_new_tokens} new tokens leave no room for a prompt in a context of "
                f"{model.max_length}"
            )
        self._params, self._vocabulary = unstack_layers(params), vocabulary
        self._max_new_tokens, self._sampling, self._seed = max_new_tokens, sampling, seed
        self._multiple = mesh.shape["data"] * mesh.shape["fsdp"]
        self._decode_loop = DecodeLoop(model, mesh)

    def stream(self, prompt: str, stop: Sequence[str] = ()) -> Iterator[str]:
        """Yield the continuation of one prompt in pieces, as they become final."""
        for pieces in self._run([self._tokens(prompt)], [0], stop, 1, 1):
            yield pieces[0]

    def generate(
        self, prompts: Sequence[str], batch_size: int, stop: Sequence[str] = ()
    ) -> list[str]:
        """Generate continuations, `batch_size` (rounded up to fit the mesh) at a time."""
        tokens = [self._tokens(prompt) for prompt in prompts]
        order = sorted(range(len(prompts)), key=lambda number: -len(tokens[number]))
        texts = [""] * len(prompts)
        for first in range(0, len(order), batch_size):
            numbers = order[first : first + batch_size]
            rows = [tokens[number] for number in numbers]
            for pieces in self._run(rows, numbers, stop, batch_size, DECODE_CHUNK):
                for number, piece in zip(numbers, pieces, strict=True):
                    texts[number] += piece
        return texts

    def _tokens(self, prompt: str) -> list[int]:
        encoded = self._vocabulary.encode(prompt.rstrip(" "))
        tokens = [start_token(self._vocabulary), *encoded]
        if len(tokens) > self._room:
            raise UserError(
                f"a prompt of {len(tokens)} tokens and {self._max_new_tokens} new ones do not fit "
                f"the context of {self._room + self._max_new_tokens}: {prompt[:40]!r}…"
            )
        return tokens

    def _run(
        self,
        rows: Sequence[list[int]],
        numbers: Sequence[int],
        stop: Sequence[str],
        batch_size: int,
        chunk: int,
    ) -> Iterator[list[str]]:
        """Yield the new text of each prompt after every `chunk` tokens."""
        size = -(-batch_size // self._multiple) * self._multiple
        width = -(-max(map(len, rows)) // WIDTH_MULTIPLE) * WIDTH_MULTIPLE
        batch = PromptBatch.of(rows, numbers, size, min(width, self._room))
        seeds = [(self._seed, number) for number in numbers]
        yield from self._decode_loop.run(
            self._params, batch, self._vocabulary, self._max_new_tokens, stop, self._sampling,
            seeds, chunk,
        )  # fmt: skip
