"""Training metrics: from sums on the device to lines of metrics.jsonl."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from jaxllm.errors import UserError
from jaxllm.io import JsonLines
from jaxllm.models.config import ModelConfig
from jaxllm.run.times import TimeBreakdown
from jaxllm.sharding.chips import peak_flops, utilisation
from jaxllm.training.progress import Progress
from jaxllm.training.step import StepMetrics
from jaxllm.training.timer import GoodputTimer
from jaxllm.training.watchdog import Watchdog
from jaxllm.training.writers import Writer


class Diverged(UserError):
    """The loss or the gradient norm is not finite: training cannot continue."""


@dataclasses.dataclass(frozen=True)
class Position:
    """The progress of a run.

    Attributes:
      step: updates done.
      tokens: tokens seen, padding included.
      sequences: global index of the next sequence.
      batch_size: sequences per step.
      length: tokens per sequence.
    """

    step: int
    tokens: int
    sequences: int
    batch_size: int
    length: int

    def at(self, step: int) -> Position:
        """The position after update `step`."""
        new = (step - self.step) * self.batch_size
        return dataclasses.replace(
            self,
            step=step,
            tokens=self.tokens + new * self.length,
            sequences=self.sequences + new,
        )


class LossSums:
    """Loss and weight sums by domain since the last line, in float64.

    They are saved with a checkpoint, so that the first line after a resume is exact.
    """

    def __init__(self, domains: Sequence[str], saved: Mapping[str, Any] | None = None) -> None:
        saved = saved or {}
        self._domains = tuple(domains)
        self._losses = [float(saved.get("loss_sums", {}).get(d, 0.0)) for d in domains]
        self._weights = [float(saved.get("weight_sums", {}).get(d, 0.0)) for d in domains]

    def add(self, losses: np.ndarray, weights: np.ndarray) -> None:
        """Add the sums of one step, [domains] each."""
        for i, (loss, weight) in enumerate(zip(losses, weights, strict=True)):
            self._losses[i] += float(loss)
            self._weights[i] += float(weight)

    def means(self) -> dict[str, float]:
        """`loss`, and `loss/<domain>` for each domain with targets; nats per token."""
        total = {"loss": sum(self._losses) / max(sum(self._weights), 1e-30)}
        seen = zip(self._domains, self._losses, self._weights, strict=True)
        return total | {f"loss/{d}": loss / weight for d, loss, weight in seen if weight > 0}

    def custom_metadata(self) -> dict[str, Any]:
        """The sums as JSON."""
        return {
            "loss_sums": dict(zip(self._domains, self._losses, strict=True)),
            "weight_sums": dict(zip(self._domains, self._weights, strict=True)),
        }


class MetricsLog:
    """The log of a run's metrics: reads each step while the next one runs, writes some as lines.

    Reading one step late keeps the device busy; reading every step detects a non-finite loss before
    anything more is saved.

    Attributes:
      loss: loss of the last step read; None before the first.
      learning_rate: learning rate of the same step.
      saved: step of the newest checkpoint, for the error message.
    """

    def __init__(
        self,
        *,
        model: ModelConfig,
        start: Position,
        saved: int | None,
        domains: Sequence[str],
        custom_metadata: Mapping[str, Any],
        every: int,
        steps: int,
        restarts: int,
        timer: GoodputTimer,
        watchdog: Watchdog,
        progress: Progress,
        lines: JsonLines | None,
        writers: Sequence[Writer],
    ) -> None:
        self.loss: float | None = None
        self.learning_rate: float | None = None
        self.saved = saved
        self._model, self._start, self._domains = model, start, tuple(domains)
        self._every, self._steps, self._restarts = every, steps, restarts
        self._timer, self._watchdog = timer, watchdog
        self._progress, self._lines, self._writers = progress, lines, writers
        self._sums = LossSums(domains, custom_metadata)
        self._pending: tuple[int, StepMetrics] | None = None
        self._last_line = start.step
        self._speed = 0.0

    def add(self, step: int, metrics: StepMetrics) -> None:
        """Take the metrics of a step just dispatched to the device."""
        self.flush()
        self._pending = (step, metrics)

    def flush(self) -> None:
        """Wait for the pending step and read its metrics.

        Raises:
          Diverged: its loss or gradient norm is not finite.
        """
        if self._pending is None:
            return
        step, metrics = self._pending
        self._pending = None
        self._read(step, jax.device_get(metrics))
        self._watchdog.heartbeat()

    def custom_metadata(self) -> dict[str, Any]:
        """The sums that a checkpoint must save for the next line to be exact."""
        return self._sums.custom_metadata()

    def _read(self, step: int, metrics: StepMetrics) -> None:
        loss = float(np.sum(metrics.loss_sums) / max(np.sum(metrics.weight_sums), 1e-30))
        self._check_finite(step, loss, float(metrics.grad_norm))
        self._sums.add(np.asarray(metrics.loss_sums), np.asarray(metrics.weight_sums))
        self.loss, self.learning_rate = loss, float(metrics.learning_rate)
        if step % self._every == 0 or step == self._steps:
            self._write_line(step, metrics)
        self._progress.update(step, loss, self._speed or self._speed_so_far(step))

    def _write_line(self, step: int, metrics: StepMetrics) -> None:
        line = self._line(step, metrics) | self._timing(step - self._last_line, self._timer.lap())
        self._last_line = step
        self._sums = LossSums(self._domains)
        if self._lines:
            self._lines.append({"step": step, **line})
        for writer in self._writers:
            writer.write_metrics(step, line)

    def _line(self, step: int, metrics: StepMetrics) -> dict[str, float | int | None]:
        """The metrics that depend on seed and step alone."""
        tokens = self._start.at(step).tokens
        return {
            "tokens": tokens,
            "flops": 6.0 * self._model.num_params * tokens,
            **self._sums.means(),
            "grad_norm": float(metrics.grad_norm),
            "param_norm": float(metrics.param_norm),
            "learning_rate": float(metrics.learning_rate),
        }

    def _timing(self, steps: int, lap: TimeBreakdown) -> dict[str, float | int | None]:
        """The metrics that depend on the machine.

        MFU counts 6N and full attention, `mfu_causal` 6N and causal attention. Seconds are those
        since the last line, shares those of the whole run.
        """
        length, devices, run = self._start.length, jax.device_count(), self._timer.run()
        speed = self._speed = steps * self._start.batch_size * length / lap.steps
        peak = peak_flops(jax.devices()[0])
        full = speed * self._model.flops_per_token(length, causal=False)
        causal = speed * self._model.flops_per_token(length, causal=True)
        return {
            "tokens_per_second": speed,
            "flops_per_second": full,
            "mfu": utilisation(full, devices, peak),
            "mfu_causal": utilisation(causal, devices, peak),
            "step_seconds": lap.steps / steps,
            "data_wait_seconds": lap.data,
            "checkpoint_seconds": lap.checkpoint,
            "evaluation_seconds": lap.evaluation,
            "compile_seconds": lap.compile,
            **run.shares(),
            "wall_seconds": run.wall,
            "restarts": self._restarts,
        }

    def _speed_so_far(self, step: int) -> float:
        steps = step - self._start.step
        return steps * self._start.batch_size * self._start.length / self._timer.total().steps

    def _check_finite(self, step: int, loss: float, grad_norm: float) -> None:
        if math.isfinite(loss) and math.isfinite(grad_norm):
            return
        what = "gradient norm" if math.isfinite(loss) else "loss"
        value = grad_norm if math.isfinite(loss) else loss
        good = f"step {step - 1} (loss {self.loss:.4f})" if self.loss is not None else "none here"
        saved = f"step {self.saved}" if self.saved is not None else "none"
        raise Diverged(
            f"the {what} is {value} at step {step}; last good: {good}; newest checkpoint: {saved}."
            " Lower ScheduleConfig.peak_lr, lengthen warmup_steps, or lower the optimizer's"
            " max_grad_norm"
        )
