"""Say what scoring a checkpoint takes: sequences, and examples that had to be shortened."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from jaxllm.evaluation.scoring import PreparedTask


def describe(groups: Mapping[str, Sequence[PreparedTask]], max_length: int) -> Iterator[str]:
    """Yield a line per group of tasks, then the numbers of shortened examples."""
    for name, tasks in groups.items():
        of = f" ({len(tasks)} tasks)" if len(tasks) > 1 else ""
        yield (
            f"{name}{of}: {sum(len(task.examples) for task in tasks):,} examples in "
            f"{sum(rows for task in tasks for rows, _ in task.shapes):,} sequences"
        )
    every = [task for tasks in groups.values() for task in tasks]
    limit = f"{max_length} tokens"
    for field, what in (
        ("shots_dropped", f"hold fewer few-shot examples than asked for, to fit {limit}"),
        ("truncated", f"do not fit {limit} and are cut on the left"),
    ):
        counts = {t.definition.name: int((getattr(t, field) > 0).sum()) for t in every}
        counts = {name: count for name, count in counts.items() if count}
        if counts:
            first = next(iter(counts))
            of = f"{len(counts)} tasks, first {first}" if len(counts) > 1 else first
            yield f"{sum(counts.values()):,} examples of {of}, {what}"
