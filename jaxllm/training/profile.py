"""A profiler trace of some steps, for the profile page of TensorBoard."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from jaxllm.models.batch import Batch
from jaxllm.run.layout import Layout
from jaxllm.training.state import TrainState
from jaxllm.training.step import StepMetrics, TrainStep


class Profile:
    """A trace from the first to the last of `steps`, with everything between them.

    It is written to MODEL_DIR/tensorboard/plugins/profile/, where TensorBoard's plugin `xprof`
    looks for it; one per host.
    """

    def __init__(
        self, layout: Layout, steps: tuple[int, int] | None, log: Callable[[str], None]
    ) -> None:
        self._target, self._log = layout.tensorboard, log
        self._first, self._last = steps or (0, 0)
        self._opened: contextlib.ExitStack | None = None

    def around(self, update: TrainStep, step: int) -> TrainStep:
        """Wrap `update` to trace the configured steps; `step` updates have been done."""

        if not self._last:
            return update

        def traced(state: TrainState, batch: Batch) -> tuple[TrainState, StepMetrics]:
            nonlocal step
            step += 1
            if self._first <= step <= self._last and self._opened is None:
                jax.block_until_ready(state)
                self._open()
            with jax.profiler.StepTraceAnnotation("train", step_num=step):
                result = update(state, batch)
            if step == self._last:
                jax.block_until_ready(result)
                self.close()
            return result

        return traced

    def close(self) -> None:
        """Write the trace, if one is active."""
        if self._opened is not None:
            self._opened.close()
            self._opened = None
            self._log(f"the profile of steps {self._first} to {self._last} is in {self._target}")

    def _open(self) -> None:
        with contextlib.ExitStack() as opened:
            local = Path(self._target)
            if "://" in str(self._target):  # the profiler writes only to a disk
                local = Path(opened.enter_context(tempfile.TemporaryDirectory()))
                opened.callback(_copy, local, self._target)
            jax.profiler.start_trace(local)
            opened.callback(jax.profiler.stop_trace)
            self._opened = opened.pop_all()


def _copy(source: Path, target: Any) -> None:
    for path in source.rglob("*"):
        if path.is_file():
            copy = target / str(path.relative_to(source))
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(path.read_bytes())
