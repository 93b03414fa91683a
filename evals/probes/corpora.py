"""The quickstart's corpora as SeqIO tasks: the domains of `embedded` and `generated`.

A run that names this module in DataConfig.modules can name them, and `embedded`, their mixture.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib
import inspect
import sys
from types import ModuleType

from jaxllm.data.files import SPLITS
from jaxllm.data.formats import OnError, Reading
from jaxllm.evals.probes import embedded, generated


@dataclasses.dataclass(frozen=True)
class ModulePart:
    """A split of a domain of a module, as a part to be read by any process.

    Attributes:
      file: name of the module.
      key: fingerprint of the split.
      size: unknown, as the texts are generated.
    """

    file: str
    domain: str
    split: str
    key: str
    size: int = 0

    def documents(self, on_error: OnError | None = None) -> Reading:
        """The module's documents; returns their number."""
        count = 0
        for document in importlib.import_module(self.file).documents(self.domain, self.split):
            count += 1
            yield document
        return count


@dataclasses.dataclass(frozen=True)
class ModuleCorpus:
    """One domain of a module with `DOMAINS` and `documents(domain, split)`."""

    module: ModuleType
    domain: str
    splits: tuple[str, ...] = tuple(SPLITS)

    def parts(self, split: str) -> list[ModulePart]:
        """The whole split."""
        held = (self.domain, split, self.fingerprint(split))
        key = hashlib.sha256(repr(held).encode()).hexdigest()[:16]
        return [ModulePart(self.module.__name__, self.domain, split, key)]

    def size(self, split: str) -> int:
        """Unknown, as the texts are generated."""
        return 0

    def fingerprint(self, split: str) -> str:
        """The module's source, and the Python whose text it may read."""
        source = hashlib.sha256(inspect.getsource(self.module).encode()).hexdigest()
        return f"{source} {sys.version}"


def register() -> None:
    """Registers the domains and their even mixture `embedded`."""
    from jaxllm.data import seqio_source  # brings TensorFlow, which the tasks do not need

    domains = {
        domain: seqio_source.CorpusSource(ModuleCorpus(module, domain), domain)
        for module in (embedded, generated)
        for domain in module.DOMAINS
    }
    seqio_source.register("embedded", domains, dict.fromkeys(domains, 1.0))
