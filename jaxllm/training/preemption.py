"""Graceful preemption: a preempted machine gets SIGTERM before it is taken away."""

from __future__ import annotations

import signal
from typing import Any

import jax
from jax.experimental import multihost_utils


class Preemption:
    """Whether this process, or another host's, has received SIGTERM.

    On one host the signal sets a flag. On several, JAX's preemption service agrees on a call of
    `requested` at which every host sees it: all hosts must call it equally often.
    """

    def __init__(self) -> None:
        self._flag = False
        self._calls = 0
        self._previous: Any = None

    def __enter__(self) -> Preemption:
        # On several hosts JAX has its own handler, which ours would replace.
        if jax.process_count() == 1:
            note = lambda *_: setattr(self, "_flag", True)
            self._previous = signal.signal(signal.SIGTERM, note)
        return self

    def __exit__(self, *_: Any) -> None:
        if jax.process_count() == 1:
            signal.signal(signal.SIGTERM, self._previous)

    def requested(self) -> bool:
        """Whether to save and stop now."""
        if jax.process_count() > 1 and not self._flag:
            self._calls += 1
            self._flag = multihost_utils.reached_preemption_sync_point(self._calls)
        return self._flag
