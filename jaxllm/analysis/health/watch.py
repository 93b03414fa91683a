"""Health checks of a run in progress, repeated as its metrics and scores come in.

Repeated tests inflate the false-alarm rate, so the trends are tested `LOOKS` times per doubling of
tokens, each at the level `ALPHA / LOOKS`: in at most one of a hundred doublings a run at the
boundary raises a false alarm. Spikes need no correction and are reported at once, jumps of the loss
at every `level.BLOCK`th logged step.
"""

from __future__ import annotations

import dataclasses
import math
from array import array
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from jaxllm.analysis.health import level, loss, tasks
from jaxllm.analysis.health.result import ALPHA, Check
from jaxllm.analysis.registry import Study

LOOKS = 4
_COLUMNS = ("step", "tokens", "loss", "grad_norm", "learning_rate")
_FEWEST_LINES = 64  # with fewer every check of the metrics is refused
_NEWEST = 10_000  # steps searched for spikes at a test
_RECENT = 3 * loss.WINDOW  # the same between two tests
_QUIET = "It has not been seen for a doubling of tokens."


class Watch:
    """Checks the metrics and scores of a run as they come in, and returns new alarms.

    An alarm is new once for each of its subjects (a task, a spike). It is cleared once the loss has
    come back, others after a doubling of tokens without them: a check that is not `raised` names
    the subjects that are cleared. Memory: five numbers per logged step.
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
        self.step, self.tokens = int(row[0]), row[1]
        if "loss" not in line:  # every step was skipped
            return []
        self._lines.extend(row)
        if math.isfinite(row[2]):
            self._losses.append(row[2])
        count = len(self._losses)
        enough = count >= _FEWEST_LINES
        due = enough and self.tokens >= self._metrics_tested * 2 ** (1 / LOOKS)
        self._metrics_tested = self.tokens if due else self._metrics_tested
        if not check:
            return []
        new: list[Check] = []
        if any(name.startswith(level.LAYERS) for name in line):
            new += self._new([level.dead_layers(pd.DataFrame([line]))])
        if not math.isfinite(row[2]) or self._active_since(loss.FINITE):
            new += self._new([loss.non_finite_loss(self._logged(loss.LASTING))])
        if due:
            _, *checks = loss.loss_checks(self._logged(), ALPHA / LOOKS, newest=_NEWEST)
            new += self._new(checks)
        lasting = self._active_since(loss.SPIKES, loss.SINCE)
        if enough and (count % loss.LASTING == 0 if lasting else self._stays_high()):
            spike = loss.spikes(self._logged(_NEWEST if lasting else _RECENT))
            # A spike that began before these lines was reported by the tests.
            if lasting or spike.step > self._logged(loss.WINDOW).step.iloc[0]:
                new += self._new([spike], loss.SINCE)
        elif enough and count % level.BLOCK == 0:
            recent = self._logged(level.LINES)
            recent = recent[recent.tokens > self._active_since(level.NAME)]
            new += self._new([level.jumps(recent)])
        return new

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
        return self._new([tasks.falling(list(scored.curves), ALPHA / LOOKS)])

    def _active_since(self, name: str, kind: str = "") -> float:
        """Tokens at the newest alarm of a check, of subjects of a kind; 0 if none is active."""
        ours = lambda key: key[0] == name and key[1].startswith(kind)
        return max((tokens for key, tokens in self._active.items() if ours(key)), default=0.0)

    def _new(self, checks: Sequence[Check], kind: str = "") -> list[Check]:
        """Checks with a new alarm or one that is cleared, of subjects that begin with `kind`."""
        new = []
        for check in checks:
            subjects = (check.subjects or ("",)) if check.raised else ()
            active = {(check.name, subject) for subject in subjects if subject.startswith(kind)}
            if active - self._active.keys():
                found = tuple(subject for _, subject in sorted(active) if subject)
                new.append(dataclasses.replace(check, subjects=found))
            for key in sorted(self._active.keys() - active) if not check.refused else ():
                if key[0] != check.name or not key[1].startswith(kind):
                    continue
                at_once = key[0] == loss.FINITE or key[1].startswith(loss.SINCE)
                if at_once or self.tokens >= 2 * self._active[key]:
                    del self._active[key]
                    reason = "The loss has come back." if at_once else _QUIET
                    new.append(Check(key[0], reason=reason, subjects=key[1:] if key[1] else ()))
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
