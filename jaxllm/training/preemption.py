"""Graceful preemption: a preempted machine gets SIGTERM before it is taken away."""

from __future__ import annotations

import os
import signal
import sys
from signal import SIGHUP, SIGINT, SIGTERM
from typing import Any

import jax
from jax.experimental import multihost_utils


class Preemption:
    """Whether this process, or another host's, is to stop: by SIGTERM, SIGHUP or Ctrl-C.

    On one host a signal sets a flag. On several, JAX's preemption service, which knows SIGTERM,
    agrees on a call of `requested` at which every host sees it: all hosts must call it equally
    often. A signal that is ignored, as under nohup, stays so.
    """

    def __init__(self) -> None:
        self.interrupted = False  # whether it was Ctrl-C, here
        self._flag = False
        self._calls = 0
        self._alone = jax.process_count() == 1
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> Preemption:
        # On several hosts JAX has its own handler of SIGTERM, which ours would replace.
        for number in (SIGINT, SIGHUP, SIGTERM) if self._alone else (SIGINT, SIGHUP):
            if signal.getsignal(number) != signal.SIG_IGN:
                self._previous[number] = signal.signal(number, self._note)
        return self

    def release(self) -> None:
        """Leave JAX's service: once `requested` is called no more, a signal makes hosts wait.

        SIGTERM ends no host from then on, as JAX's handler, which no `__exit__` restores, let none.
        """
        if not self._alone:
            self._alone = True
            signal.signal(SIGTERM, self._note)

    def __exit__(self, *_: Any) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def requested(self) -> bool:
        """Whether to save and stop now."""
        if not (self._alone or self._flag):
            self._calls += 1
            self._flag = multihost_utils.reached_preemption_sync_point(self._calls)
        return self._flag

    def _note(self, number: int, _: Any) -> None:
        if number == SIGINT and not self.interrupted:
            self.interrupted = True
            # `print` may have been interrupted inside, and cannot be called again
            clear = b"\r\x1b[K" if sys.stderr.isatty() else b""
            os.write(2, clear + b"Ctrl-C: saves and ends; once more ends at once\n")
        if self._alone:
            self._flag = True
        else:
            os.kill(os.getpid(), SIGTERM)
