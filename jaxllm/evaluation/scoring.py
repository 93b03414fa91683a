"""Score packed spans and prompts with live, sharded parameters.

The same code scores inside the train loop and offline, on one host or many: every process iterates
over the same batches in the same order, feeds its devices their sequences, and receives the whole
result. Only per-token scores leave the devices.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from jaxllm.evaluation.inference import DecodeLoop, PromptBatch, Tokens, shard_batch
from jaxllm.evaluation.metrics import Likelihoods
from jaxllm.evaluation.packing import PackedBatch, pack, sequence_lengths
from jaxllm.evaluation.spans import Span
from jaxllm.models.batch import TreeBatch
from jaxllm.models.config import ModelConfig
from jaxllm.models.decoder import Params
from jaxllm.models.scoring import score_targets
from jaxllm.sharding.rules import partitioning, replicated

ShouldStop = Callable[[], bool]
SHORTEST = 128  # sequence length


class Interrupted(Exception):
    """Raised when the run is stopped during an evaluation."""


class Scorer:
    """Compiled scoring and generation for one model on one mesh.

    Args:
      model: the model; its `max_length` bounds the span length.
      mesh: mesh of the parameters.
      tokens_per_batch: positions of a batch, rounded up to a number of sequences of `max_length`
        that is divisible by the mesh.
      shortest: see `packing.sequence_lengths`.
    """

    def __init__(
        self, model: ModelConfig, mesh: Mesh, tokens_per_batch: int, shortest: int = SHORTEST
    ):
        multiple = mesh.shape["data"] * mesh.shape["fsdp"] * model.max_length
        self.tokens_per_batch = -(-tokens_per_batch // multiple) * multiple
        self.max_length, self.vocab_size = model.max_length, model.vocab_size
        self.lengths = sequence_lengths(model.max_length, shortest)
        self._model, self._mesh = model, mesh
        self._score = jax.jit(self._traced_score, out_shardings=replicated(mesh))
        self.decode_loop = DecodeLoop(model, mesh)

    def pack(self, spans: Sequence[Span]) -> tuple[PackedBatch, ...]:
        """Pack `spans` for `score`; see `packing.pack`."""
        return pack(spans, lengths=self.lengths, tokens_per_batch=self.tokens_per_batch)

    def score(
        self, params: Params, batches: Sequence[PackedBatch], should_stop: ShouldStop
    ) -> Likelihoods:
        """Score every span of `batches`; sums are float64, so packing order does not matter.

        Raises:
          Interrupted: `should_stop()` was true between two batches.
        """
        count = sum(len(batch.spans) for batch in batches)
        log_likelihood, greedy = np.full(count, np.nan), np.zeros(count, bool)
        tokens = np.zeros(count, np.int64)
        for batch, (scores, correct) in self._scored_batches(params, batches, should_stop):
            # reduceat gives the sum of [start, end) at even indices and that of the gap at odd
            # ones; the appended zero makes the last `end` a valid index.
            bounds = np.stack([batch.starts, batch.ends], axis=1).ravel()
            padded = np.append(np.asarray(scores, np.float64).ravel(), 0.0)
            log_likelihood[batch.spans] = np.add.reduceat(padded, bounds)[::2]
            right = np.append(np.asarray(correct).ravel(), True)
            greedy[batch.spans] = np.logical_and.reduceat(right, bounds)[::2]
            tokens[batch.spans] = batch.ends - batch.starts
        return Likelihoods(log_likelihood, tokens, greedy)

    def _scored_batches(
        self, params: Params, batches: Sequence[PackedBatch], should_stop: ShouldStop
    ) -> Iterator[tuple[PackedBatch, Any]]:
        """Yield each batch with its scores, keeping the devices one batch ahead of the host."""
        waiting: list[tuple[PackedBatch, Any]] = []
        for batch in batches:
            check_interrupt(should_stop)
            arrays = jax.tree.map(lambda x: shard_batch(self._mesh, x), batch.batch)
            waiting.append((batch, self._score(params, arrays)))
            if len(waiting) > 1:
                yield waiting.pop(0)
        yield from waiting

    def _traced_score(self, params: Params, batch: TreeBatch) -> tuple[jax.Array, jax.Array]:
        with partitioning(self._mesh):
            scores = score_targets(self._model, params, batch)
        return scores.log_likelihood, scores.correct

    def prompt_batches(self, prompts: Sequence[Tokens]) -> tuple[PromptBatch, ...]:
        """Batch prompts by length: a few fixed widths, `tokens_per_batch` positions each."""
        batches = []
        order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
        while order:
            width = next(size for size in self.lengths if size >= len(prompts[order[0]]))
            rows = self.tokens_per_batch // width
            numbers = [i for i in order[:rows] if len(prompts[i]) <= width]
            order = order[len(numbers) :]
            batches.append(PromptBatch.of(prompts, numbers, rows, width))
        return tuple(batches)


def check_interrupt(should_stop: ShouldStop) -> None:
    """Raise Interrupted if any process should stop: all of them must leave at the same batch."""
    stop = should_stop()
    if jax.process_count() > 1:
        stop = bool(np.any(multihost_utils.process_allgather(np.asarray(stop))))
    if stop:
        raise Interrupted


def never() -> bool:
    """The `should_stop` of a command that runs to its end."""
    return False
