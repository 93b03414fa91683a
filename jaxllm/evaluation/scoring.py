"""Score tasks with live, sharded parameters: log-likelihoods of packed spans, or generated answers.

The same code scores inside the train loop and offline, on one host or many: every process iterates
over the same batches in the same order, feeds its devices their sequences, and receives the whole
result. Only per-token scores leave the devices.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from jaxllm.errors import UserError
from jaxllm.evaluation.inference import (
    DecodeLoop,
    Decoding,
    PromptBatch,
    Tokens,
    shard_batch,
)
from jaxllm.evaluation.metrics import Likelihoods, Outputs, Texts
from jaxllm.evaluation.packing import PackedBatch, pack, sequence_lengths
from jaxllm.evaluation.spans import Span, Tokenizer, prompt_span, scored_spans
from jaxllm.evaluation.tasks import Example, TaskDefinition
from jaxllm.evaluation.training_data import context_span, training_spans
from jaxllm.models.batch import TreeBatch
from jaxllm.models.config import ModelConfig
from jaxllm.models.decoder import Params
from jaxllm.models.sampling import GREEDY, Sampling
from jaxllm.models.scoring import score_targets
from jaxllm.runtime import on_any_process
from jaxllm.sharding.rules import partitioning, replicated

ShouldStop = Callable[[], bool]
Tokenize = Callable[[Any, Tokenizer, int], tuple[list[Span], int]]
SHORTEST = 128  # sequence length
TOKENIZE: Mapping[str, Tokenize] = {
    "generation": prompt_span, "memorization": context_span, "training_loss": training_spans,
}  # fmt: skip
TOP_P = 0.95  # of several answers to an example
SEED = 0  # of sampling keys, beside the indices of the example and of the answer


class Interrupted(Exception):
    """Raised when the run is stopped during an evaluation."""


def never() -> bool:
    """The `should_stop` of a command that runs to its end."""
    return False


@dataclasses.dataclass(frozen=True)
class PreparedTask:
    """A task in device batches."""

    definition: TaskDefinition  # the task
    examples: Sequence[Example]  # its n examples
    example_index: np.ndarray  # int64 [S], the example of each span, ascending
    part: np.ndarray  # int64 [S], which of its example's sums each counts towards
    truncated: np.ndarray  # bool [n], whether the example was truncated to fit the context length
    shots_dropped: np.ndarray  # int64 [n], number of few-shot examples dropped to make it fit
    unigram: Likelihoods | None  # of the spans, see `unigram`; None unless all metrics are of these
    batches: tuple[Any, ...]  # `PackedBatch`es of the spans, or `PromptBatch`es for generation

    @property
    def shapes(self) -> list[tuple[int, int]]:
        """Sequences and their length in each device batch, new tokens included."""
        new = self.definition.max_new_tokens
        return [(batch.shape[0], batch.shape[1] + new) for batch in self.batches]

    @property
    def padding(self) -> float:
        """Fraction of the encoded positions without a token."""
        positions = sum(batch.shape[0] * batch.shape[1] for batch in self.batches)
        return 1 - sum(batch.tokens for batch in self.batches) / positions

    def by_example(self, spans: Likelihoods) -> Likelihoods:
        """The likelihoods of the examples from those of the spans, [S].

        They are [n], [n, options], or [n, parts] where a document has several.
        """
        index, count = self.example_index, len(self.examples)
        choices, part = self.definition.kind == "multiple_choice", self.part
        if choices:
            part = np.arange(len(index)) - np.searchsorted(index, np.arange(count))[index]
        shape = (count, int(part.max()) + 1)
        log_likelihood, tokens = np.zeros(shape), np.zeros(shape, np.int64)
        np.add.at(log_likelihood, (index, part), spans.log_likelihood)
        np.add.at(tokens, (index, part), spans.tokens)
        if choices:
            log_likelihood[tokens == 0] = np.nan
        elif shape[1] == 1:
            log_likelihood, tokens = log_likelihood[:, 0], tokens[:, 0]
        greedy = np.bincount(index, ~spans.greedy, count) == 0
        return Likelihoods(log_likelihood, tokens, greedy, spans.each)


class Scorer:
    """Preparation, scoring and generation of tasks for one model on one mesh.

    `tokens_per_batch`, positions, is rounded up to a number of sequences of the model's
    `max_length`, which bounds spans, that is divisible by the mesh. A task that executes code has
    `samples` answers per example. `shortest` is as in `packing.sequence_lengths`.
    """

    def __init__(
        self,
        model: ModelConfig,
        mesh: Mesh,
        vocabulary: Tokenizer,
        tokens_per_batch: int,
        samples: int = 1,
        temperature: float = 0.8,
        shortest: int = SHORTEST,
    ):
        multiple = mesh.shape["data"] * mesh.shape["fsdp"] * model.max_length
        self.tokens_per_batch = -(-tokens_per_batch // multiple) * multiple
        self.lengths = sequence_lengths(model.max_length, shortest)
        self._model, self._mesh, self._vocabulary = model, mesh, vocabulary
        self._samples, self._temperature = samples, temperature
        self._score = scoring_program(model, mesh)
        self.decode_loop = DecodeLoop(model, mesh)

    def with_program(self, program: Any) -> Scorer:
        """This scorer with another `scoring_program`."""
        other = copy.copy(self)
        other._score = program
        return other

    def prepare(self, task: TaskDefinition, examples: Sequence[Example]) -> PreparedTask:
        """Tokenize and pack the examples of a task, with a copy of each prompt per answer.

        UserError if there are no examples, no room for an answer, or token ids outside the model's
        vocabulary.
        """
        if not examples:
            raise UserError(f"task {task.name} has no examples")
        room = self._model.max_length - task.max_new_tokens
        if room < 1:
            raise UserError(
                f"task {task.name}: {task.max_new_tokens} new tokens leave no room for a prompt "
                f"in a context of {self._model.max_length}"
            )
        generated = task.kind in ("generation", "memorization")
        batches: tuple[Any, ...]
        tokenize: Tokenize = TOKENIZE.get(task.kind, scored_spans)
        groups, dropped = zip(*(tokenize(e, self._vocabulary, room) for e in examples), strict=True)
        spans = [span for group in groups for span in group]
        self._check_ids(task, np.concatenate([span.tokens for span in spans]))
        if generated:
            answers = range(self._answers(task))
            batches = self.prompt_batches([span.tokens for span in spans for _ in answers])
        else:
            batches = pack(spans, lengths=self.lengths, tokens_per_batch=self.tokens_per_batch)
        return PreparedTask(
            definition=task,
            examples=examples,
            example_index=np.repeat(np.arange(len(groups)), [len(group) for group in groups]),
            part=np.asarray([span.part for span in spans], np.int64),
            truncated=np.asarray([any(span.truncated for span in group) for group in groups]),
            shots_dropped=np.asarray(dropped, np.int64),
            unigram=unigram(spans) if task.kind in ("cloze", "perplexity") else None,
            batches=batches,
        )

    def run(
        self, params: Params, prepared: PreparedTask, should_stop: ShouldStop = never
    ) -> Outputs:
        """Compute the model's outputs for every example of a task.

        Raises Interrupted if `should_stop()` was true between two batches.
        """
        if prepared.definition.kind == "generation":
            return self._generate(params, prepared, should_stop)
        if prepared.definition.kind == "memorization":
            found = np.zeros((len(prepared.examples), prepared.definition.max_new_tokens), np.int32)
            for batch in prepared.batches:
                _check_interrupt(should_stop)
                new = self.decode_loop.tokens(params, batch, found.shape[1])
                found[list(batch.numbers)] = new
            return found
        return prepared.by_example(self.score(params, prepared.batches, should_stop))

    def _generate(self, params: Params, prepared: PreparedTask, should_stop: ShouldStop) -> Texts:
        """The answers to each example."""
        task = prepared.definition
        answers = self._answers(task)
        decoding = Decoding(
            self._vocabulary,
            task.max_new_tokens,
            task.stop,
            GREEDY if answers == 1 else Sampling(self._temperature, top_p=TOP_P),
            lambda number: (SEED, *divmod(number, answers)),
        )
        texts = self.decode_loop.generate(
            params, prepared.batches, decoding, lambda: _check_interrupt(should_stop)
        )
        return [texts[first : first + answers] for first in range(0, len(texts), answers)]

    def _answers(self, task: TaskDefinition) -> int:
        """Number of generated answers per example."""
        return self._samples if task.runs_code else 1

    def _check_ids(self, task: TaskDefinition, ids: np.ndarray) -> None:
        """Raise UserError for a token id without an embedding in the model."""
        size = self._model.vocab_size
        unknown = ids[(ids < 0) | (ids >= size)]
        if unknown.size:
            raise UserError(
                f"task {task.name}: the vocabulary gives token id {unknown[0]}, and the model has "
                f"{size} (ModelConfig.vocab_size)"
            )

    def score(
        self, params: Params, batches: Sequence[PackedBatch], should_stop: ShouldStop
    ) -> Likelihoods:
        """Score every span of `batches`; sums are float64, so packing order does not matter.

        Returns Likelihoods [S]; [K, S] where `params` are those of K models. Raises Interrupted if
        `should_stop()` was true between two batches.
        """
        parts = []
        for batch, (scores, correct) in self._scored_batches(params, batches, should_stop):
            # reduceat gives the sum of [start, end) at even indices and that of the gap at odd
            # ones; the appended zero makes the last `end` a valid index.
            bounds = np.stack([batch.starts, batch.ends], axis=1).ravel()
            flat = _flat(scores, np.float64)
            sums = np.add.reduceat(flat, bounds, axis=-1)[..., ::2]
            greedy = np.logical_and.reduceat(_flat(correct, bool), bounds, axis=-1)[..., ::2]
            own = np.concatenate([np.arange(*pair) for pair in bounds.reshape(-1, 2)])
            parts.append((batch.spans, sums, batch.ends - batch.starts, greedy, flat[..., own]))
        spans, *columns = (np.concatenate(part, axis=-1) for part in zip(*parts, strict=True))
        by_span, of_token = np.argsort(spans), np.repeat(spans, columns[1])
        each = columns.pop()[..., np.argsort(of_token, kind="stable")].astype(np.float32)
        return Likelihoods(*[*(column[..., by_span] for column in columns), each])

    def _scored_batches(
        self, params: Params, batches: Sequence[PackedBatch], should_stop: ShouldStop
    ) -> Iterator[tuple[PackedBatch, Any]]:
        """Yield each batch with its scores, keeping the devices one batch ahead of the host."""
        waiting: list[tuple[PackedBatch, Any]] = []
        for batch in batches:
            _check_interrupt(should_stop)
            arrays = jax.tree.map(lambda x: shard_batch(self._mesh, x), batch.batch)
            waiting.append((batch, self._score(params, arrays)))
            if len(waiting) > 1:
                yield waiting.pop(0)
        yield from waiting

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


def unigram(spans: Sequence[Span]) -> Likelihoods:
    """The likelihoods of spans by the share of each scored token in all of them, [S].

    No other prediction without context gives them a higher total.
    """
    scored = np.asarray([span.scored for span in spans])
    targets = np.concatenate([span.tokens[-span.scored :] for span in spans])
    _, index, counts = np.unique(targets, return_inverse=True, return_counts=True)
    each, starts = np.log(counts / len(targets))[index], np.cumsum(scored) - scored
    greedy = np.logical_and.reduceat(each == each.max(), starts)
    return Likelihoods(np.add.reduceat(each, starts), scored, greedy, each)


def scoring_program(model: ModelConfig, mesh: Mesh, chunk_tokens: int | None = None) -> Any:
    """The jitted scorer: (params, `TreeBatch`) -> log-likelihoods, correct, [B, S] everywhere.

    `chunk_tokens` is `models.scoring.score_targets`'.
    """

    def score(params: Params, batch: TreeBatch) -> tuple[jax.Array, jax.Array]:
        with partitioning(mesh):
            scores = score_targets(model, params, batch, chunk_tokens)
        return scores.log_likelihood, scores.correct

    return jax.jit(score, out_shardings=replicated(mesh))


def _flat(values: Any, dtype: Any) -> np.ndarray:
    """[..., B, S] -> [..., B * S + 1], with a zero at the end."""
    array = np.asarray(values, dtype)
    flat = array.reshape(*array.shape[:-2], -1)
    return np.concatenate([flat, np.zeros_like(flat[..., :1])], axis=-1)


def _check_interrupt(should_stop: ShouldStop) -> None:
    """Raise Interrupted if any process should stop: all of them must leave at the same batch."""
    if on_any_process(should_stop()):
        raise Interrupted
