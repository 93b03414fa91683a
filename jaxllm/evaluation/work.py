"""What the device has to do for a task: made from its examples once, run at every checkpoint."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence

import numpy as np

from jaxllm.errors import UserError
from jaxllm.evaluation.packing import Packed, pack
from jaxllm.evaluation.scoring import PromptBatch, Scorer
from jaxllm.evaluation.spans import Span, Tokenizer, continuation, start_token, windows
from jaxllm.evaluation.tasks import Choice, Document, Example, Prompt, TaskDefinition

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Work:
    """The batches of a task.

    Attributes:
      examples: number of examples.
      owners: int64 [S], the example of each span, ascending (empty for generation).
      scored: int64 [S], scored tokens of each span.
      truncated: bool [examples], whether its context was cut to fit.
      packed: the spans in batches; empty for generation.
      prompts: the prompts in batches; empty for scoring.
    """

    examples: int
    owners: np.ndarray
    scored: np.ndarray
    truncated: np.ndarray
    packed: Packed
    prompts: tuple[PromptBatch, ...]

    @property
    def padding(self) -> float:
        """Share of the computed positions that holds no token."""
        if not self.prompts:
            return self.packed.padding
        used = sum(int(b.lengths[: len(b.numbers)].sum()) for b in self.prompts)
        return 1 - used / sum(b.prompts.size for b in self.prompts)


def prepare(
    task: TaskDefinition,
    examples: Sequence[Example],
    vocabulary: Tokenizer,
    scorer: Scorer,
) -> Work:
    """Tokenises and packs the examples of a task.

    Raises:
      UserError: there are none, or they cannot fit the context length.
    """
    if not examples:
        raise UserError(f"task {task.name} has no examples")
    spans: list[list[Span]] = []
    prompts: tuple[PromptBatch, ...] = ()
    length = scorer.max_length
    if task.kind == "exact_match":
        asked = [prompt_tokens(e, vocabulary) for e in examples if isinstance(e, Prompt)]
        room = length - task.max_new_tokens
        if room < 1:
            raise UserError(
                f"task {task.name}: {task.max_new_tokens} new tokens leave no room for a prompt "
                f"in a context of {length}"
            )
        truncated = np.asarray([len(tokens) > room for tokens in asked])
        prompts = scorer.prompt_batches([tokens[-room:] for tokens in asked])
    else:
        try:
            spans = [spans_of(example, vocabulary, length) for example in examples]
        except ValueError as error:
            raise UserError(f"task {task.name}: {error}") from error
        truncated = np.asarray([any(span.truncated for span in group) for group in spans])
    flat = [span for group in spans for span in group]
    work = Work(
        examples=len(examples),
        owners=np.repeat(np.arange(len(spans)), [len(group) for group in spans]),
        scored=np.asarray([span.scored for span in flat], np.int64),
        truncated=truncated,
        packed=pack(flat, lengths=scorer.row_lengths, tokens_per_batch=scorer.tokens_per_batch),
        prompts=prompts,
    )
    _log.info("task %s: %d examples, %.0f %% padding", task.name, len(examples), 100 * work.padding)
    if truncated.any():
        _log.warning(
            "task %s: %d of %d contexts do not fit %d tokens and are cut on the left",
            task.name, truncated.sum(), len(examples), length,
        )  # fmt: skip
    return work


def spans_of(example: Example, vocabulary: Tokenizer, max_length: int) -> list[Span]:
    """The spans of an example: one for each option, one for a cloze, or a document's windows."""
    if isinstance(example, Document):
        return list(windows(vocabulary, example.text, max_length))
    texts = example.options if isinstance(example, Choice) else example.targets[:1]
    return [continuation(vocabulary, example.context, text, max_length) for text in texts]


def prompt_tokens(example: Prompt, vocabulary: Tokenizer) -> list[int]:
    """What generation starts from; a space at the end would be half of the next token."""
    return [start_token(vocabulary), *vocabulary.encode(example.context.rstrip(" "))]
