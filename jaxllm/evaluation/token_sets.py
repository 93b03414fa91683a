"""Token sets: the first tokens of held-out documents, each with its place in the text."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

from jaxllm.errors import UserError
from jaxllm.evaluation.inference import UNFINISHED
from jaxllm.evaluation.selection import SelectedTask
from jaxllm.evaluation.spans import Tokenizer
from jaxllm.evaluation.tasks import Document, Example
from jaxllm.run.token_losses import TokenSet

CHARACTERS = 32  # of a document are tokenized for each token


def read_examples(
    task: SelectedTask, vocabulary: Tokenizer
) -> tuple[Sequence[Example], TokenSet | None]:
    """The examples of a task; for a token set, the documents of its tokens, and the set."""
    examples, limit = task.read_examples(), task.max_tokens
    if limit is None:
        return examples, None
    before = list(vocabulary.encode("a"))  # because decoders strip a space at the start
    skip = len(vocabulary.decode(before))
    text_of = functools.cache(lambda *ids: vocabulary.decode([*before, *ids])[skip:])
    documents, ends = list[Document](), list[list[int]]()
    for document in examples:
        assert isinstance(document, Document)
        if document.context or document.noise:
            lost = "prompts or noise, which a token set would lose: name it in EvalConfig.tasks"
            raise UserError(f"token set {task.definition.name}: its texts have {lost}")
        ids = tuple(vocabulary.encode(document.text[: CHARACTERS * limit])[:limit])
        text, of_tokens = locate(ids, text_of)
        if text.startswith(" ") and not document.text.startswith(text):  # added by the encoder
            text, of_tokens = text[1:], [end - 1 for end in of_tokens]
        documents.append(Document(text, document.id, ids))
        ends.append(of_tokens)
    texts = [document.text for document in documents]
    return documents, TokenSet.of(task.definition.name, texts, [d.ids for d in documents], ends)


def locate(ids: Sequence[int], text_of: Callable[..., str]) -> tuple[str, list[int]]:
    """The text of tokens, and the UTF-8 byte offset in it at which each of them ends.

    `text_of` decodes a few. A token that ends within a character is taken to end before it.
    """
    parts, size, ends, pending = list[str](), 0, list[int](), list[int]()
    for token in ids:
        pending.append(token)
        text = text_of(*pending)
        complete, unfinished, _ = text.partition(UNFINISHED)
        ends.append(size + len(complete.encode()))
        if not unfinished or len(pending) == 8:  # more than a character has
            parts.append(text)
            ends[-1] = size = size + len(text.encode())
            pending.clear()
    return "".join(parts) + (complete if pending else ""), ends
