"""Watches a run while it is going: the checks of `health`, made when something can have changed.

What is looked at often rings by chance some time. So the trends are looked at `LOOKS` times in a
doubling of tokens, each time at the level `ALPHA / LOOKS`: a run on the very edge of its null
hypothesis rings in at most one of a hundred doublings. Spikes need no such care and are seen at
once. Between the looks a logged step costs a median of `checks_loss.WINDOW` numbers.
"""

from __future__ import annotations

import dataclasses
import math
from array import array
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from jaxllm.analysis import capabilities, checks_loss, checks_tasks, health
from jaxllm.analysis.checks import ALPHA, Check

LOOKS = 4
_COLUMNS = ("step", "tokens", "loss", "grad_norm", "learning_rate")
_FEWEST_LINES = 64  # below these every check of the metrics refuses
_NEWEST = 10_000  # steps that are searched for spikes at a look
_RECENT = 3 * checks_loss.WINDOW  # and between two looks


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
          references: Records and logged metrics of runs that it is held against at equal tokens.
        """
        self.run, self.step, self.tokens = run, 0, 0.0
        self._params, self._budget = params, budget_tokens
        self._lines, self._losses = array("d"), array("d")
        self._records: list[pd.DataFrame] = []
        self._open: dict[tuple[str, str], float] = {}
        self._line_look = self._score_look = 0.0
        self._loss_falls: bool | None = None
        self._references: list[checks_tasks.Curve] = []
        for number, (records, metrics) in enumerate(references):
            name, sizes = f"reference {number}", records.params.to_list() if len(records) else []
            curves = checks_tasks.curves(capabilities.charted(records.assign(run=name)))
            loss = health.logged_loss(metrics, name, sizes[0] if sizes else math.nan)
            self._references += curves + ([loss] if loss else [])

    def remember(self, check: str, subject: str, tokens: float) -> None:
        """Takes an alarm that was raised before, in another process: it is not new."""
        self._open[check, subject] = tokens

    def see_line(self, line: Mapping[str, Any], look: bool = True) -> list[Check]:
        """Takes a line of metrics.jsonl with its `step`; returns the new alarms.

        Args:
          line: The metrics by name; numbers, or None.
          look: Whether to look: not at lines that an earlier process has looked at.
        """
        row = [math.nan if line.get(name) is None else float(line[name]) for name in _COLUMNS]
        self._lines.extend(row)
        self.step, self.tokens, loss = int(row[0]), row[1], row[2]
        if math.isfinite(loss):
            self._losses.append(loss)
        due = (
            self.tokens >= self._line_look * 2 ** (1 / LOOKS) and len(self._losses) >= _FEWEST_LINES
        )
        if due:
            self._line_look = self.tokens
        if not look:
            return []
        if due:
            found = list(
                health.loss_checks(
                    self._logged(), self.run, self._budget, ALPHA / LOOKS, newest=_NEWEST
                )
            )
            self._loss_falls = health.falls(found)
            curve = health.logged_loss(self._logged(), self.run, self._params)
            if self._references and curve:
                band = self._band([curve])
                found.append(dataclasses.replace(band, name="reference band of the loss"))
            return self._new(found)
        if self._stays_high():
            spike = checks_loss.spikes(self._logged(_RECENT), self.run)
            since = tuple(s for s in spike.subjects if s.startswith(checks_loss.SINCE))
            # One that began before these lines is known from the looks.
            if since and spike.step > self._logged(checks_loss.WINDOW).step.iloc[0]:
                lasting = dataclasses.replace(spike, subjects=since)
                return self._new([lasting], closing=False)
        return []

    def see_scores(self, records: pd.DataFrame, look: bool = True) -> list[Check]:
        """Takes the main metric of each task at one checkpoint; returns the new alarms."""
        if records.empty:
            return []
        self._records.append(records)
        self.step, self.tokens = int(records.step.max()), float(records.tokens.max())
        if self.tokens < self._score_look * 2 ** (1 / LOOKS):
            return []
        self._score_look = self.tokens
        if not look or len(self._records) < checks_tasks.FEWEST:
            return []
        curves = checks_tasks.curves(self._scored())
        falling = checks_tasks.falling(curves, self.run, self._loss_falls, ALPHA / LOOKS)
        return self._new([falling, *([self._band(curves)] if self._references else [])])

    def advise(self) -> health.Advice:
        """What the rest of the budget would bring."""
        logged = self._logged().assign(run=self.run)
        (advice,) = health.advise(
            self._scored(), logged, runs=[self.run], budget_tokens=self._budget
        )
        return advice

    def _band(self, curves: Sequence[checks_tasks.Curve]) -> Check:
        return checks_tasks.outside_band(curves, self.run, self._references, ALPHA / LOOKS)

    def _new(self, checks: Sequence[Check], closing: bool = True) -> list[Check]:
        """The checks that are loud about something new; forgets what is quiet if `closing`."""
        new = []
        for check in checks:
            loud = {(check.name, subject) for subject in check.subjects or ("",)}
            if not check.raised:
                loud = set()
            if loud - self._open.keys():
                new.append(check)
            mine = {key for key in self._open if key[0] == check.name} - loud
            for key in mine if closing and not check.refused else ():
                if self.tokens >= 2 * self._open[key]:
                    del self._open[key]
            self._open |= dict.fromkeys(loud, self.tokens)
        return new

    def _stays_high(self) -> bool:
        """Whether the last few losses are all far above those before: what a spike begins with."""
        count = min(checks_loss.WINDOW, len(self._losses) - checks_loss.LASTING)
        if len(self._losses) < _FEWEST_LINES:
            return False
        last = np.array(self._losses[-count - checks_loss.LASTING :])
        before, now = last[:count], last[count:]
        median = np.median(before)
        return bool(now.min() > median + 3 * 1.4826 * np.median(np.abs(before - median)))

    def _logged(self, newest: int = 0) -> pd.DataFrame:
        """The last `newest` lines, all for 0."""
        lines = np.array(self._lines[-newest * len(_COLUMNS) :]).reshape(-1, len(_COLUMNS))
        return pd.DataFrame(lines, columns=_COLUMNS)

    def _scored(self) -> pd.DataFrame:
        if not self._records:
            return pd.DataFrame()
        frame = pd.concat(self._records, ignore_index=True)
        return frame.drop_duplicates(["step", "task", "metric"], keep="last")
