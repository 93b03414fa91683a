"""A run that hangs says where: the stacks of all threads, on stderr."""

from __future__ import annotations

import faulthandler
import time


class Watchdog:
    """Waits for the next sign of life, from the first one on; what comes before may take its time.

    Without one for `minutes`, the stacks are written, again after each such time. By default that
    is all: a slow disk or a large evaluation is no reason to end a run. With `exit` the process
    then ends with code 1, so that what supervises the hosts starts them again; the others end too.

    `faulthandler` waits and writes in C, without the interpreter's lock, to a descriptor that is
    open already: it works whatever hangs, MODEL_DIR included.
    """

    def __init__(self, minutes: float | None, exit: bool) -> None:
        self._seconds, self._exit = 60 * (minutes or 0.0), exit
        self._armed: float | None = None

    def heartbeat(self) -> None:
        """Says that the run goes forward."""
        now = time.monotonic()
        due = self._armed is None or now - self._armed > self._seconds / 20
        if self._seconds and due:  # a thread each time: not at every step
            self._armed = now
            faulthandler.dump_traceback_later(self._seconds, repeat=True, file=2, exit=self._exit)

    def pause(self) -> None:
        """Stops waiting, until the next heartbeat."""
        if self._armed is not None:
            faulthandler.cancel_dump_traceback_later()
        self._armed = None

    close = pause
