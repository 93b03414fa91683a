"""The quickstart's corpora as SeqIO tasks: the domains of `embedded` and `generated`.

A run that names this module in DataConfig.modules can name them, and `embedded`, their mixture.
"""

from __future__ import annotations

import dataclasses
import hashlib
import inspect
import sys
from collections.abc import Iterator
from types import ModuleType

from jaxllm.data.files import SPLITS, OnError, raise_on_error
from jaxllm.evals.probes import embedded, generated


@dataclasses.dataclass(frozen=True)
class ModuleCorpus:
    """One domain of a module with `DOMAINS` and `documents(domain, split)`."""

    module: ModuleType
    domain: str
    splits: tuple[str, ...] = tuple(SPLITS)

    def documents(self, split: str, on_error: OnError = raise_on_error) -> Iterator[dict[str, str]]:
        """What the module gives."""
        return self.module.documents(self.domain, split)

    def fingerprint(self, split: str) -> str:
        """The module's source, and the Python whose text it may read."""
        source = hashlib.sha256(inspect.getsource(self.module).encode()).hexdigest()
        return f"{source} {sys.version}"


def register() -> None:
    """Registers the domains and their even mixture `embedded`."""
    from jaxllm.data import seqio_source  # brings TensorFlow, which the tasks do not need

    domains = {
        domain: ModuleCorpus(module, domain)
        for module in (embedded, generated)
        for domain in module.DOMAINS
    }
    seqio_source.register("embedded", domains, dict.fromkeys(domains, 1.0))
