"""Health checks of a run in progress, repeated as its metrics and scores come in.

Repeated tests inflate the false-alarm rate. So the trends are tested `LOOKS` times per doubling of
tokens, each at the level `ALPHA / LOOKS`: a run at the boundary of its null hypothesis raises a
false alarm in at most one of a hundred doublings. Spikes need no correction and are reported at
once. Between the tests a logged step costs a median of `loss.WINDOW` numbers.
"""

from __future__ import annotations

import dataclasses
import math
from array import array
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from jaxllm.analysis.health import loss, tasks
from jaxllm.analysis.health.result import ALPHA, Check
from jaxllm.analysis.registry import Study

LOOKS = 4
_COLUMNS = ("step", "tokens", "loss", "grad_norm", "learning_rate")
_FEWEST_LINES = 64  # with fewer every check of the metrics is refused
_NEWEST = 10_000  # steps searched for spikes at a test
_RECENT = 3 * loss.WINDOW  # the same between two tests


class Watch:
    """Checks the metrics and scores of a run as they come in, and returns new alarms.

    An alarm is new once for each of its subjects (a task, a spike), and again after a doubling of
    tokens without it. Memory: five numbers per logged step.
    """

    def __init__(self) -> None:
        """Start with no data."""
        self.step, self.tokens = 0, 0.0  # of the newest logged metrics or scores
        self._lines, self._losses = array("d"), array("d")
        self._records: list[pd.DataFrame] = []
        self._active: dict[tuple[str, str], float] = {}
        self._metrics_tested = self._scores_tested = 0.0

    def restore(self, check: str, subject: str, tokens: float) -> None:
        """Restore an alarm raised by an earlier process, so that it is not new."""
        self._active[check, subject] = tokens

    def on_metrics(self, line: Mapping[str, Any], check: bool = True) -> list[Check]:
        """Add a line of metrics.jsonl; return the new alarms, none without `check`."""
        row = [math.nan if line.get(name) is None else float(line[name]) for name in _COLUMNS]
        self._lines.extend(row)
        self.step, self.tokens = int(row[0]), row[1]
        if math.isfinite(row[2]):
            self._losses.append(row[2])
        enough = len(self._losses) >= _FEWEST_LINES
        due = enough and self.tokens >= self._metrics_tested * 2 ** (1 / LOOKS)
        self._metrics_tested = self.tokens if due else self._metrics_tested
        if check and due:
            return self._new(loss.loss_checks(self._logged(), ALPHA / LOOKS, newest=_NEWEST))
        if check and enough and self._stays_high():
            spike = loss.spikes(self._logged(_RECENT))
            since = tuple(s for s in spike.subjects if s.startswith(loss.SINCE))
            # A spike that began before these lines was reported by the tests.
            if since and spike.step > self._logged(loss.WINDOW).step.iloc[0]:
                return self._new([dataclasses.replace(spike, subjects=since)], closing=False)
        return []

    def on_scores(self, records: pd.DataFrame, check: bool = True) -> list[Check]:
        """Add the primary metric of each task at one checkpoint; return the new alarms."""
        if records.empty:
            return []
        self._records.append(records)
        self.step, self.tokens = int(records.step.max()), float(records.tokens.max())
        if self.tokens < self._scores_tested * 2 ** (1 / LOOKS):
            return []
        self._scores_tested = self.tokens
        if not check or len(self._records) < tasks.FEWEST:
            return []
        scored = Study(pd.concat(self._records, ignore_index=True))
        return self._new([tasks.falling(tasks.judged(scored.curves), ALPHA / LOOKS)])

    def _new(self, checks: Sequence[Check], closing: bool = True) -> list[Check]:
        """Checks with a new alarm; with `closing`, clear alarms that ended a doubling ago."""
        new = []
        for check in checks:
            subjects = (check.subjects or ("",)) if check.raised else ()
            active = {(check.name, subject) for subject in subjects}
            if active - self._active.keys():
                new.append(check)
            quiet = {key for key in self._active if key[0] == check.name} - active
            for key in quiet if closing and not check.refused else ():
                if self.tokens >= 2 * self._active[key]:
                    del self._active[key]
            self._active |= dict.fromkeys(active, self.tokens)
        return new

    def _stays_high(self) -> bool:
        """Whether the last `LASTING` losses are all far above those before: a candidate spike."""
        count = min(loss.WINDOW, len(self._losses) - loss.LASTING)
        last = np.array(self._losses[-count - loss.LASTING :])
        before, now = last[:count], last[count:]
        median = np.median(before)
        return bool(now.min() > median + 3 * 1.4826 * np.median(np.abs(before - median)))

    def _logged(self, newest: int = 0) -> pd.DataFrame:
        """Last `newest` logged lines as a table; 0 for all."""
        lines = np.array(self._lines[-newest * len(_COLUMNS) :]).reshape(-1, len(_COLUMNS))
        return pd.DataFrame(lines, columns=_COLUMNS)
