"""Score saved checkpoints: selected ones, unscored ones, or new ones as a run saves them."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax
import tqdm

from jaxllm.errors import UserError
from jaxllm.evaluation.evaluator import Evaluator
from jaxllm.run.manifest import ManifestEntry
from jaxllm.run.records import OK, Record
from jaxllm.run.run import Run
from jaxllm.runtime import of_first_process


class OfflineScorer:
    """Score saved checkpoints into the trajectory of a run, and print a line for each task.

    `evaluator` is that of a step; `restore` reads the parameters of a checkpoint.
    """

    def __init__(
        self,
        run: Run,
        evaluator: Callable[[int], Evaluator],
        restore: Callable[[ManifestEntry], Any],
    ) -> None:
        self._run, self._evaluator, self._restore = run, evaluator, restore
        self._first = jax.process_index() == 0
        self._settled: set[tuple[int, float]] = set()  # checkpoints known to be complete

    def score(self, entries: Sequence[ManifestEntry], missing_only: bool = False) -> int:
        """Score checkpoints, with a progress bar; return the number of failed (checkpoint, task).

        `missing_only` omits tasks that have readable records of this checkpoint.
        """
        every = lambda entry: list(self._evaluator(entry.step).definitions)
        tasks_of = self._missing if missing_only else every
        todo = [(entry, of_first_process(tasks_of(entry))) for entry in entries]
        failed, total = 0, sum(len(tasks) for _, tasks in todo)
        hidden = None if self._first else True  # one bar, and only on a terminal
        with tqdm.tqdm(total=total, unit="task", disable=hidden, leave=False) as bar:
            for entry, tasks in todo:
                params = self._restore(entry) if tasks else None
                for task in tasks:
                    records = self._evaluator(entry.step).evaluate(
                        params, entry.step, entry.tokens, entry.flops,
                        tasks=(task,), checkpoint=entry.wall_time,
                    )  # fmt: skip
                    main = next((r for r in records if r.primary), records[0])
                    failed += main.status != OK
                    bar.update()
                    if self._first:
                        bar.write(line_of(main))
                if self._first:
                    self._run.trajectory.compact(entry.step)
        return failed

    def follow(self, poll_seconds: float) -> int:
        """Score checkpoints without records as they are saved, up to the run's last one.

        Return the number of failed (checkpoint, task); failures are recorded and not retried.
        """
        failed, waiting = 0, False
        while True:
            entry, ended = self._next()
            if entry:
                self._settled.add((entry.step, entry.wall_time))
                waiting = False
                try:
                    failed += self.score([entry], missing_only=True)
                except UserError:
                    if entry in self._run.available():
                        raise
                    self._print(f"step {entry.step}  removed by the run before it was scored")
            elif ended:
                return failed
            else:
                if not waiting:
                    self._print(f"waiting for the next checkpoint of {self._run.path}")
                waiting = True
                time.sleep(poll_seconds)

    def _next(self) -> tuple[ManifestEntry | None, bool]:
        """The first checkpoint without records, and whether the run has saved its last.

        Process 0 reads the directory for all: a new file may reach other hosts later.
        """
        state: Any = None
        if self._first:
            saved = [entry for entry in self._run.available() if entry.kind != "preempted"]
            planned = self._run.planned_steps() or 0
            ended = any(entry.kind == "final" and entry.step >= planned for entry in saved)
            unscored = None
            for entry in saved:
                key = (entry.step, entry.wall_time)
                if key not in self._settled and self._missing(entry):
                    unscored = dataclasses.asdict(entry)
                    break
                self._settled.add(key)
            state = [unscored, ended]
        unscored, ended = of_first_process(state)
        return unscored and ManifestEntry(**unscored), ended

    def _missing(self, entry: ManifestEntry) -> list[str]:
        """The tasks without readable records of this checkpoint."""
        return list(self._evaluator(entry.step).missing(entry.step, entry.wall_time))

    def _print(self, line: str) -> None:
        if self._first:
            print(line, flush=True)


def line_of(record: Record) -> str:
    """One line for the result of a task at a checkpoint."""
    head = f"step {record.step}  {record.task}"
    if record.status != OK:
        return f"{head}  failed: {record.status}"
    return (
        f"{head}  {record.metric} {record.value:.4f} ± {record.stderr:.4f}  "
        f"n {record.n}  {record.seconds:.1f} s"
    )
