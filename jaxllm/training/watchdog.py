"""A watchdog: dumps the stacks of all threads to stderr when a run hangs."""

from __future__ import annotations

import faulthandler
import threading
import time
from collections.abc import Callable


class Watchdog:
    """A countdown that starts at the first heartbeat, and restarts at each.

    After `minutes` without one, and at most a tenth more, the stacks are dumped, and again after
    each such interval. With `exit` the process exits with code 1 then, so that a supervisor can
    restart the hosts. `faulthandler` waits and writes in C, to an open descriptor: it works
    whatever hangs. Shortly before, a thread calls `on_hang`, unless what hangs holds the
    interpreter's lock.
    """

    def __init__(
        self, minutes: float | None, exit: bool, on_hang: Callable[[], None] | None = None
    ) -> None:
        self._seconds, self._exit, self._on_hang = 60 * (minutes or 0.0), exit, on_hang
        self._armed: float | None = None
        self._timer: threading.Timer | None = None

    def heartbeat(self) -> None:
        """Restart the countdown."""
        now = time.monotonic()
        due = self._armed is None or now - self._armed > self._seconds / 20
        if self._seconds and due:  # each call starts a thread: not at every step
            self.pause()
            self._armed = now
            if self._on_hang:
                self._timer = threading.Timer(1.05 * self._seconds, self._on_hang)
                self._timer.daemon = True
                self._timer.start()
            later = 1.1 * self._seconds  # than the alarm, which is no earlier than the limit
            faulthandler.dump_traceback_later(later, repeat=True, file=2, exit=self._exit)

    def pause(self) -> None:
        """Stop the countdown until the next heartbeat."""
        if self._armed is not None:
            faulthandler.cancel_dump_traceback_later()
        if self._timer is not None:
            self._timer.cancel()
        self._armed = None

    close = pause
