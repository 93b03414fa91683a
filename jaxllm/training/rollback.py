"""Roll back: from a divergence to the last good checkpoint, and past the data that led to it.

A run has diverged if its loss or gradient norm is not finite (with `skipping`: too often in a
row), or its loss has stayed above its limit for too long. It goes back to the newest checkpoint
before, trains up to the bad stretch, bitwise as before, and passes over it: step, data position and
learning rate go on, without updates. So PaLM (arXiv 2204.02311, §5.1) skipped 200 to 500 batches,
from 100 before a spike. A run is a function of its settings and the stretches in rollbacks.jsonl.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from jaxllm.errors import UserError
from jaxllm.run.lease import LeaseLost
from jaxllm.run.run import Run
from jaxllm.runtime import of_first_process
from jaxllm.training.config import RollbackConfig
from jaxllm.training.skipping import limit

WINDOW, THRESHOLD = 128, 10.0  # of the losses outside of spikes, as in SkipConfig
RECOVERED = 10  # losses below the limit in a row that end a spike


class Diverged(UserError):
    """Training cannot continue from the present state, since steps `first` to `last`."""

    def __init__(self, message: str, first: int, last: int) -> None:
        super().__init__(message)
        self.first, self.last = first, last


class SpikeWatch:
    """The spike that a run is in, if any: `since` is its first step, None outside of one."""

    def __init__(self, config: RollbackConfig | None, saved: Mapping[str, Any]) -> None:
        """Go on from what `to_json` has saved; without `config` there are no spikes."""
        self._config = config
        self._losses = deque[float](saved.get("losses", ()), WINDOW)
        self.since: int | None = saved.get("since")
        self._good = int(saved.get("good", 0))  # losses below the limit, in a row

    def to_json(self) -> dict[str, Any]:
        """The state that a checkpoint must save."""
        state = {"losses": list(self._losses), "since": self.since, "good": self._good}
        return state if self._config else {}

    def add(self, step: int, loss: float, shifted: bool = False) -> None:
        """Take the loss of a step, the first of a new level if `shifted`, by `skipping`.

        Diverged if it does not recover.
        """
        if self._config is None:
            return
        if shifted:
            self._losses.clear()
            self.since = None
        known, highest = np.array(self._losses), math.inf
        if 2 * len(known) >= WINDOW:
            highest = float(limit(known, THRESHOLD, np))
        if loss <= highest and math.isfinite(loss):
            self._losses.append(loss)
            self._good += 1
            if self._good >= min(RECOVERED, self._config.recovery_steps):
                self.since = None
            return
        self.since, self._good = self.since or step, 0
        if step - self.since >= self._config.recovery_steps:
            raise Diverged(
                f"the loss rose above {highest:.4f} at step {self.since} and has not recovered by "
                f"step {step}, at which it is {loss:.4f}", self.since, step
            )  # fmt: skip


def roll_back(
    run: Run, config: RollbackConfig | None, diverged: Diverged, log: Callable[[str], None]
) -> None:
    """Record the stretch that the run will pass over; raise Diverged if it may not, or cannot."""
    if config is None:
        raise diverged
    span = diverged.first, diverged.last
    rows = [f"{one.first}:{one.last}" for one in run.rollbacks() if one.by == "divergence"]
    before: list[str] = of_first_process(rows)  # another host may read after it has written
    if len(before) >= config.times:
        tried = f"rollbacks past the steps {', '.join(before)} have not helped"
        raise Diverged(f"{diverged}. {tried}: it is not the data alone", *span) from diverged
    begun = max((e.step for e in run.entries() if e.kind == "branched"), default=0)
    first, last = max(begun + 1, span[0] - config.margin), span[1] + config.margin
    try:
        to = run.pass_over(first, last, "divergence", str(diverged)).step
    except LeaseLost:
        raise
    except UserError as error:
        raise Diverged(f"{diverged}. {error}", *span) from diverged
    number = f"rollback {len(before) + 1} of {config.times}"
    log(f"DIVERGED: {diverged}. The {number} is to step {to}, to pass over steps {first}:{last}")


def skip_by_hand(run: Run, steps: str) -> None:
    """Record the stretch of --skip_steps=FIRST:LAST, unless it is recorded already.

    UserError if it is malformed, or the run has no checkpoint before it.
    """
    first, _, last = steps.partition(":")
    if not (first.isdigit() and last.isdigit() and 1 <= int(first) <= int(last)):
        raise UserError(f"--skip_steps={steps}: write the first and last step, as 1200:1399")
    stretch = int(first), int(last)
    if of_first_process(stretch not in [one[1:3] for one in run.rollbacks()]):
        run.pass_over(*stretch, "hand")
