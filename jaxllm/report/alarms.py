"""Alarms of a run in progress: printed, appended to alarms.jsonl, and delivered.

The checks are those of `jaxllm.analysis.health`, run as metrics and scores come in; they never stop
training. MODEL_DIR/alarms.jsonl has a line for each alarm and all-clear as it was told: `state`
("raised" or "cleared"), `severity`, `step` and `tokens` then, `check`, `subjects` (tasks, a spike),
`number`, `p_value`, `at` (the step concerned), `reason` and `advice`. What is delivered also has
`run` and `text`. A line with the state "resumed" abandons those above it of later steps, but for
alarms of the run. `analyze` does not read the file, but repeats all checks.
"""

from __future__ import annotations

import contextlib
import logging
import math
import sys
import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any

import pandas as pd
from etils import epath

from jaxllm.analysis.health.result import CRITICAL, Check
from jaxllm.analysis.health.watch import Watch
from jaxllm.errors import UserError, one_line
from jaxllm.report.delivery import AlarmConfig, close_all, deliveries
from jaxllm.run.lease import LeaseLost
from jaxllm.run.records import Record
from jaxllm.run.run import Run

RUN = "run"  # the check whose alarms are that the run stopped, hangs, or was rolled back


def active(rows: Iterable[Mapping[str, Any]]) -> dict[tuple[str, str], Any]:
    """By check and subject, the rows of alarms.jsonl whose alarm has not been cleared since."""
    found, valid = dict[tuple[str, str], Any](), list[Mapping[str, Any]]()
    for row in rows:
        if row.get("state") == "resumed":
            valid = [old for old in valid if old["check"] == RUN or old["step"] <= row["step"]]
        valid.append(row)
    for row in valid:
        for subject in row.get("subjects") or [""]:
            found.pop((row["check"], subject), None)
            if row.get("state", "raised") == "raised":
                found[row["check"], subject] = row
    return found


@contextlib.contextmanager
def watching(writers: Collection[HealthWriter]) -> Iterator[None]:
    """Report an exception as an alarm of each run; wait once for the last deliveries of all."""
    try:
        yield
    except Exception as error:
        for writer in writers:
            writer.stopped(error)
        raise
    else:
        for writer in writers:
            writer.ended()
    finally:
        close_all([delivery for writer in writers for delivery in writer.deliveries])


