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

from jaxllm.evaluation.inference import Continuer, Detokenizer, Text, end_ids
from jaxllm.evaluation.packing import Packed, row_lengths
from jaxllm.evaluation.spans import Tokenizer
from jaxllm.models.batch import TreeBatch
from jaxllm.models.config import ModelConfig
from jaxllm.models.decoder import Params
from jaxllm.models.sampling import GREEDY, Sampling
from jaxllm.models.scoring import score_slots
from jaxllm.sharding.rules import batch_sharding, partitioning, replicated

In = TypeVar("In")
Out = TypeVar("Out")
ShouldStop = Callable[[], bool]


class Interrupted(Exception):
    """The run has been asked to stop in the middle of an evaluation."""


@dataclasses.dataclass(frozen=True)
class SpanScores:
    """What the model thought of each span.

    Attributes:
      log_likelihood: float64 [S], the sum of log p over the scored targets, in nats.
      greedy: bool [S], whether every scored target was the model's first choice.
    """

    log_likelihood: np.ndarray
    greedy: np.ndarray


@dataclasses.dataclass(frozen=True)
class PromptBatch:
    """Prompts of one device batch: int32 [rows, width] padded on the right, and int32 [rows]."""

    prompts: np.ndarray
    lengths: np.ndarray
    numbers: Sequence[int]


class Scorer:
    """Compiled scoring and generation for one model on one mesh.

    Args:
      model: the model; `model.max_length` is the longest span.
      mesh: where the parameters live.
      rows_per_batch: rows of `max_length` in a batch, rounded up to what the mesh divides.
      shortest_row: see `packing.row_lengths`.
    """

    def __init__(self, model: ModelConfig, mesh: Mesh, rows_per_batch: int, shortest_row: int):
        shards = mesh.shape["data"] * mesh.shape["fsdp"]
        rows = -(-rows_per_batch // shards) * shards
        self.max_length = model.max_length
        self.row_lengths = row_lengths(model.max_length, shortest_row)
        self.tokens_per_batch = rows * model.max_length
        self._model, self._mesh = model, mesh
        self._score = jax.jit(self._traced_score, out_shardings=replicated(mesh))
        self._continuer = Continuer(model, mesh)

    def score(self, params: Params, packed: Packed, should_stop: ShouldStop) -> SpanScores:
        """Scores every span of `packed`; sums are float64, so packing order does not show.

        Raises:
          Interrupted: `should_stop()` was true between two batches.
        """
        log_likelihood = np.full(packed.num_spans, np.nan)
        greedy = np.zeros(packed.num_spans, bool)
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
            tokens, lengths = np.zeros((rows, width), np.int32), np.ones(rows, np.int32)
            for row, number in enumerate(members):
                lengths[row] = len(prompts[number])
                tokens[row, : lengths[row]] = prompts[number]
            batches.append(PromptBatch(tokens, lengths, members))
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
        found: dict[int, str] = {}
        ends = end_ids(vocabulary)
        for batch in batches:
            if _any_process(should_stop):
                raise Interrupted
            contexts = [
                row[1:length].tolist()
                for row, length in zip(batch.prompts, batch.lengths, strict=True)
            ]
            texts = [
                Text(Detokenizer(vocabulary, context), stop, ends)
                for context in contexts[: len(batch.numbers)]
            ]
            for _ in self._continuer.run(
                params, batch.prompts, batch.lengths, texts, max_new_tokens, ends, sampling,
                [seeds(number) for number in batch.numbers],
            ):  # fmt: skip
                pass
            found |= {n: text.text for n, text in zip(batch.numbers, texts, strict=True)}
        return [found[number] for number in sorted(found)]

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
