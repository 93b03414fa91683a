"""Registry of the benchmarks that the modules of `EvalConfig.modules` declare.

A module declares its tasks when it is imported, with the helpers of `jaxllm.evaluation.tasks`, and
may have the constants of `Registry` in capitals (FAMILIES, MIXTURES, SOURCES, SHA256). A package
includes all of its modules. Neither SeqIO nor TensorFlow is imported, and no data are read, except
by families that need a file to declare a task.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import inspect
import pkgutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import ModuleType

from etils import epath

from jaxllm.errors import UserError, nearest, one_line
from jaxllm.evaluation import tasks
from jaxllm.evaluation.config import MODULES
from jaxllm.evaluation.download import FileSource, pinned, source_of
from jaxllm.evaluation.tasks import TaskDefinition
from jaxllm.run.records import split_shots

Family = Callable[..., TaskDefinition]


@dataclasses.dataclass(frozen=True)
class Registry:
    """The tasks, mixtures and files of the imported modules."""

    # prefix -> function (name, data_dir[, registry]) that declares the task of a name
    families: Mapping[str, Family]
    mixtures: Mapping[str, tuple[str, ...]]  # name -> names of tasks or further mixtures
    sources: tuple[FileSource, ...]  # origins of the files
    sha256: Mapping[str, str]  # file name -> hash

    def names(self) -> tuple[str, ...]:
        """All task names, ascending, without those of families."""
        families = tuple(self.families)
        return tuple(sorted(n for n in tasks.definitions() if not n.startswith(families)))

    def expand(self, name: str) -> Iterator[str]:
        """Yield the task `name`, or the tasks of the mixture of that name.

        `mmlu_0shot` is every task of `mmlu` at 0 shots.
        """
        base, shots = split_shots(name)
        if name in self.mixtures:
            members = self.mixtures[name]
        elif base in self.mixtures:
            members = tuple(f"{split_shots(m)[0]}_{shots}shot" for m in self.mixtures[base])
        else:
            yield name
            return
        for member in members:
            yield from self.expand(member)

    def load(
        self, names: Sequence[str], data_dir: epath.Path | None = None
    ) -> tuple[TaskDefinition, ...]:
        """The definitions of tasks and of the members of mixtures, each once.

        `<task>_5shot` is `<task>` at 5 shots. Families may read a file in `data_dir`. UserError
        suggests the names closest to an unknown one.
        """
        expanded = (task for name in names for task in self.expand(name))
        return tuple(self._find(name, data_dir) for name in dict.fromkeys(expanded))

    def _find(self, name: str, data_dir: epath.Path | None) -> TaskDefinition:
        known, (base, shots) = tasks.definitions(), split_shots(name)
        prefix = next((p for p in self.families if name.startswith(p) and name != p), None)
        if name in known and not prefix:
            return known[name]
        if shots is not None:
            return tasks.with_shots(self._find(base, data_dir), shots)
        if prefix:  # even if already declared: its file may have changed
            family = self.families[prefix]
            of = {"registry": self} if "registry" in inspect.signature(family).parameters else {}
            return family(name, data_dir, **of)
        near = nearest(name, [*known, *self.families, *self.mixtures])
        offer = near or "; `python -m jaxllm.evaluate --list` shows all names"
        raise UserError(f"no evaluation task is called {name}{offer}")

    def origin(self, file: str) -> str:
        """How to get a file: "--download", "by hand from URL", or nothing if it is unknown."""
        source = source_of(file, self.sources)
        if source and (source.sha256 or pinned(file, self.sha256)):
            return "--download"
        return f"by hand from {source.url}" if source else ""


@functools.cache
def benchmarks(modules: tuple[str, ...] = MODULES) -> Registry:
    """Import `modules` and collect their declarations; UserError if a module cannot be imported."""
    every = [module for name in modules for module in _with_submodules(name)]
    constants = lambda name: [getattr(m, name) for m in every if hasattr(m, name)]
    return Registry(
        {name: family for each in constants("FAMILIES") for name, family in each.items()},
        {name: members for each in constants("MIXTURES") for name, members in each.items()},
        tuple(source for each in constants("SOURCES") for source in each),
        {name: sha256 for each in constants("SHA256") for name, sha256 in each.items()},
    )


def _with_submodules(name: str) -> Iterator[ModuleType]:
    try:
        module = importlib.import_module(name)
        yield module
        for found in pkgutil.walk_packages(getattr(module, "__path__", ()), f"{name}."):
            yield importlib.import_module(found.name)
    except Exception as error:
        raise UserError(
            f"EvalConfig.modules: cannot import {name} ({type(error).__name__}: {one_line(error)})"
        ) from error
