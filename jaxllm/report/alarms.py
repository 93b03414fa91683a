"""Alarms of a run in progress, printed on the terminal and appended to alarms.jsonl.

The checks are those of `jaxllm.analysis.health`, run as metrics and scores come in; they never stop
training. MODEL_DIR/alarms.jsonl has a line per alarm: `step` and `tokens` at which it was raised,
`check`, `subjects` (tasks, a spike), `number`, `p_value`, `at` (the step concerned), `reason` and
`advice`. `analyze` does not read it, but repeats all checks.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from etils import epath

from jaxllm.configs import configurable
from jaxllm.errors import UserError
from jaxllm.run.records import Record, RunInfo

if TYPE_CHECKING:
    from jaxllm.analysis.health.result import Check
    from jaxllm.run.run import Run


@configurable
@dataclasses.dataclass(frozen=True)
class HealthConfig:
    """Health checks of a run in progress.

    Attributes:
      reference_runs: directories of at least three smaller or earlier runs on the same data; an
        alarm is raised where the loss or a task is worse than in these at equal tokens.
    """

    reference_runs: tuple[str, ...] = ()

    def open(self) -> list[Run]:
        """Open the reference runs.

        Raises:
          UserError: one is not a run directory, or there are only one or two.
        """
        from jaxllm.analysis.health.tasks import FEWEST_REFERENCES
        from jaxllm.run.run import Run

        if self.reference_runs and len(self.reference_runs) < FEWEST_REFERENCES:
            raise UserError(
                f"HealthConfig.reference_runs = {self.reference_runs}: it takes "
                f"{FEWEST_REFERENCES} runs to know how far healthy runs differ"
            )
        return [Run.open(path) for path in self.reference_runs]


class HealthWriter:
    """Writer that checks the health of one run; a `jaxllm.training.metrics.Writer`."""

    def __init__(
        self,
        model_dir: epath.PathLike,
        info: RunInfo,
        references: Sequence[Run] = (),
        say: Callable[[str], None] = print,
    ) -> None:
        """Watch a run, compared with `references` at equal tokens."""
        from jaxllm.analysis.health.watch import Watch
        from jaxllm.run.run import Run

        self._run, self._say = Run(model_dir), say
        compared = [(run.records(), run.metrics()) for run in references]
        self._watch = Watch(info.run, info.params, compared)
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
