"""Generation: batched prompts on the mesh, stop strings, and streamed text.

Tokens are decoded in chunks under `jit`; between chunks the host searches for stop strings. The
sampling key of a token is derived from the seed, the prompt's index and the token's position in
the continuation, so that the batch size does not change a text (except through rounding, which
depends on the batch shape).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence

import jax
import numpy as np
from jax.sharding import Mesh

from jaxllm.errors import UserError
from jaxllm.evaluation.spans import Tokenizer, start_token
from jaxllm.models import generation
from jaxllm.models.decoder import Params, unstack_layers
from jaxllm.models.generation import Model
from jaxllm.models.sampling import GREEDY, Sampling
from jaxllm.sharding.rules import batch_sharding, partitioning, replicated

DECODE_CHUNK = 8  # tokens decoded between two checks for stop strings
WIDTH_MULTIPLE = 64  # prompts are padded to a multiple of it, to compile few programs
CONTEXT_TOKENS = 5  # of the prompt, decoded with the continuation
UNFINISHED = "\ufffd"  # a decoder's replacement for an incomplete character

Tokens = Sequence[int] | np.ndarray


class StreamedText:
    """A growing continuation, up to EOS or the first stop string.

    The text of a sequence is not the concatenation of its tokens' texts: several byte tokens form
    one character, and SentencePiece drops a leading space. So new tokens are decoded with those
    before them (at first the last of the prompt), whose text is not returned. `text` is the final
    part: complete characters in which no stop string can begin any more.
    """

    def __init__(self, vocabulary: Tokenizer, prompt: Sequence[int], stop: Sequence[str]) -> None:
        self._decode, self._eos_ids, self._stop = vocabulary.decode, eos_ids(vocabulary), stop
        self._tokens = list(prompt[-CONTEXT_TOKENS:])
        self._context = len(self._tokens)  # how many of the tokens have been read
        self._held = ""  # may be the beginning of a stop string
        self.text, self.done = "", False

    def add(self, tokens: Sequence[int], last: bool = False) -> str:
        """Append tokens (`last`: the final ones) and return the newly final text."""
        if self.done:
            return ""
        end = next((i for i, t in enumerate(tokens) if t in self._eos_ids), None)
        self._tokens += tokens[:end]
        self.done = last or end is not None
        context = self._decode(self._tokens[: self._context])
        new = self._decode(self._tokens)[len(context) :]
        if new and (self.done or not new.endswith(UNFINISHED)):
            self._held += new
            self._tokens = self._tokens[self._context :]
            self._context = len(self._tokens)
        final = len(self._held)
        stops = [(self._held.find(stop) + len(stop), self._held.find(stop)) for stop in self._stop]
        if found := [ends for ends in stops if ends[1] >= 0]:
            final, self.done = min(found)[1], True  # the one that ends first
        elif not self.done:
            final -= max((_overlap(self._held, stop) for stop in self._stop), default=0)
        text, self._held = self._held[:final], self._held[final:]
        self.text += text
        return text


def _overlap(text: str, stop: str) -> int:
    """Length of the longest suffix of `text` that is a proper prefix of `stop`."""
    lengths = range(min(len(text), len(stop) - 1), 0, -1)
    return next((n for n in lengths if text.endswith(stop[:n])), 0)


def eos_ids(vocabulary: Tokenizer) -> tuple[int, ...]:
    """The ids that end a text: EOS, if the vocabulary has one."""
    end = vocabulary.eos_id
    return () if end is None or end < 0 else (end,)


@dataclasses.dataclass(frozen=True)
class PromptBatch:
    """Prompts of one device batch."""

    prompts: np.ndarray  # int32 [B, T], padded on the right; sequences beyond `numbers` are padding
    lengths: np.ndarray  # int32 [B], number of tokens of each prompt
    numbers: Sequence[int]  # index of each prompt among all prompts

    @classmethod
    def of(
        cls, prompts: Sequence[Tokens], numbers: Sequence[int], rows: int, width: int
    ) -> PromptBatch:
        """Pad the prompts with indices `numbers` to a batch [rows, width]."""
        tokens, lengths = np.zeros((rows, width), np.int32), np.ones(rows, np.int32)
        for row, number in enumerate(numbers):
            lengths[row] = len(prompts[number])
            tokens[row, : lengths[row]] = prompts[number]
        return cls(tokens, lengths, numbers)

    @property
    def shape(self) -> tuple[int, int]:
        """B and T."""
        rows, width = self.prompts.shape
        return rows, width

    @property
    def tokens(self) -> int:
        """Number of tokens, without padding."""
        return int(self.lengths[: len(self.numbers)].sum())


@dataclasses.dataclass(frozen=True)
class Decoding:
    """How prompts are continued."""

    vocabulary: Tokenizer  # vocabulary of the prompts; its EOS ends a text
    max_new_tokens: int  # maximum length of a continuation, in tokens
    stop: Sequence[str] = ()  # stop strings, excluded from the text
    sampling: Sampling = GREEDY  # the sampling method
    # index of a prompt -> integers of its random key
    seed: Callable[[int], Sequence[int]] = lambda number: (0, number)


class DecodeLoop:
    """Compiled prefill and decoding, for one model, or several combined, on one mesh."""

    def __init__(self, model: Model, mesh: Mesh) -> None:
        self._model, self._mesh = model, mesh
        self._start = jax.jit(self._traced_start, static_argnums=3)
        self._advance = jax.jit(self._traced_advance, static_argnums=(4, 5, 6), donate_argnums=1)

    def generate(
        self,
        params: Params,
        batches: Sequence[PromptBatch],
        decoding: Decoding,
        before_batch: Callable[[], None] = lambda: None,
    ) -> list[str]:
        """Continue the prompts of `batches`, and return the texts in the order of the prompts."""
        texts = [""] * sum(len(batch.numbers) for batch in batches)
        for batch in batches:
            before_batch()
            for pieces in self.run(params, batch, decoding):
                for number, piece in zip(batch.numbers, pieces, strict=True):
                    texts[number] += piece
        return texts

    def run(
        self, params: Params, batch: PromptBatch, decoding: Decoding, chunk: int = DECODE_CHUNK
    ) -> Iterator[list[str]]:
        """Yield the new text of each prompt after every `chunk` tokens, until all have ended.

        UserError if the model's logits are NaN, or no token has a positive combined probability.
        """
        vocabulary, max_new_tokens = decoding.vocabulary, decoding.max_new_tokens
        count, padding = len(batch.numbers), len(batch.prompts) - len(batch.numbers)
        texts = [
            StreamedText(vocabulary, prompt[1:length].tolist(), decoding.stop)
            for prompt, length in zip(batch.prompts[:count], batch.lengths, strict=False)
        ]
        on_mesh = lambda array: shard_batch(self._mesh, array)
        numbers = [*batch.numbers, *[batch.numbers[0]] * padding]
        seeds = on_mesh(np.asarray([decoding.seed(number) for number in numbers], np.uint32))
        state = self._start(params, on_mesh(batch.prompts), on_mesh(batch.lengths), max_new_tokens)
        decoded = 0
        while decoded < max_new_tokens and not all(text.done for text in texts):
            new = min(chunk, max_new_tokens - decoded)
            done = on_mesh(np.asarray([text.done for text in texts] + [True] * padding))
            state, tokens, failed = self._advance(
                params, state, done, seeds, new, eos_ids(vocabulary), decoding.sampling
            )
            if wrong := int(np.asarray(failed)[:count].sum()):
                raise UserError(
                    f"the model's logits are NaN for {wrong} of {count} prompts, or leave no token"
                )
            decoded += new
            yield [
                text.add(row.tolist(), last=decoded == max_new_tokens)
                for text, row in zip(texts, np.asarray(tokens), strict=False)
            ]

    def tokens(self, params: Params, batch: PromptBatch, count: int) -> np.ndarray:
        """The `count` tokens that greedy decoding adds to each prompt, int32 [n, count].

        An EOS is a token like any other. UserError if the model's logits are NaN.
        """
        on_mesh = lambda array: shard_batch(self._mesh, array)
        rows = len(batch.prompts)
        state = self._start(params, on_mesh(batch.prompts), on_mesh(batch.lengths), count)
        done, seeds = on_mesh(np.zeros(rows, bool)), on_mesh(np.zeros((rows, 1), np.uint32))
        _, tokens, invalid = self._advance(params, state, done, seeds, count, (), GREEDY)
        if wrong := int(np.asarray(invalid)[: len(batch.numbers)].sum()):
            raise UserError(f"the model's logits are NaN for {wrong} prompts")
        return np.asarray(tokens)[: len(batch.numbers)]

    def _traced_start(
        self, params: Params, prompts: jax.Array, lengths: jax.Array, max_new_tokens: int
    ) -> generation.DecodeState:
        with partitioning(self._mesh):
            return generation.start_decoding(self._model, params, prompts, lengths, max_new_tokens)

    def _traced_advance(
        self,
        params: Params,
        state: generation.DecodeState,
        done: jax.Array,
        seeds: jax.Array,
        count: int,
        eos_ids: tuple[int, ...],
        sampling: Sampling,
    ) -> tuple[generation.DecodeState, jax.Array, jax.Array]:
        """The next state, tokens [B, count], and whether logits were invalid [B]."""
        state = state._replace(done=state.done | done)
        keys = jax.vmap(jax.random.key)(seeds[:, 0])
        for place in range(1, seeds.shape[1]):
            keys = jax.vmap(jax.random.fold_in)(keys, seeds[:, place])
        with partitioning(self._mesh):
            state, tokens = generation.decode_n(
                self._model, params, state, count, eos_ids, sampling, keys
            )
        shown = (tokens, state.invalid)
        return state, *jax.lax.with_sharding_constraint(shown, replicated(self._mesh))


def shard_batch(mesh: Mesh, array: np.ndarray) -> jax.Array:
    """The global array, its sequences sharded over the mesh, from this process' full copy."""
    return jax.make_array_from_callback(
        array.shape, batch_sharding(mesh), lambda index: array[index]
    )


