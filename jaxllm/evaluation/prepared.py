"""Device batches of a task, prepared once from its examples, and model outputs for them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from jaxllm.errors import UserError
from jaxllm.evaluation.inference import Decoding
from jaxllm.evaluation.metrics import Likelihoods, Texts
from jaxllm.evaluation.scoring import Scorer, ShouldStop, check_interrupt, never
from jaxllm.evaluation.spans import Span, Tokenizer, prompt_span, scored_spans
from jaxllm.evaluation.tasks import Example, TaskDefinition
from jaxllm.models.decoder import Params
from jaxllm.models.sampling import GREEDY, Sampling

Tokenize = Callable[[Any, Tokenizer, int], tuple[list[Span], int]]
TOP_P = 0.95  # of several answers to an example
SEED = 0  # of sampling keys, beside the indices of the example and of the answer


@dataclasses.dataclass(frozen=True)
class PreparedTask:
    """A task in device batches.

    Attributes:
      definition: the task.
      examples: its n examples.
      example_index: int64 [S], the example of each span, ascending.
      truncated: bool [n], whether the example was truncated to fit the context length.
      shots_dropped: int64 [n], number of few-shot examples dropped to make it fit.
      batches: `PackedBatch`es of the spans, or `PromptBatch`es for generation.
    """

    definition: TaskDefinition
    examples: Sequence[Example]
    example_index: np.ndarray
    truncated: np.ndarray
    shots_dropped: np.ndarray
    batches: tuple[Any, ...]

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


@dataclasses.dataclass(frozen=True)
class TaskRunner:
    """Prepare tasks for one model, and compute its outputs for them.

    Attributes:
      scorer: scorer of the model on its mesh.
      vocabulary: the model's vocabulary.
      samples: answers per example of a task that executes code.
      temperature: sampling temperature of several answers.
    """

    scorer: Scorer
    vocabulary: Tokenizer
    samples: int = 1
    temperature: float = 0.8

    def prepare(self, task: TaskDefinition, examples: Sequence[Example]) -> PreparedTask:
        """Tokenize and pack the examples of a task, with a copy of each prompt per answer.

        Raises:
          UserError: there are no examples, no room for an answer, or token ids outside the model's
            vocabulary.
        """
        if not examples:
            raise UserError(f"task {task.name} has no examples")
        room = self.scorer.max_length - task.max_new_tokens
        if room < 1:
            raise UserError(
                f"task {task.name}: {task.max_new_tokens} new tokens leave no room for a prompt "
                f"in a context of {self.scorer.max_length}"
            )
        generated = task.kind == "generation"
        batches: tuple[Any, ...]
        tokenize: Tokenize = prompt_span if generated else scored_spans
        groups, dropped = zip(*(tokenize(e, self.vocabulary, room) for e in examples), strict=True)
        spans = [span for group in groups for span in group]
        self._check_ids(task, np.concatenate([span.tokens for span in spans]))
        if generated:
            _check_primary_metric(task, examples[0])
            answers = range(self._answers(task))
            batches = self.scorer.prompt_batches([span.tokens for span in spans for _ in answers])
        else:
            batches = self.scorer.pack(spans)
        return PreparedTask(
            definition=task,
            examples=examples,
            example_index=np.repeat(np.arange(len(groups)), [len(group) for group in groups]),
            truncated=np.asarray([any(span.truncated for span in group) for group in groups]),
            shots_dropped=np.asarray(dropped, np.int64),
            batches=batches,
        )

    def run(
        self, params: Params, prepared: PreparedTask, should_stop: ShouldStop = never
    ) -> Likelihoods | Texts:
        """Compute the model's outputs for every example of a task.

        Raises:
          Interrupted: `should_stop()` was true between two batches.
          UserError: a log-likelihood is not finite.
        """
        if prepared.definition.kind == "generation":
            return self._generate(params, prepared, should_stop)
        spans = self.scorer.score(params, prepared.batches, should_stop)
        index, count = prepared.example_index, len(prepared.examples)
        _check_finite(prepared, spans.log_likelihood)
        if prepared.definition.kind == "multiple_choice":
            column = np.arange(len(index)) - np.searchsorted(index, np.arange(count))[index]
            shape = (count, int(column.max()) + 1)
            log_likelihood, tokens = np.full(shape, np.nan), np.zeros(shape, np.int64)
            log_likelihood[index, column] = spans.log_likelihood
            tokens[index, column] = spans.tokens
        else:
            log_likelihood = np.bincount(index, spans.log_likelihood, count)
            tokens = np.bincount(index, spans.tokens, count).astype(np.int64)
        greedy = np.bincount(index, ~spans.greedy, count) == 0
        return Likelihoods(log_likelihood, tokens, greedy)

    def _generate(self, params: Params, prepared: PreparedTask, should_stop: ShouldStop) -> Texts:
        """The answers to each example."""
        task = prepared.definition
        answers = self._answers(task)
        decoding = Decoding(
            self.vocabulary,
            task.max_new_tokens,
            task.stop,
            GREEDY if answers == 1 else Sampling(self.temperature, top_p=TOP_P),
            lambda number: (SEED, *divmod(number, answers)),
        )
        texts = self.scorer.decode_loop.generate(
            params, prepared.batches, decoding, lambda: check_interrupt(should_stop)
        )
        return [texts[first : first + answers] for first in range(0, len(texts), answers)]

    def _answers(self, task: TaskDefinition) -> int:
        """Number of generated answers per example."""
        return self.samples if task.runs_code else 1

    def _check_ids(self, task: TaskDefinition, ids: np.ndarray) -> None:
        """Raise UserError for a token id without an embedding in the model."""
        size = self.scorer.vocab_size
        unknown = ids[(ids < 0) | (ids >= size)]
        if unknown.size:
            raise UserError(
                f"task {task.name}: the vocabulary gives token id {unknown[0]}, and the model has "
                f"{size} (ModelConfig.vocab_size)"
            )


def _check_finite(prepared: PreparedTask, log_likelihood: np.ndarray) -> None:
    """Raise UserError for log-likelihoods that are NaN or infinite."""
    wrong = np.unique(prepared.example_index[~np.isfinite(log_likelihood)])
    if wrong.size:
        first = prepared.examples[wrong[0]].id or wrong[0]
        raise UserError(
            f"log-likelihoods of {wrong.size} of {len(prepared.examples)} examples are not finite, "
            f"first of example {first}: the model's activations overflow or its parameters are NaN"
        )


def _check_primary_metric(task: TaskDefinition, example: Any) -> None:
    """Raise UserError if `task.score` does not return the primary metric."""
    if task.runs_code:  # scoring would execute programs; the metric is pass@k
        return
    metrics = tuple(task.score("", example))
    if task.primary_metric not in metrics:
        raise UserError(
            f"task {task.name}: primary_metric {task.primary_metric!r} is not one of "
            f"{', '.join(metrics) or 'its (no) metrics'}"
        )
