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
TEXT_CHARS = 64_000_000  # for token sets
DOMAINS = {"code": "code", "math": "math"}


def documents(corpus: str, chars: int = TEXT_CHARS) -> Iterator[Document]:
    """Yield the first documents, `chars` long in all, of the validation split of a corpus task.

    Registers the corpora of the configured run first, if necessary; UserError if it has none such.
    """
    from jaxllm.data import corpora

    corpora.register_if_unknown(corpus)
    sources, total = corpora.tasks_of(corpus) or [corpus], 0
    for source in sources:
        read = 0
        for document in corpora.documents(source, "validation", on_error=lambda bad: None):
            yield Document(document["text"], document["id"])
            read += len(document["text"])
            if read >= chars // len(sources):
                break
        total += read
    if not total:
        raise UserError(f"corpus {corpus} has no validation text: add a file named valid")


def passages(corpus: str) -> Iterator[Document]:
    """Yield evenly spaced passages of the validation split of `corpus`; see `documents`."""
    found = [
        Document(document.text[start : start + PASSAGE_CHARS], f"{document.id}@{start}")
        for document in documents(corpus, READ_CHARS)
        for start in range(0, len(document.text), PASSAGE_CHARS)
    ]
    count = min(PASSAGES, len(found))
    yield from (found[i * len(found) // count] for i in range(count))


def declare(name: str, data_dir: epath.Path | None = None) -> TaskDefinition:
    """Bits per byte on the validation split of the run's own corpus of that name."""
    del data_dir
    corpus = name.removeprefix(PREFIX)
    texts = functools.partial(documents, corpus)
    domain = DOMAINS.get(corpus, "language")
    return perplexity(name, functools.partial(passages, corpus), domain=domain, documents=texts)


FAMILIES = {PREFIX: declare}
