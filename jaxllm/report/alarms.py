"""Alarms of a run in progress: printed, appended to alarms.jsonl, and delivered.

The checks are those of `jaxllm.analysis.health`, run as metrics and scores come in; they never stop
training. MODEL_DIR/alarms.jsonl has a line per alarm and per all-clear: its `state` ("raised" or
"cleared"), `severity`, `step` and `tokens` then, `check`, `subjects` (tasks, a spike), `number`,
`p_value`, `at` (the step concerned), `reason` and `advice`. What is delivered also has `run` and
`text`. `analyze` does not read the file, but repeats all checks.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from etils import epath

from jaxllm.errors import one_line
from jaxllm.report.delivery import AlarmConfig, deliveries
from jaxllm.run.records import Record

if TYPE_CHECKING:
    from jaxllm.analysis.health.result import Check


RUN = "run"  # the check whose alarms are that the run stopped, or hangs


def active(rows: Iterable[Mapping[str, Any]]) -> dict[tuple[str, str], Any]:
    """By check and subject, the rows of alarms.jsonl whose alarm has not been cleared since."""
    found: dict[tuple[str, str], Any] = {}
    for row in rows:
        for subject in row.get("subjects") or [""]:
            found.pop((row["check"], subject), None)
            if row.get("state", "raised") == "raised":
                found[row["check"], subject] = row
    return found


class HealthWriter:
    """Writer that checks a run's health; a `jaxllm.training.metrics.Writer`.

    As a context, it reports an exception as an alarm, and waits a while for the last deliveries.
    """

    def __init__(
        self,
        model_dir: epath.PathLike,
        say: Callable[[str], None] = print,
        config: AlarmConfig | None = None,
    ) -> None:
        """Watch a run, and deliver its alarms."""
        from jaxllm.analysis.health.watch import Watch
        from jaxllm.run.run import Run

        self._run, self._say = Run(model_dir), say
        self._watch = Watch()
        self._deliveries = deliveries(config or AlarmConfig(), say)
        self._hangs = False
        self._restored = self._broken = False  # earlier alarms are restored at the first check

    def __enter__(self) -> HealthWriter:
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, Exception):
            self.tell_of_run("stopped", one_line(error) or type(error).__name__)
        for delivery in self._deliveries:
            delivery.close()

    def tell_of_run(self, subject: str, reason: str, raised: bool = True) -> None:
        """Report that the run `stopped`, or `hangs`; another thread may call it."""
        from jaxllm.analysis.health.result import CRITICAL, Check

        self._hangs = raised and subject == "hangs"
        try:
            self._tell(Check(RUN, raised, reason=reason, subjects=(subject,), severity=CRITICAL))
        except Exception:  # a full disk, which may be why it stopped
            logging.exception("an alarm could not be written")

    def write_metrics(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Check the logged metrics of a step."""
        if self._hangs:
            self.tell_of_run("hangs", "Steps are done again.", raised=False)
        if step <= self._watch.step:  # rolled back
            self._watch, self._restored = type(self._watch)(), False
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
        """Report the new alarms of `checks`; an exception ends the checks, not the run. `seen` is
        the last step in the run's files from earlier processes.
        """
        if self._broken:
            return
        try:
            if not self._restored:
                self._restore(seen)
                self._restored = True
            for check in checks():
                self._tell(check)
        except Exception:
            logging.exception("the run's health is no longer watched")
            self._broken = True

    def _tell(self, check: Check) -> None:
        """Print, deliver and write an alarm or all-clear."""
        watch, kind = self._watch, "ALARM" if check.raised else "ALL CLEAR"
        text = f"{kind} at step {watch.step:,}: {check.name}. {check.sentence}"
        row = {
            "step": watch.step, "tokens": watch.tokens, "check": check.name,
            "state": "raised" if check.raised else "cleared", "severity": check.severity,
            "subjects": check.subjects, "number": check.number, "p_value": check.p_value,
            "at": check.step, "reason": check.reason, "advice": check.advice,
        }  # fmt: skip
        self._say(text)
        for delivery in self._deliveries:
            delivery.send({"run": self._run.path.name, "text": text, **row})
        self._run.alarm_lines.append(row)

    def _restore(self, seen: int) -> None:
        """Replay metrics, scores and alarms of earlier processes; drop alarms after `seen`."""
        from jaxllm.analysis.health.result import Check

        before = active(self._run.alarm_lines.read()[0])
        self._run.alarm_lines.keep_until(seen)
        alarms = active(self._run.alarm_lines.read()[0])
        for row in self._run.metrics_lines.read()[0]:
            if row["step"] <= seen:
                self._watch.on_metrics(row, check=False)
        stored = self._run.trajectory.read()
        for _, records in stored[stored.primary & (stored.step <= seen)].groupby("step"):
            self._watch.on_scores(records, check=False)
        for name, subject in before:
            if name == RUN or (name, subject) not in alarms:
                reason = f"The run goes on from step {seen:,}."
                self._tell(Check(name, reason=reason, subjects=(subject,) if subject else ()))
        for (name, subject), row in alarms.items():
            if name != RUN:
                self._watch.restore(name, subject, row["tokens"])
