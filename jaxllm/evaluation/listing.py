"""The table of `python -m jaxllm.evaluate --list`: every task with its metrics and files."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterator

from jaxllm.evaluation import download
from jaxllm.evaluation.config import EvalConfig
from jaxllm.evaluation.registry import Registry, benchmarks
from jaxllm.evaluation.selection import file_names
from jaxllm.evaluation.tasks import TaskDefinition

COLUMNS = ("task", "domain", "metric", "chance", "shots", "files")


def table(config: EvalConfig, pattern: str = "") -> Iterator[str]:
    """Yield the lines of the table, then mixtures and task families.

    Args:
      config: its modules are listed.
      pattern: a substring of a name, or a shell pattern (`mmlu_*`); empty lists all.
    """
    registry = benchmarks(config.modules)
    matches = lambda name: fnmatch.fnmatch(name, pattern if "*" in pattern else f"*{pattern}*")
    tasks = [task for task in registry.load(registry.names()) if matches(task.name)]
    rows = [COLUMNS, *(_row(task, registry) for task in tasks)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(COLUMNS))]
    for row in rows if tasks else ():
        yield "  ".join(map(str.ljust, row, widths)).rstrip()
    for name, members in sorted(registry.mixtures.items()):
        if matches(name):
            yield f"mixture {name}: {len(members)} names, {', '.join(members[:3])}, …"
    for prefix in sorted(registry.families):
        if matches(prefix):
            first = (registry.families[prefix].__doc__ or "").strip().split("\n")[0]
            yield f"family {prefix}…: {first}"


def _row(task: TaskDefinition, registry: Registry) -> tuple[str, ...]:
    shots = f"{task.shots}" + (" (any)" if task.few_shot else "")
    if task.chance is not None:
        chance = f"{task.chance:.3g}"
    else:
        chance = "1/options" if task.kind == "multiple_choice" else "-"
    return task.name, task.domain, task.primary_metric, chance, shots, _files(task, registry)


def _files(task: TaskDefinition, registry: Registry) -> str:
    """The files of a task and their origin: --download, or a URL for a manual download."""
    names = file_names(task, every=True)
    if not names:
        return "none"
    source = download.source_of(names[0], registry.sources)
    if source is None:
        return f"{', '.join(names)} (your own)"
    if source.sha256 or download.pinned(names[0], registry.sha256):
        return f"{', '.join(names)} (--download)"
    return f"{', '.join(names)} (by hand from {source.url})"
