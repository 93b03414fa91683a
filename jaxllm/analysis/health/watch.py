"""Watches a run in progress: the checks of a run's health, made when something can have changed.

A test that is repeated raises a false alarm some time. So the trends are tested `LOOKS` times in a
doubling of tokens, each time at the level `ALPHA / LOOKS`: a run on the very edge of its null
hypothesis raises one in at most one of a hundred doublings. Spikes need no such care and are seen
at once. Between the tests a logged step costs a median of `loss.WINDOW` numbers.
"""

from __future__ import annotations

import dataclasses
import math
from array import array
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from jaxllm.analysis.curves import Curve
from jaxllm.analysis.health import advice, loss, tasks
from jaxllm.analysis.health.check import ALPHA, Check
from jaxllm.analysis.registry import Study

LOOKS = 4
_COLUMNS = ("step", "tokens", "loss", "grad_norm", "learning_rate")
_FEWEST_LINES = 64  # below these every check of the metrics refuses
_NEWEST = 10_000  # steps that are searched for spikes at a test
_RECENT = 3 * loss.WINDOW  # and between two tests


class Watch:
    """Takes what a run logs and scores, and returns the alarms that are new.

    An alarm is new for each of its subjects (a task, a spike), and again after it has been quiet
    for a doubling of tokens. It keeps five numbers for a logged step.

    Attributes:
      run: Name of the run.
      step: Of the newest line or checkpoint.
      tokens: Tokens seen there.
    """

    def __init__(
        self,
        run: str,
        params: float,
        budget_tokens: float = math.nan,
        references: Sequence[tuple[pd.DataFrame, pd.DataFrame]] = (),
    ) -> None:
        """Begins with nothing seen.

        Args:
          run: Name of the run.
          params: Its parameters.
          budget_tokens: Tokens at the end of its plan.
          references: Records and logged metrics of runs that it is compared with at equal tokens.
        """
        self.run, self.step, self.tokens = run, 0, 0.0
        self._params, self._budget = params, budget_tokens
        self._lines, self._losses = array("d"), array("d")
        self._records: list[pd.DataFrame] = []
        self._active: dict[tuple[str, str], float] = {}
        self._metrics_tested = self._scores_tested = 0.0
        self._loss_falls: bool | None = None
        self._references: list[Curve] = []
        for number, (records, metrics) in enumerate(references):
            name = f"reference {number}"
            study = Study(records.assign(run=name), logged=metrics)
            logged = tasks.logged_loss(metrics, name, study.params.get(name, math.nan))
            self._references += tasks.judged(study.curves) + ([logged] if logged else [])

    def restore(self, check: str, subject: str, tokens: float) -> None:
        """Takes an alarm that was raised before, in another process: it is not new."""
        self._active[check, subject] = tokens

    def on_metrics(self, line: Mapping[str, Any], check: bool = True) -> list[Check]:
        """Takes a line of metrics.jsonl with its `step`; returns the new alarms.

        Args:
          line: The metrics by name; numbers, or None.
          check: Whether to test: not at lines that an earlier process has tested.
        """
        row = [math.nan if line.get(name) is None else float(line[name]) for name in _COLUMNS]
        self._lines.extend(row)
        self.step, self.tokens = int(row[0]), row[1]
        if math.isfinite(row[2]):
            self._losses.append(row[2])
        enough = len(self._losses) >= _FEWEST_LINES
        due = enough and self.tokens >= self._metrics_tested * 2 ** (1 / LOOKS)
        if due:
            self._metrics_tested = self.tokens
        if check and due:
            logged = self._logged()
            checks = list(
                loss.loss_checks(logged, self.run, self._budget, ALPHA / LOOKS, newest=_NEWEST)
            )
            self._loss_falls = loss.falls(tuple(checks))
            curve = tasks.logged_loss(logged, self.run, self._params)
            if self._references and curve:
                band = self._band([curve])
                checks.append(dataclasses.replace(band, name="reference band of the loss"))
            return self._new(checks)
        if check and enough and self._stays_high():
            spike = loss.spikes(self._logged(_RECENT), self.run)
            since = tuple(s for s in spike.subjects if s.startswith(loss.SINCE))
            # One that began before these lines is known from the tests.
            if since and spike.step > self._logged(loss.WINDOW).step.iloc[0]:
                return self._new([dataclasses.replace(spike, subjects=since)], closing=False)
        return []

    def on_scores(self, records: pd.DataFrame, check: bool = True) -> list[Check]:
        """Takes the main metric of each task at one checkpoint; returns the new alarms."""
        if records.empty:
            return []
        self._records.append(records)
        self.step, self.tokens = int(records.step.max()), float(records.tokens.max())
        if self.tokens < self._scores_tested * 2 ** (1 / LOOKS):
            return []
        self._scores_tested = self.tokens
        if not check or len(self._records) < tasks.FEWEST:
            return []
        curves = tasks.judged(self._study().curves)
        falling = tasks.falling(curves, self.run, self._loss_falls, ALPHA / LOOKS)
        return self._new([falling, *([self._band(curves)] if self._references else [])])

    def advise(self) -> advice.Advice:
        """What the rest of the budget would bring."""
        study = self._study()
        return advice.of_run(study, self.run, tasks.judged(study.curves))

    def _band(self, curves: Sequence[Curve]) -> Check:
        return tasks.outside_band(curves, self.run, self._references, ALPHA / LOOKS)

    def _new(self, checks: Sequence[Check], closing: bool = True) -> list[Check]:
        """The checks with an alarm about something new; forgets what is quiet if `closing`."""
        new = []
        for check in checks:
            active = {(check.name, subject) for subject in check.subjects or ("",)}
            if not check.raised:
                active = set()
            if active - self._active.keys():
                new.append(check)
            quiet = {key for key in self._active if key[0] == check.name} - active
            for key in quiet if closing and not check.refused else ():
                if self.tokens >= 2 * self._active[key]:
                    del self._active[key]
            self._active |= dict.fromkeys(active, self.tokens)
        return new

    def _stays_high(self) -> bool:
        """Whether the last few losses are all far above those before: what a spike begins with."""
        count = min(loss.WINDOW, len(self._losses) - loss.LASTING)
        last = np.array(self._losses[-count - loss.LASTING :])
        before, now = last[:count], last[count:]
        median = np.median(before)
        return bool(now.min() > median + 3 * 1.4826 * np.median(np.abs(before - median)))

    def _logged(self, newest: int = 0) -> pd.DataFrame:
        """The last `newest` lines, all for 0."""
        lines = np.array(self._lines[-newest * len(_COLUMNS) :]).reshape(-1, len(_COLUMNS))
        return pd.DataFrame(lines, columns=_COLUMNS)

    def _study(self) -> Study:
        records = pd.DataFrame()
        if self._records:
            records = pd.concat(self._records, ignore_index=True)
        logged = self._logged().assign(run=self.run)
        plan = {self.run: self._budget} if self._budget > 0 else {}
        return Study(records, logged=logged, planned_tokens=plan)
