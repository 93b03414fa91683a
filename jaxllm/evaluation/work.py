"""What the device has to do for a task: made from its examples once, run at every checkpoint."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence

import numpy as np

from jaxllm.errors import UserError
from jaxllm.evaluation.packing import Packed, pack
from jaxllm.evaluation.scoring import PromptBatch, Scorer
from jaxllm.evaluation.spans import Span, Tokenizer, continuations, start_token, windows
from jaxllm.evaluation.tasks import Document, Example, Prompt, Question, TaskDefinition

_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Work:
    """The batches of a task.

    Attributes:
      examples: number of examples.
      owners: int64 [S], the example of each span, ascending (empty for generation).
      scored: int64 [S], scored tokens of each span.
      truncated: bool [examples], whether its context was cut to fit.
      dropped: int64 [examples], solved examples left out of its context to make it fit.
      packed: the spans in batches; empty for generation.
      prompts: the prompts in batches; empty for scoring.
    """

    examples: int
    owners: np.ndarray
    scored: np.ndarray
    truncated: np.ndarray
    dropped: np.ndarray
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
    samples: int = 1,
) -> Work:
    """Tokenises and packs the examples of a task, each prompt as often as it is answered.

    Raises:
      UserError: there are none, or they cannot fit the context length.
    """
    if not examples:
        raise UserError(f"task {task.name} has no examples")
    spans: list[list[Span]] = []
    asked: list[list[int]] = []
    dropped: list[int] = []
    length = scorer.max_length
    if task.kind == "generation":
        room = length - task.max_new_tokens
        if room < 1:
            raise UserError(
                f"task {task.name}: {task.max_new_tokens} new tokens leave no room for a prompt "
                f"in a context of {length}"
            )
        for example in examples:
            assert isinstance(example, Prompt)
            tokens, left_out = prompt_tokens(example, vocabulary, room)
            asked.append(tokens)
            dropped.append(left_out)
        truncated = np.asarray([len(tokens) > room for tokens in asked])
        asked = [tokens[-room:] for tokens in asked]
    else:
        try:
            for example in examples:
                group, left_out = spans_of(example, vocabulary, length)
                spans.append(group)
                dropped.append(left_out)
        except ValueError as error:
            raise UserError(f"task {task.name}: {error}") from error
        truncated = np.asarray([any(span.truncated for span in group) for group in spans])
    flat = [span for group in spans for span in group]
    work = Work(
        examples=len(examples),
        owners=np.repeat(np.arange(len(spans)), [len(group) for group in spans]),
        scored=np.asarray([span.scored for span in flat], np.int64),
        truncated=truncated,
        dropped=np.asarray(dropped, np.int64),
        packed=pack(flat, lengths=scorer.row_lengths, tokens_per_batch=scorer.tokens_per_batch),
        prompts=scorer.prompt_batches([tokens for tokens in asked for _ in range(samples)]),
    )
    _log.info(
        "task %s: %d examples, %.0f %% padding, %.0f %% of the tokens shared",
        task.name, len(examples), 100 * work.padding, 100 * work.packed.sharing,
    )  # fmt: skip
    if work.dropped.any():
        _log.warning(
            "task %s: %d of %d contexts hold fewer than %d solved examples, to fit %d tokens",
            task.name, np.count_nonzero(work.dropped), len(examples), task.shots, length,
        )  # fmt: skip
    if truncated.any():
        _log.warning(
            "task %s: %d of %d contexts do not fit %d tokens and are cut on the left",
            task.name, truncated.sum(), len(examples), length,
        )  # fmt: skip
    return work


def spans_of(example: Example, vocabulary: Tokenizer, max_length: int) -> tuple[list[Span], int]:
    """The spans of an example, and how many of its shots they leave out.

    One span for each option, one for a cloze, or a document's windows. Solved examples are left
    out from the left, whole, until all options fit; a question that does not fit without any is
    cut on the left.
    """
    if isinstance(example, Document):
        return list(windows(vocabulary, example.text, max_length)), 0
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


def prompt_tokens(example: Prompt, vocabulary: Tokenizer, room: int) -> tuple[list[int], int]:
    """What generation starts from, and how many shots it leaves out to fit `room` tokens.

    A space at the end would be half of the next token, so it is not read.
    """
    for dropped in range(len(example.shots) + 1):
        text = (_before(example, dropped) + example.context).rstrip(" ")
        tokens = [start_token(vocabulary), *vocabulary.encode(text)]
        if len(tokens) <= room:
            break
    return tokens, dropped


def _before(example: Question, dropped: int) -> str:
    return example.preamble + "".join(example.shots[dropped:])
