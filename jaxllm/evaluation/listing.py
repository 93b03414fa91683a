"""The table of `python -m jaxllm.evaluate --list`: every task with its metrics and files."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterator

from jaxllm.evaluation.config import EvalConfig
from jaxllm.evaluation.registry import Registry, benchmarks
from jaxllm.evaluation.selection import file_names
from jaxllm.evaluation.tasks import TaskDefinition

COLUMNS = ("task", "domain", "metric", "chance", "shots", "files")


def table(config: EvalConfig, pattern: str = "") -> Iterator[str]:
    """Yield the lines of the table, then mixtures and task families of the config's modules.

    `pattern` is a substring of a name, or a shell pattern (`mmlu_*`); empty lists all.
    """
    registry = benchmarks(config.modules)
    matches = lambda name: fnmatch.fnmatch(name, pattern if "*" in pattern else f"*{pattern}*")
    tasks = [task for task in registry.load(registry.names()) if matches(task.name)]
    rows = [COLUMNS, *(_row(task, registry) for task in tasks)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows if tasks else ():
        yield "  ".join(map(str.ljust, row, widths)).rstrip()
    for name, members in sorted(registry.mixtures.items()):
        if matches(name):
            yield f"mixture {name}: {len(members)} names, {', '.join(members[:3])}, …"
    for prefix, family in sorted(registry.families.items()):
        if matches(prefix):
            yield f"family {prefix}…: {(family.__doc__ or '').strip().splitlines()[0]}"


def _row(task: TaskDefinition, registry: Registry) -> tuple[str, ...]:
    chance = "1/options" if task.kind == "multiple_choice" else "-"
    if task.chance is not None:
        chance = f"{task.chance:.3g}"
    names = file_names(task, every=True)
    files = f"{', '.join(names)} ({registry.origin(names[0]) or 'your own'})" if names else "none"
    shots = f"{task.shots}" + (" (any)" if task.few_shot else "")
    return task.name, task.domain, task.primary_metric, chance, shots, files
