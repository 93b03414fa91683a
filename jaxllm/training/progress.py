"""The progress of a run, on one line."""

from __future__ import annotations

import sys
import time
from typing import TextIO

from jaxllm.run.times import duration


class Progress:
    """A line updated in place in a terminal; elsewhere a new line every `every` seconds."""

    def __init__(self, steps: int, every: float = 30.0, out: TextIO | None = None) -> None:
        self._steps = steps
        self._out = out or sys.stdout
        self._terminal = self._out.isatty()
        self._every = 0.2 if self._terminal else every
        self._width = 0
        self._began = self._shown = time.perf_counter()
        self._first: int | None = None

    def update(self, step: int, loss: float, tokens_per_second: float) -> None:
        """Show that `step` is done, unless the line is recent."""
        now = time.perf_counter()
        if self._first is None:
            self._first, self._began = step, now
        if now - self._shown < self._every:
            return
        self._shown = now
        left = duration((now - self._began) / max(1, step - self._first) * (self._steps - step))
        known = f"{left} left" if step > self._first else "time left unknown yet"
        self._write(
            f"step {step}/{self._steps} ({100 * step / self._steps:.0f} %)  loss {loss:.3f}  "
            f"{tokens_per_second:,.0f} tokens/s  {known}"
        )

    def log(self, text: str) -> None:
        """Print a permanent line."""
        self.close()
        print(text, file=self._out, flush=True)

    def _write(self, line: str) -> None:
        if not self._terminal:
            print(line, file=self._out, flush=True)
            return
        self._out.write("\r" + line.ljust(self._width))
        self._out.flush()
        self._width = len(line)

    def close(self) -> None:
        """Clear the line in a terminal."""
        if self._width:
            self._out.write("\r" + " " * self._width + "\r")
            self._out.flush()
            self._width = 0