class Generator:
    """Text generation for a model; a continuation ends with EOS or before a stop string.

    `params` are on `mesh`, unboxed, and consumed; those of each model where several are combined.
    """

    def __init__(self, model: Model, params: Params, mesh: Mesh, decoding: Decoding) -> None:
        self._max_prompt = model.max_length - decoding.max_new_tokens
        if self._max_prompt < 1:
            raise UserError(
                f"{decoding.max_new_tokens} new tokens leave no room for a prompt in a context of "
                f"{model.max_length}"
            )
        several = isinstance(params, tuple)
        self._params = tuple(map(unstack_layers, params)) if several else unstack_layers(params)
        self._decode_loop, self._decoding = DecodeLoop(model, mesh), decoding
        self._multiple = mesh.shape["data"] * mesh.shape["fsdp"]

    def stream(self, prompt: str) -> Iterator[str]:
        """Yield the continuation of one prompt in pieces, as they become final."""
        (batch,) = self._batches([prompt], batch_size=1)
        for pieces in self._decode_loop.run(self._params, batch, self._decoding, chunk=1):
            yield pieces[0]

    def generate(self, prompts: Sequence[str], batch_size: int) -> list[str]:
        """Generate continuations, `batch_size` (rounded up to fit the mesh) at a time."""
        batches = self._batches(prompts, batch_size)
        return self._decode_loop.generate(self._params, batches, self._decoding)

    def _batches(self, prompts: Sequence[str], batch_size: int) -> list[PromptBatch]:
        """Batch prompts by length, the longest first."""
        tokens = [self._tokens(prompt) for prompt in prompts]
        order = sorted(range(len(prompts)), key=lambda number: -len(tokens[number]))
        rows = -(-batch_size // self._multiple) * self._multiple
        batches = []
        for first in range(0, len(order), batch_size):
            numbers = order[first : first + batch_size]
            width = -(-len(tokens[numbers[0]]) // WIDTH_MULTIPLE) * WIDTH_MULTIPLE
            batches.append(PromptBatch.of(tokens, numbers, rows, min(width, self._max_prompt)))
        return batches

    def _tokens(self, prompt: str) -> list[int]:
        vocabulary, new = self._decoding.vocabulary, self._decoding.max_new_tokens
        tokens = [start_token(vocabulary), *vocabulary.encode(prompt.rstrip(" "))]
        if len(tokens) > self._max_prompt:
            raise UserError(
                f"a prompt of {len(tokens)} tokens and {new} new ones do not fit the context of "
                f"{self._max_prompt + new}: {prompt[:40]!r}…"
            )
        return tokens
