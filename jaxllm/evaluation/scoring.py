"""Score packed spans and prompts with live, sharded parameters.

The same code scores inside the train loop and offline, on one host or many: every process iterates
over the same batches in the same order, feeds its devices their sequences, and receives the whole
result. Only per-token scores leave the devices.
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
from jaxllm.models.scoring import score_targets
from jaxllm.sharding.rules import batch_sharding, partitioning, replicated

In = TypeVar("In")
Out = TypeVar("Out")
ShouldStop = Callable[[], bool]
SHORTEST_ROW = 128


class Interrupted(Exception):
    """Raised when the run is stopped during an evaluation."""


@dataclasses.dataclass(frozen=True)
class SpanScores:
    """Scores of each span.

    Attributes:
      log_likelihood: float64 [S], the sum of log p over the scored targets, in nats.
      greedy: bool [S], whether every scored target was the argmax.
    """

    log_likelihood: np.ndarray
    greedy: np.ndarray


class Scorer:
    """Compiled scoring and generation for one model on one mesh.

    Args:
      model: the model; `model.max_length` bounds the span length.
      mesh: mesh of the parameters.
      tokens_per_batch: positions of a batch, rounded up to a number of sequences of `max_length`
        that is divisible by the mesh.
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
        """Score every span of `packed`; sums are float64, so packing order does not matter.

        A NaN span spoils the others of its sequence, whose attention multiplies it by zero: spans
        without a finite score are scored again, each in its own sequence.

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
        """Pack `spans` for `score`; see `packing.pack`."""
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
            # reduceat gives the sum of [start, end) at even indices and that of the gap at odd
            # ones; the appended zero makes the last `end` a valid index.
            bounds = np.stack([item.starts, item.ends], axis=1).ravel()
            padded = np.append(np.asarray(tokens, np.float64).ravel(), 0.0)
            log_likelihood[item.spans] = np.add.reduceat(padded, bounds)[::2]
            right = np.append(np.asarray(correct).ravel(), True)
            greedy[item.spans] = np.logical_and.reduceat(right, bounds)[::2]
        return SpanScores(log_likelihood, greedy)

    def prompt_batches(self, prompts: Sequence[Sequence[int]]) -> tuple[PromptBatch, ...]:
        """Batch prompts by length: a few fixed widths, `tokens_per_batch` positions each."""
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
        """Generate continuations up to EOS or the first stop string, in the order of the prompts.

        Args:
          params: parameters, boxed or plain, on the mesh.
          batches: from `prompt_batches`; a batch ends when all of its continuations have.
          vocabulary: vocabulary of the prompts.
          max_new_tokens: maximum length of a continuation, in tokens.
          stop: stop strings.
          should_stop: checked before every batch.
          sampling: the sampling method.
          seeds: prompt index -> integers of its random key.

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
            scores = score_targets(self._model, params, batch)
        return scores.log_likelihood, scores.correct

    def _on_devices(self, array: Any) -> jax.Array:
        """The global array, sharded over the mesh, from this process' full copy."""
        sharding = batch_sharding(self._mesh)
        return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])


def _pipelined(
    run: Callable[[In], Out], items: Iterable[In], should_stop: ShouldStop
) -> Iterable[tuple[In, Out]]:
    """Keep the device one batch ahead of the host, and check `should_stop` before each."""
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
    """Whether any process should stop: all of them must leave at the same batch."""
    if jax.process_count() == 1:
        return should_stop()
    return bool(np.any(multihost_utils.process_allgather(np.asarray(should_stop()))))


def never() -> bool:
    """The `should_stop` of a command that runs to its end."""
    return False
