"""Bits per byte on the held-out text of a run's own corpora, as `heldout_<domain>`.

The first 16 million characters of the validation split are divided into passages of 1,024
characters, of which 128 evenly spaced ones are scored as documents: enough for a standard error
near 1.5 per cent, whatever the size of the corpus.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator

from etils import epath

from jaxllm.errors import UserError
from jaxllm.evaluation.tasks import Document, TaskDefinition, perplexity

PREFIX = "heldout_"
PASSAGE_CHARS = 1_024
PASSAGES = 128
READ_CHARS = 16_000_000
DOMAINS = {"code": "code", "math": "math"}


def passages(corpus: str) -> Iterator[Document]:
    """Yield evenly spaced passages of the validation split of `corpus`, a corpus task.

    Registers the corpora of the configured run first, if necessary.

    Raises:
      UserError: the corpus is unknown, or has no validation split.
    """
    from jaxllm.data import corpora

    corpora.register_if_unknown(corpus)
    found: list[Document] = []
    sources = corpora.tasks_of(corpus) or [corpus]
    for source in sources:
        read = 0
        for document in corpora.documents(source, "validation", on_error=lambda bad: None):
            text, name = document["text"], document["id"]
            found += [
                Document(text[start : start + PASSAGE_CHARS], f"{name}@{start}")
                for start in range(0, len(text), PASSAGE_CHARS)
            ]
            read += len(text)
            if read >= READ_CHARS // len(sources):
                break
    if not found:
        raise UserError(f"corpus {corpus} has no validation text: add a file named valid")
    count = min(PASSAGES, len(found))
    yield from (found[i * len(found) // count] for i in range(count))


def declare(name: str, data_dir: epath.Path | None = None) -> TaskDefinition:
    """Bits per byte on the validation split of the run's own corpus of that name."""
    del data_dir
    corpus = name.removeprefix(PREFIX)
    return perplexity(
        name, functools.partial(passages, corpus), domain=DOMAINS.get(corpus, "language")
    )


FAMILIES = {PREFIX: declare}
