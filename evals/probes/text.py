"""How well held-out text of the embedded corpus is predicted, in bits per byte.

`held_out_code`, `held_out_docstrings` and `held_out_reference` score passages of the test split.
They are short, so that a small run can score them at every checkpoint; `heldout_<domain>` does the
same at length for any corpus.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator

from jaxllm.evals.probes.tools import held_out
from jaxllm.evaluation.tasks import Document, perplexity

_PASSAGES, _CHARACTERS = 48, 280
_DOMAINS = {"code": "code", "docstrings": "language", "reference": "language"}


def passages(domain: str) -> Iterator[Document]:
    """The beginnings of held-out documents; the next stretch of each while more are needed."""
    found = 0
    for start in range(0, 20 * _CHARACTERS, _CHARACTERS):
        for text in held_out(domain):
            passage = text[start : start + _CHARACTERS]
            if len(passage) == _CHARACTERS and found < _PASSAGES:
                yield Document(passage, id=str(found))
                found += 1


for _domain, _capability in _DOMAINS.items():
    perplexity(f"held_out_{_domain}", functools.partial(passages, _domain), domain=_capability)
