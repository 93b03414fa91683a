"""A step that hangs says where: the stacks of all threads, on stderr and in MODEL_DIR/stacks/."""

from __future__ import annotations

import collections
import faulthandler
import os
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from typing import Any

import jax
from etils import epath

from jaxllm.run.layout import Layout

_BEFORE_THE_FIRST_STEP = ("setup", "compile")  # may take as long as they take


class Watchdog:
    """Waits in a thread of its own for the next sign of life.

    It barks when none has come for the longer of `minutes` and `medians` times the median step,
    and again each time that the silence has doubled. By default it only barks: a slow disk or a
    large evaluation is no reason to end a run. With `exit` it ends the process with code 1, so that
    what supervises the hosts starts them again; the other hosts end with it.
    """

    def __init__(
        self,
        model_dir: epath.PathLike,
        *,
        minutes: float | None,
        medians: float,
        exit: bool,
        doing: Callable[[], str],
    ) -> None:
        self._stacks = Layout(model_dir).stacks
        self._minutes, self._medians, self._exit, self._doing = minutes, medians, exit, doing
        self._step, self._alive = 0, time.monotonic()
        self._durations: collections.deque[float] = collections.deque(maxlen=100)
        self._stepped: float | None = None
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def __enter__(self) -> Watchdog:
        if self._minutes is not None:
            self._thread.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._ended.set()

    def alive(self) -> None:
        """Something other than a step has gone forward."""
        self._alive, self._stepped = time.monotonic(), None

    def step(self, step: int) -> None:
        """A step has ended."""
        self._step, self._alive = step, time.monotonic()
        if self._stepped is not None:
            self._durations.append(self._alive - self._stepped)
        self._stepped = self._alive

    @property
    def limit(self) -> float:
        """Seconds of silence that are too long."""
        median = statistics.median(self._durations) if self._durations else 0.0
        return max(60 * (self._minutes or 0.0), self._medians * median)

    def _watch(self) -> None:
        barked = 0.0
        while not self._ended.wait(min(1.0, self.limit / 10)):
            if self._doing() in _BEFORE_THE_FIRST_STEP:
                self._alive = time.monotonic()
            silence = time.monotonic() - self._alive
            if silence < self.limit:
                barked = 0.0
            elif silence >= 2 * barked:
                barked = silence
                self._bark(silence)
                if self._exit:
                    os._exit(1)

    def _bark(self, silence: float) -> None:
        process = jax.process_index()
        name = f"step_{self._step}.process_{process}.txt"
        after = f"process {process} shows no sign of life {silence:.0f} s after step {self._step}"
        with tempfile.TemporaryFile("w+") as file:
            faulthandler.dump_traceback(file, all_threads=True)
            file.seek(0)
            text = f"{after}, in: {self._doing()}\n\n{file.read()}"
        print(f"\nwatchdog: {text}", file=sys.stderr, flush=True)
        self._stacks.mkdir(parents=True, exist_ok=True)  # last: what hangs may be this very disk
        (self._stacks / name).write_text(text)
