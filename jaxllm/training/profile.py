"""A profiler trace of some steps, for the profile page of TensorBoard."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import jax

from jaxllm.models.batch import Batch
from jaxllm.run.layout import Layout
from jaxllm.training.state import TrainState
from jaxllm.training.step import StepMetrics, TrainStep


class Profile:
    """A trace of `steps`, one per host, in MODEL_DIR/tensorboard/plugins/profile/ for `xprof`.

    The profiler itself writes only to a disk.
    """

    def __init__(
        self, layout: Layout, steps: tuple[int, int] | None, log: Callable[[str], None]
    ) -> None:
        self._target, self._log = layout.tensorboard, log
        self._first, self._last = steps or (0, 0)
        self._local: tempfile.TemporaryDirectory[str] | None = None

    def around(self, update: TrainStep, number: Callable[[], int]) -> TrainStep:
        """Wrap `update` to trace the configured steps; `number` is that of the present one."""
        if not self._last:
            return update

        def traced(state: TrainState, batch: Batch) -> tuple[TrainState, StepMetrics]:
            step = number()
            if self._first <= step <= self._last and self._local is None:
                jax.block_until_ready(state)
                self._local = tempfile.TemporaryDirectory()
                jax.profiler.start_trace(self._local.name)
            with jax.profiler.StepTraceAnnotation("train", step_num=step):
                result = update(state, batch)
            if step == self._last:
                jax.block_until_ready(result)
                self.close()
            return result

        return traced

    def close(self) -> None:
        """Write the trace, if one is active."""
        if self._local is None:
            return
        with self._local as local:
            self._local = None
            jax.profiler.stop_trace()
            for file in (path for path in Path(local).rglob("*") if path.is_file()):
                copy = self._target / str(file.relative_to(local))
                copy.parent.mkdir(parents=True, exist_ok=True)
                copy.write_bytes(file.read_bytes())
        self._log(f"the profile of steps {self._first} to {self._last} is in {self._target}")
