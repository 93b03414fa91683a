"""Alarms of a run in progress, printed on the terminal and appended to alarms.jsonl.

The checks are those of `jaxllm.analysis.health`, run as metrics and scores come in; they never stop
training. MODEL_DIR/alarms.jsonl has a line per alarm: `step` and `tokens` at which it was raised,
`check`, `subjects` (tasks, a spike), `number`, `p_value`, `at` (the step concerned), `reason` and
`advice`. `analyze` does not read it, but repeats all checks.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from etils import epath

from jaxllm.run.records import Record

if TYPE_CHECKING:
    from jaxllm.analysis.health.result import Check


class HealthWriter:
    """Writer that checks the health of one run; a `jaxllm.training.metrics.Writer`."""

    def __init__(self, model_dir: epath.PathLike, say: Callable[[str], None] = print) -> None:
        """Watch a run."""
        from jaxllm.analysis.health.watch import Watch
        from jaxllm.run.run import Run

        self._run, self._say = Run(model_dir), say
        self._watch = Watch()
        self._restored = self._broken = False  # earlier alarms are restored at the first check

    def write_metrics(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Check the logged metrics of a step."""
        # This step is in metrics.jsonl already; earlier processes logged up to the one before.
        self._check(step - 1, lambda: self._watch.on_metrics({"step": step, **metrics}))

    def write_records(self, step: int, records: Sequence[Record]) -> None:
        """Check the scores of a checkpoint."""
        import pandas as pd

        primary = pd.DataFrame([vars(record) for record in records if record.primary])
        self._check(step, lambda: self._watch.on_scores(primary))

    def flush(self) -> None:
        """Do nothing, as every alarm is already written."""

    close = flush

    def _check(self, seen: int, checks: Callable[[], list[Check]]) -> None:
        """Report the new alarms of `checks`; an exception ends the checks, not the run.

        `seen` is the last step in the run's files from earlier processes.
        """
        if self._broken:
            return
        watch = self._watch
        try:
            if not self._restored:
                self._restore(seen)
                self._restored = True
            for check in checks():
                self._say(f"ALARM at step {watch.step:,}: {check.name}. {check.sentence}")
                row = {
                    "step": watch.step, "tokens": watch.tokens, "check": check.name,
                    "subjects": check.subjects, "number": check.number, "p_value": check.p_value,
                    "at": check.step, "reason": check.reason, "advice": check.advice,
                }  # fmt: skip
                self._run.alarm_lines.append(row)
        except Exception:
            logging.exception("the run's health is no longer watched")
            self._broken = True

    def _restore(self, seen: int) -> None:
        """Replay metrics, scores and alarms of earlier processes; drop alarms after `seen`."""
        self._run.alarm_lines.keep_until(seen)
        for row in self._run.alarm_lines.read()[0]:
            for subject in row["subjects"] or [""]:
                self._watch.restore(row["check"], subject, row["tokens"])
        for row in self._run.metrics_lines.read()[0]:
            if row["step"] <= seen:
                self._watch.on_metrics(row, check=False)
        stored = self._run.trajectory.read()
        for _, records in stored[stored.primary & (stored.step <= seen)].groupby("step"):
            self._watch.on_scores(records, check=False)
