"""Device batches of a task, prepared once from its examples, and model outputs for them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence

import numpy as np

from jaxllm.errors import UserError
from jaxllm.evaluation.inference import PromptBatch
from jaxllm.evaluation.metrics import Likelihoods, Texts
from jaxllm.evaluation.packing import Packed
from jaxllm.evaluation.scoring import Scorer, ShouldStop, never
from jaxllm.evaluation.spans import (
    Span,
    Tokenizer,
    continuations,
    rolling_windows,
    start_token,
)
from jaxllm.evaluation.tasks import Document, Example, Prompt, Question, TaskDefinition
from jaxllm.models.decoder import Params
from jaxllm.models.sampling import GREEDY, Sampling

NUCLEUS = 0.95
SEED = 0  # of sampling keys, beside the indices of the example and of the answer


@dataclasses.dataclass(frozen=True)
class PreparedTask:
    """A task in device batches.

    Attributes:
      definition: the task.
      examples: its n examples.
      example_index: int64 [S], the example of each span, ascending; empty for generation.
      scored: int64 [S], number of scored tokens of each span.
      truncated: bool [n], whether the example was truncated to fit the context length.
      shots_dropped: int64 [n], number of few-shot examples dropped to make it fit.
      packed: the packed spans; empty for generation.
      prompts: the batched prompts; empty for scoring.
    """

    definition: TaskDefinition
    examples: Sequence[Example]
    example_index: np.ndarray
    scored: np.ndarray
    truncated: np.ndarray
    shots_dropped: np.ndarray
    packed: Packed
    prompts: tuple[PromptBatch, ...]

    @property
    def padding(self) -> float:
        """Fraction of the computed positions without a token."""
        if not self.prompts:
            return self.packed.padding
        used = sum(int(b.lengths[: len(b.numbers)].sum()) for b in self.prompts)
        return 1 - used / sum(b.prompts.size for b in self.prompts)

    @property
    def sequences(self) -> int:
        """Number of sequences in all device batches."""
        packed = sum(len(batch.batch.inputs) for batch in self.packed.batches)
        return packed + sum(len(batch.prompts) for batch in self.prompts)

    @property
    def positions(self) -> int:
        """Upper bound of the token positions that the model computes for all sequences."""
        new = self.definition.max_new_tokens
        return self.packed.slots + sum(
            batch.prompts.size + len(batch.prompts) * new for batch in self.prompts
        )


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
        if task.kind == "generation":
            return self._prepare_prompts(task, examples)
        groups, dropped = zip(
            *(spans_of(e, self.vocabulary, self.scorer.max_length) for e in examples), strict=True
        )
        spans = [span for group in groups for span in group]
        self._check_ids(task, (span.tokens for span in spans))
        return PreparedTask(
            definition=task,
            examples=examples,
            example_index=np.repeat(np.arange(len(groups)), [len(group) for group in groups]),
            scored=np.asarray([span.scored for span in spans], np.int64),
            truncated=np.asarray([any(span.truncated for span in group) for group in groups]),
            shots_dropped=np.asarray(dropped, np.int64),
            packed=self.scorer.pack(spans),
            prompts=(),
        )

    def run(
        self, params: Params, prepared: PreparedTask, should_stop: ShouldStop = never
    ) -> Likelihoods | Texts:
        """Compute the model's outputs for every example of a task.

        Raises:
          Interrupted: `should_stop()` was true between two batches.
          UserError: a log-likelihood is not finite.
        """
        if prepared.prompts:
            return self._answers(params, prepared, should_stop)
        scores = self.scorer.score(params, prepared.packed, should_stop)
        index, count = prepared.example_index, len(prepared.examples)
        _check_finite(prepared, scores.log_likelihood)
        if prepared.definition.kind == "multiple_choice":
            column = np.arange(len(index)) - np.searchsorted(index, np.arange(count))[index]
            shape = (count, int(column.max()) + 1)
            log_likelihood, tokens = np.full(shape, np.nan), np.zeros(shape, np.int64)
            log_likelihood[index, column] = scores.log_likelihood
            tokens[index, column] = prepared.scored
        else:
            log_likelihood = np.bincount(index, scores.log_likelihood, count)
            tokens = np.bincount(index, prepared.scored, count).astype(np.int64)
        greedy = np.bincount(index, ~scores.greedy, count) == 0
        return Likelihoods(log_likelihood, tokens, greedy)

    def _prepare_prompts(self, task: TaskDefinition, examples: Sequence[Example]) -> PreparedTask:
        room = self.scorer.max_length - task.max_new_tokens
        if room < 1:
            raise UserError(
                f"task {task.name}: {task.max_new_tokens} new tokens leave no room for a prompt "
                f"in a context of {self.scorer.max_length}"
            )
        prompts, dropped = zip(
            *(prompt_tokens(e, self.vocabulary, room) for e in examples), strict=True
        )
        self._check_ids(task, prompts)
        _check_primary_metric(task, examples[0])
        answers = self._answers_per_example(task)
        cut = [tokens[-room:] for tokens in prompts for _ in range(answers)]
        return PreparedTask(
            definition=task,
            examples=examples,
            example_index=np.zeros(0, np.int64),
            scored=np.zeros(0, np.int64),
            truncated=np.asarray([len(tokens) > room for tokens in prompts]),
            shots_dropped=np.asarray(dropped, np.int64),
            packed=self.scorer.pack([]),
            prompts=self.scorer.prompt_batches(cut),
        )

    def _answers(self, params: Params, prepared: PreparedTask, should_stop: ShouldStop) -> Texts:
        task, answers = prepared.definition, self._answers_per_example(prepared.definition)
        texts = self.scorer.generate(
            params,
            prepared.prompts,
            self.vocabulary,
            task.max_new_tokens,
            task.stop,
            should_stop,
            GREEDY if answers == 1 else Sampling(self.temperature, top_p=NUCLEUS),
            lambda number: (SEED, *divmod(number, answers)),
        )
        return [texts[n : n + answers] for n in range(0, len(texts), answers)]

    def _answers_per_example(self, task: TaskDefinition) -> int:
        return self.samples if task.runs_code else 1

    def _check_ids(self, task: TaskDefinition, texts: Iterable[Sequence[int] | np.ndarray]) -> None:
        """Raise UserError for a token id without an embedding in the model."""
        ids, size = np.concatenate([np.asarray(tokens) for tokens in texts]), self.scorer.vocab_size
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


def _check_primary_metric(task: TaskDefinition, example: Example) -> None:
    """Raise UserError if `task.score` does not return the primary metric."""
    assert isinstance(example, Prompt)
    if task.runs_code:  # scoring would execute programs; the metric is pass@k
        return
    metrics = tuple(task.score("", example))
    if task.primary_metric not in metrics:
        raise UserError(
            f"task {task.name}: primary_metric {task.primary_metric!r} is not one of "
            f"{', '.join(metrics) or 'its (no) metrics'}"
        )


def spans_of(example: Example, vocabulary: Tokenizer, max_length: int) -> tuple[list[Span], int]:
    """The spans of an example, and the number of dropped few-shot examples.

    One span for each option, one for a cloze, or a document's rolling windows. Whole few-shot
    examples are dropped from the left until all options fit; a question that still does not fit is
    truncated on the left.
    """
    if isinstance(example, Document):
        return list(rolling_windows(vocabulary, example.text, max_length)), 0
    for dropped in range(len(example.shots) + 1):
        before = _before(example, dropped)
        if isinstance(example, Prompt):
            asked = [(example.context, example.targets[:1])]
        elif example.contexts:
            pairs = zip(example.contexts, example.options, strict=True)
            asked = [(context, (option,)) for context, option in pairs]
        else:
            asked = [(example.context, example.options)]
        spans = [
            span
            for context, texts in asked
            for span in continuations(vocabulary, before + context, texts, max_length)
        ]
        if not any(span.truncated for span in spans):
            break
    return spans, dropped


def prompt_tokens(example: Example, vocabulary: Tokenizer, room: int) -> tuple[list[int], int]:
    """The tokens of a prompt, and the number of few-shot examples dropped to fit `room` tokens.

    Trailing spaces are stripped, because a space belongs to the token that follows it.
    """
    assert isinstance(example, Prompt)
    for dropped in range(len(example.shots) + 1):
        text = (_before(example, dropped) + example.context).rstrip(" ")
        tokens = [start_token(vocabulary), *vocabulary.encode(text)]
        if len(tokens) <= room:
            break
    return tokens, dropped


def _before(example: Question, dropped: int) -> str:
    return example.description + "".join(example.shots[dropped:])
