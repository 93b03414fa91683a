"""The benchmarks: one short module each, declaring tasks with `jaxllm.evaluation.tasks`.

Add a benchmark by adding a module here; its tasks are found by name. Importing the modules reads
no data and needs neither SeqIO nor TensorFlow. A module that can make a task for any name with a
prefix (`bigbench_…`, `heldout_…`) has a dictionary FAMILIES: prefix -> function that declares it.
`jaxllm.evals.mixtures` has names for several tasks at once.
"""

from __future__ import annotations

import difflib
import functools
import importlib
import pkgutil
from collections.abc import Callable, Mapping, Sequence
from types import ModuleType

from jaxllm.errors import UserError
from jaxllm.evals.mixtures import expand
from jaxllm.evaluation import tasks
from jaxllm.evaluation.download import Upstream
from jaxllm.evaluation.tasks import TaskDefinition


@functools.cache
def _modules() -> tuple[ModuleType, ...]:
    """Every module here, imported, so that its tasks are declared."""
    found = pkgutil.walk_packages(__path__, f"{__name__}.")
    return tuple(importlib.import_module(module.name) for module in found)


@functools.cache
def _families() -> Mapping[str, Callable[[str], TaskDefinition]]:
    """The families of names that the modules declare."""
    families: dict[str, Callable[[str], TaskDefinition]] = {}
    for module in _modules():
        families |= getattr(module, "FAMILIES", {})
    return families


def names() -> tuple[str, ...]:
    """Every task name, and `prefix…` for each family of names."""
    families = _families()
    return (*sorted(tasks.definitions()), *(f"{prefix}…" for prefix in sorted(families)))


@functools.cache
def groups() -> Mapping[str, tuple[str, ...]]:
    """The tasks, or further mixtures, that a name stands for."""
    found: dict[str, tuple[str, ...]] = {}
    for module in _modules():
        found |= getattr(module, "MIXTURES", {})
    return found


@functools.cache
def sources() -> tuple[Upstream, ...]:
    """Where the benchmarks' files come from: what the modules say in UPSTREAM."""
    return tuple(source for module in _modules() for source in getattr(module, "UPSTREAM", ()))


def load(wanted: Sequence[str]) -> tuple[TaskDefinition, ...]:
    """The definitions of the tasks called `wanted`, each once.

    `<task>_5shot` is `<task>` at 5 shots; the name of a mixture stands for all of its tasks.

    Raises:
      UserError: no task has that name; the message offers the nearest ones.
    """
    names = (name for each in wanted for name in expand(each, groups()))
    return tuple(_find(name) for name in dict.fromkeys(names))


def _find(name: str) -> TaskDefinition:
    families, known = _families(), tasks.definitions()
    if name in known:
        return known[name]
    base, shots = tasks.split_shots(name)
    if shots is not None:
        return tasks.with_shots(_find(base), shots)
    prefix = next((p for p in families if name.startswith(p) and name != p), None)
    if prefix:
        return families[prefix](name)
    near = difflib.get_close_matches(name, [*known, *families, *groups()], n=3)
    several = f"there are {len(known)}, and the mixtures {', '.join(sorted(groups()))}"
    offer = f"did you mean {', '.join(near)}?" if near else several
    raise UserError(f"no evaluation task is called {name}; {offer}")
