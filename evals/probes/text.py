"""Bits per byte on held-out text of the embedded corpus.

`held_out_code`, `held_out_docstrings` and `held_out_reference` score passages of the test split.
They are short, so that a small run can score them at every checkpoint; `heldout_<domain>` is the
larger counterpart for any corpus.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator

from jaxllm.evals.probes.tools import held_out
from jaxllm.evaluation.tasks import Document, perplexity

_PASSAGES, _CHARACTERS = 48, 280
_DOMAINS = {"code": "code", "docstrings": "language", "reference": "language"}


def passages(domain: str) -> Iterator[Document]:
    """Yield the first passage of each held-out document, then the next ones as needed."""
    found = 0
    for start in range(0, 20 * _CHARACTERS, _CHARACTERS):
        for text in held_out(domain):
            passage = text[start : start + _CHARACTERS]
            if len(passage) == _CHARACTERS and found < _PASSAGES:
                yield Document(passage, id=str(found))
                found += 1


for _domain, _capability in _DOMAINS.items():
    perplexity(f"held_out_{_domain}", functools.partial(passages, _domain), domain=_capability)
