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

from jaxllm.evaluation.packing import Packed, row_lengths
from jaxllm.models.batch import TreeBatch
from jaxllm.models.config import ModelConfig
from jaxllm.models.decoder import Params
from jaxllm.models.generation import generate
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
        self._generate = jax.jit(
            self._traced_generate, static_argnums=(3, 4), out_shardings=replicated(mesh)
        )

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
        max_new_tokens: int,
        stop_ids: tuple[int, ...],
        should_stop: ShouldStop,
    ) -> list[list[int]]:
        """Greedy continuations in the order of the prompts, with the stop token where one came.

        Raises:
          Interrupted: `should_stop()` was true between two batches.
        """
        found: dict[int, list[int]] = {}
        run = lambda item: self._generate(
            params, self._on_devices(item.prompts), self._on_devices(item.lengths),
            max_new_tokens, stop_ids,
        )  # fmt: skip
        for item, tokens in _pipelined(run, batches, should_stop):
            for number, row in zip(item.numbers, np.asarray(tokens), strict=False):
                ends = np.flatnonzero(np.isin(row, stop_ids))
                found[number] = row[: ends[0] + 1 if len(ends) else None].tolist()
        return [found[number] for number in sorted(found)]

    def _traced_score(self, params: Params, batch: TreeBatch) -> tuple[jax.Array, jax.Array]:
        with partitioning(self._mesh):
            scores = score_slots(self._model, params, batch)
        return scores.log_likelihood, scores.correct

    def _traced_generate(
        self,
        params: Params,
        prompts: jax.Array,
        lengths: jax.Array,
        max_new_tokens: int,
        stop_ids: tuple[int, ...],
    ) -> jax.Array:
        with partitioning(self._mesh):
            return generate(self._model, params, prompts, lengths, max_new_tokens, stop_ids)

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