class HealthWriter:
    """Writer that checks a run's health; a `jaxllm.training.metrics.Writer`."""

    def __init__(
        self, model_dir: epath.PathLike, say: Callable[[str], None] = print,
        config: AlarmConfig | None = None,
    ) -> None:  # fmt: skip
        """Watch a run, and deliver its alarms."""
        self._run, self._say = Run(model_dir), say
        self._watch, self._broken, self._lock = Watch(), False, threading.Lock()
        self.deliveries = deliveries(config or AlarmConfig(), say)
        # of the newest measurements, or of the newest checkpoint; None once the run has stopped
        self._step: int | None = max((entry.step for entry in self._run.entries()), default=0)
        self._begun = False  # in this process
        self._of_run: dict[str, tuple[str, float]] = {}  # by subject: reason, step to be passed

    def begin(self, step: int) -> None:
        """Restore the checks and alarms of up to `step`; a rollback to there is an alarm."""
        self._step, self._watch, self._broken = step, type(self._watch)(), False
        self._begun = True
        self._report(lambda: self._restore(step))

    def tell_of_run(self, subject: str, reason: str) -> None:
        """Report that the run `stopped`, or `hangs`; any thread may call it."""
        if (step := self._step) is not None:
            self._report(lambda: self._alarm(subject, reason, step))

    def stopped(self, error: Exception) -> None:
        """Report at last that the run stopped with an error, unless another process has it now."""
        if not isinstance(error, LeaseLost):
            if not self._begun:  # what an earlier start has told
                self._report(self._restore_own)
            self.tell_of_run("stopped", one_line(error) or type(error).__name__)
        self._step = None

    def ended(self) -> None:
        """Clear the alarms of the run at last, if its last step is saved."""
        if self._step is not None:
            self._report(self._ended)
        self._step = None

    def write_metrics(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Check the logged metrics of a step."""
        self._step = step
        self._report(lambda: self._passed(step))
        if not self._broken:
            self._report(lambda: self._watch.on_metrics({"step": step, **metrics}))

    def write_records(self, step: int, records: Sequence[Record]) -> None:
        """Check the scores of a checkpoint."""
        self._step = step
        primary = pd.DataFrame([vars(record) for record in records if record.primary])
        if not self._broken:
            self._report(lambda: self._watch.on_scores(primary))

    def flush(self) -> None:
        """Do nothing, as every alarm is already written."""

    close = flush

    def _report(self, checks: Callable[[], Iterable[Check]]) -> None:
        """Tell of new alarms and all-clears; an exception ends the checks, not the run."""
        try:
            with self._lock:  # the watchdog reports from its own thread
                for check in checks():
                    self._tell(check)
        except Exception as error:
            if not self._broken:
                text = f"the run's health is no longer watched: {one_line(error)}"
                logging.error(text, exc_info=not isinstance(error, OSError | UserError))
            self._broken = True

    def _alarm(self, subject: str, reason: str, step: int) -> list[Check]:
        """An alarm of the run until it has passed a step; none if it is active already."""
        before, _ = self._of_run.get(subject, ("", 0))
        self._of_run[subject] = reason, step
        new = Check(RUN, True, reason=reason, step=step, subjects=(subject,), severity=CRITICAL)
        return [new] if reason != before else []

    def _passed(self, step: float) -> list[Check]:
        """All-clears of the alarms of the run at steps before `step`."""
        over = {subject: at for subject, (_, at) in self._of_run.items() if at < step}
        self._of_run = {s: alarm for s, alarm in self._of_run.items() if s not in over}
        says = "The run has passed step {:,.0f}."
        return [Check(RUN, reason=says.format(over[s]), subjects=(s,)) for s in over]

    def _ended(self) -> list[Check]:
        saved = max((entry.step for entry in self._run.entries()), default=0)
        return self._passed(math.inf if saved >= (self._run.planned_steps() or math.inf) else 0)

    def _tell(self, check: Check) -> None:
        """Print, deliver and write an alarm or all-clear."""
        kind, step = "ALARM" if check.raised else "ALL CLEAR", self._step or 0
        text = f"{kind} at step {step:,}: {check.name}. {check.sentence}"
        row = {
            "step": step, "tokens": self._watch.tokens, "check": check.name,
            "state": "raised" if check.raised else "cleared", "severity": check.severity,
            "subjects": check.subjects, "number": check.number, "p_value": check.p_value,
            "at": check.step, "reason": check.reason, "advice": check.advice,
        }  # fmt: skip
        for delivery in self.deliveries:
            delivery.send({"run": self._run.path.name, "text": text, **row})
        if self._begun:  # a start that is refused leaves the run as it was
            self._say(text)
            self._run.alarm_lines.append(row)

    def _restore_own(self, alarms: Mapping[tuple[str, str], Any] | None = None) -> list[Check]:
        """Restore the alarms of the run itself; by default from the file."""
        alarms = active(self._run.alarm_lines.read()[0]) if alarms is None else alarms
        own = {subject: row for (name, subject), row in alarms.items() if name == RUN}
        self._of_run = {s: (row["reason"], row["at"] or row["step"]) for s, row in own.items()}
        return []

    def _restore(self, seen: int) -> list[Check]:
        """Replay metrics, scores and alarms of up to `seen`; return what is new by going on there.

        Alarms of later steps are cleared, but for those of the run.
        """
        lines, reason = self._run.alarm_lines, f"The run goes on from step {seen:,}."
        lines.keep_until(sys.maxsize)  # drops what a kill has left of a line
        rows = lines.read()[0]
        resumed = {"step": seen, "check": RUN, "state": "resumed", "reason": reason}
        before, alarms = active(rows), active([*rows, resumed])
        self._restore_own(alarms)
        if any(row["step"] > seen and row["check"] != RUN for row in rows):
            lines.append(resumed)
        for row in self._run.metrics_lines.read()[0]:
            if row["step"] <= seen:
                self._watch.on_metrics(row, check=False)
        stored = self._run.trajectory.read()
        for _, records in stored[stored.primary & (stored.step <= seen)].groupby("step"):
            self._watch.on_scores(records, check=False)
        for (name, subject), row in alarms.items():
            if name != RUN:
                self._watch.restore(name, subject, row["tokens"])
        gone = [key for key in before if key not in alarms]
        new = [Check(name, reason=reason, subjects=(s,) if s else ()) for name, s in gone]
        for last in self._run.rollbacks()[-1:]:
            past = f"past steps {last.first}:{last.last}"
            reason = f"The run went back to step {last.step}, and goes on {past}: {last.reason}"
            told = any(row["reason"] == reason for row in rows)
            if last.by == "divergence" and last.last > seen and not told:
                new += self._alarm("rolled back", reason, last.last)
        return new
