"""Runs packed spans and prompts through the live, sharded parameters.

The same code scores inside the train loop and offline, on one host or many: every process walks
through the same batches in the same order, hands its devices their rows, and gets the whole
result. Only one number per token leaves the device.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from jaxllm.evaluation.inference import DecodeLoop, PromptBatch
from jaxllm.evaluation.packing import Packed, pack, row_lengths
from jaxllm.evaluation.spans import Span, Tokenizer
from jaxllm.models.batch import TreeBatch
from jaxllm.models.config import ModelConfig
from jaxllm.models.decoder import Params
from jaxllm.models.sampling import GREEDY, Sampling
from jaxllm.models.scoring import score_slots
from jaxllm.sharding.rules import batch_sharding, partitioning, replicated

In = TypeVar("In")
Out = TypeVar("Out")
ShouldStop = Callable[[], bool]
SHORTEST_ROW = 128


class Interrupted(Exception):
    """The run has been asked to stop in the middle of an evaluation."""


@dataclasses.dataclass(frozen=True)
class SpanScores:
    """Scores of each span.

    Attributes:
      log_likelihood: float64 [S], the sum of log p over the scored targets, in nats.
      greedy: bool [S], whether every scored target was the model's first choice.
    """

    log_likelihood: np.ndarray
    greedy: np.ndarray


class Scorer:
    """Compiled scoring and generation for one model on one mesh.

    Args:
      model: the model; `model.max_length` is the longest span.
      mesh: where the parameters live.
      tokens_per_batch: positions of a batch, rounded up to rows of `max_length` that the mesh
        divides.
      shortest_row: see `packing.row_lengths`.
    """

    def __init__(
        self,
        model: ModelConfig,
        mesh: Mesh,
        tokens_per_batch: int,
        shortest_row: int = SHORTEST_ROW,
    ):
        multiple = mesh.shape["data"] * mesh.shape["fsdp"] * model.max_length
        self.tokens_per_batch = -(-tokens_per_batch // multiple) * multiple
        self.max_length, self.vocab_size = model.max_length, model.vocab_size
        self.row_lengths = row_lengths(model.max_length, shortest_row)
        self._model, self._mesh = model, mesh
        self._score = jax.jit(self._traced_score, out_shardings=replicated(mesh))
        self._decode_loop = DecodeLoop(model, mesh)

    def score(self, params: Params, packed: Packed, should_stop: ShouldStop) -> SpanScores:
        """Scores every span of `packed`; sums are float64, so packing order does not show.

        A span that gives NaN spoils its neighbours in the row, whose attention multiplies it by
        zero: spans without a finite score are scored again, each in a row of its own.

        Raises:
          Interrupted: `should_stop()` was true between two batches.
        """
        scores = self._score_batches(params, packed, should_stop)
        spoilt = np.flatnonzero(~np.isfinite(scores.log_likelihood))
        if spoilt.size:
            alone = self._score_batches(
                params, self.pack([packed.spans[i] for i in spoilt], isolate=True), should_stop
            )
            scores.log_likelihood[spoilt], scores.greedy[spoilt] = (
                alone.log_likelihood,
                alone.greedy,
            )
        return scores

    def pack(self, spans: Sequence[Span], isolate: bool = False) -> Packed:
        """Packs `spans` for `score`; see `packing.pack`."""
        return pack(
            spans,
            lengths=self.row_lengths,
            tokens_per_batch=self.tokens_per_batch,
            isolate=isolate,
        )

    def _score_batches(self, params: Params, packed: Packed, should_stop: ShouldStop) -> SpanScores:
        log_likelihood = np.full(len(packed.spans), np.nan)
        greedy = np.zeros(len(packed.spans), bool)
        run = lambda item: self._score(params, jax.tree.map(self._on_devices, item.batch))
        for item, (tokens, correct) in _pipelined(run, packed.batches, should_stop):
            # reduceat sums [start, end) at even places and the gaps at odd ones; the zero at the
            # end gives the last span an end to stop at.
            bounds = np.stack([item.starts, item.ends], axis=1).ravel()
            padded = np.append(np.asarray(tokens, np.float64).ravel(), 0.0)
            log_likelihood[item.spans] = np.add.reduceat(padded, bounds)[::2]
            right = np.append(np.asarray(correct).ravel(), True)
            greedy[item.spans] = np.logical_and.reduceat(right, bounds)[::2]
        return SpanScores(log_likelihood, greedy)

    def prompt_batches(self, prompts: Sequence[Sequence[int]]) -> tuple[PromptBatch, ...]:
        """Prompts by length, in batches of a few fixed widths and `tokens_per_batch` positions."""
        batches = []
        order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
        while order:
            longest_first = len(prompts[order[0]])
            width = next(size for size in self.row_lengths if size >= longest_first)
            rows = self.tokens_per_batch // width
            members = [i for i in order[:rows] if len(prompts[i]) <= width]
            order = order[len(members) :]
            batch = PromptBatch.of([prompts[i] for i in members], members, rows, width)
            batches.append(batch)
        return tuple(batches)

    def generate(
        self,
        params: Params,
        batches: Sequence[PromptBatch],
        vocabulary: Tokenizer,
        max_new_tokens: int,
        stop: Sequence[str],
        should_stop: ShouldStop,
        sampling: Sampling = GREEDY,
        seeds: Callable[[int], Sequence[int]] = lambda number: (0, number),
    ) -> list[str]:
        """Continuations in the order of the prompts, up to EOS or the first text of `stop`.

        Args:
          params: parameters, boxed or plain, on the mesh.
          batches: of `prompt_batches`. One ends when all of its rows have.
          vocabulary: of the prompts.
          max_new_tokens: tokens of a continuation, at most.
          stop: texts that end one.
          should_stop: asked before every batch.
          sampling: how tokens are chosen.
          seeds: what the random key of a prompt is made of, from its number.

        Raises:
          Interrupted: `should_stop()` was true between two batches.
        """
        continuations: dict[int, str] = {}
        for batch in batches:
            if _any_process(should_stop):
                raise Interrupted
            seeded = [seeds(number) for number in batch.numbers]
            streamed = self._decode_loop.run(
                params, batch, vocabulary, max_new_tokens, stop, sampling, seeded
            )
            for pieces in streamed:
                for number, piece in zip(batch.numbers, pieces, strict=True):
                    continuations[number] = continuations.get(number, "") + piece
        return [continuations[number] for number in sorted(continuations)]

    def _traced_score(self, params: Params, batch: TreeBatch) -> tuple[jax.Array, jax.Array]:
        with partitioning(self._mesh):
            scores = score_slots(self._model, params, batch)
        return scores.log_likelihood, scores.correct

    def _on_devices(self, array: Any) -> jax.Array:
        """The global array of which this process holds every row, sharded over the mesh."""
        sharding = batch_sharding(self._mesh)
        return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])


def _pipelined(
    run: Callable[[In], Out], items: Iterable[In], should_stop: ShouldStop
) -> Iterable[tuple[In, Out]]:
    """Keeps the device one batch ahead of the host, and asks before each whether to stop."""
    waiting: tuple[In, Out] | None = None
    for item in items:
        if _any_process(should_stop):
            raise Interrupted
        result = run(item)
        if waiting:
            yield waiting
        waiting = (item, result)
    if waiting:
        yield waiting


def _any_process(should_stop: ShouldStop) -> bool:
    """Whether one process has been asked to stop: all of them must leave at the same batch."""
    if jax.process_count() == 1:
        return should_stop()
    return bool(np.any(multihost_utils.process_allgather(np.asarray(should_stop()))))


def never() -> bool:
    """The `should_stop` of a command that runs to its end."""
    return False
