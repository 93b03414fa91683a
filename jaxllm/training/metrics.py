"""Training metrics: from sums on the device to lines of metrics.jsonl."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, Protocol

import jax
import numpy as np

from jaxllm.errors import UserError
from jaxllm.io import JsonLines
from jaxllm.kvstore import traffic
from jaxllm.run.run import Resumed
from jaxllm.run.times import GoodputTimer, TimeBreakdown
from jaxllm.sharding.chips import peak_flops, utilisation
from jaxllm.training.experiment import Experiment, Position
from jaxllm.training.progress import Progress
from jaxllm.training.step import StepMetrics
from jaxllm.training.watchdog import Watchdog


class Diverged(UserError):
    """The loss or the gradient norm is not finite: training cannot continue."""


class Writer(Protocol):
    """An output of a run's measurements besides its own files."""

    def write_metrics(self, step: int, metrics: Mapping[str, Any]) -> None:
        """Write a line of metrics: numbers, or None where there is no value."""

    def write_records(self, step: int, records: Sequence[Any]) -> None:
        """Write the `jaxllm.run.records.Record`s of a scored checkpoint."""

    def flush(self) -> None:
        """Store what is not yet stored: no step before the checkpoint to come is done again."""

    def close(self) -> None:
        """Flush and close."""


class MetricsLog:
    """The log of a run's metrics: reads each step while the next one runs, writes some as lines.

    Reading one step late keeps the device busy; reading every step detects a non-finite loss before
    anything more is saved. Sums since the last line are float64, and saved with a checkpoint, so
    that the first line after a resume is exact.
    """

    def __init__(
        self,
        experiment: Experiment,
        start: Position,
        resumed: Resumed | None,
        sums: Mapping[str, Any],
        domains: Sequence[str],
        timer: GoodputTimer,
        watchdog: Watchdog,
        progress: Progress,
        lines: JsonLines | None,
        writers: Sequence[Writer],
    ) -> None:
        """Begin at `start`, with the `sums` that the restored checkpoint has saved."""
        self.loss: float | None = None  # of the last step read
        self.learning_rate: float | None = None  # of the same step
        self.saved = start.step if resumed else None  # step of the newest checkpoint
        self._restarts = resumed.restarts if resumed else 0
        self._timer, self._watchdog, self._progress = timer, watchdog, progress
        self._lines, self._writers = lines, writers
        self._pending: tuple[int, StepMetrics] | None = None
        self.enter(experiment, start, domains, sums)
        self._last_line, self._timed = start.step, TimeBreakdown()
        self._first_traffic = self._traffic = traffic()
        self._speed = 0.0

    def enter(
        self,
        experiment: Experiment,
        start: Position,
        domains: Sequence[str],
        sums: Mapping[str, Any] = MappingProxyType({}),
    ) -> None:
        """Go on from `start` in a stage; the last step of the one before has a line."""
        self.flush()
        self._experiment, self._start = experiment, start
        self._sums = {
            name: {d: float(sums.get(name, {}).get(d, 0.0)) for d in domains}
            for name in ("loss_sums", "weight_sums")
        }

    def add(self, step: int, metrics: StepMetrics) -> None:
        """Take the metrics of a step just dispatched to the device."""
        self.flush()
        self._pending = (step, metrics)

    def flush(self) -> None:
        """Wait for the pending step and read its metrics; Diverged if they are not finite."""
        if self._pending is None:
            return
        (step, metrics), self._pending = jax.device_get(self._pending), None
        self._read(int(step), metrics)
        self._watchdog.heartbeat()

    def custom_metadata(self) -> dict[str, Any]:
        """The sums that a checkpoint must save for the next line to be exact."""
        return {name: dict(sums) for name, sums in self._sums.items()}

    def _read(self, step: int, metrics: StepMetrics) -> None:
        loss = float(np.sum(metrics.loss_sums) / max(np.sum(metrics.weight_sums), 1e-30))
        self._check_finite(step, loss, float(metrics.grad_norm))
        for name, sums in self._sums.items():
            for domain, value in zip(sums, getattr(metrics, name), strict=True):
                sums[domain] += float(value)
        self.loss, self.learning_rate = loss, float(metrics.learning_rate)
        if step % self._experiment.train.log_every == 0 or step == self._experiment.train.steps:
            self._write_line(step, metrics)
        tokens = (step - self._start.step) * self._experiment.tokens_per_step
        self._progress.update(step, loss, self._speed or tokens / self._timer.total().steps)

    def _write_line(self, step: int, metrics: StepMetrics) -> None:
        steps, total = step - self._last_line, self._timer.total()
        lap, self._timed = total - self._timed, total
        line = self._line(step, metrics) | self._timing(steps, lap)
        before, self._traffic = self._traffic, traffic()
        if self._traffic != self._first_traffic:  # of this host with buckets, in requests and bytes
            line |= {name: (n - before.get(name, 0)) / steps for name, n in self._traffic.items()}
        self._last_line = step
        for sums in self._sums.values():
            sums.update(dict.fromkeys(sums, 0.0))
        for writer in self._writers:  # the lease is the first
            writer.write_metrics(step, line)
        if self._lines:
            self._lines.append({"step": step, **line})

    def _line(self, step: int, metrics: StepMetrics) -> dict[str, float | int | None]:
        """The metrics that depend on seed and step alone.

        Losses are means since the last line, in nats per token, in all and for each domain with
        targets; the others are those of the step.
        """
        tokens = self._start.at(step, self._experiment).tokens
        losses, weights = self._sums["loss_sums"], self._sums["weight_sums"]
        line: dict[str, float | int | None] = {
            "tokens": tokens,
            "flops": self._experiment.flops(tokens),
            "loss": sum(losses.values()) / max(sum(weights.values()), 1e-30),
            **{f"loss/{d}": losses[d] / weights[d] for d in losses if weights[d] > 0},
            "grad_norm": float(metrics.grad_norm),
            "param_norm": float(metrics.param_norm),
            "learning_rate": float(metrics.learning_rate),
        }
        if self._experiment.number:
            line["stage"] = self._experiment.number
            line["sequence_length"] = self._experiment.data.sequence_length
        for name, values in (metrics.domain_weights or {}).items():
            line |= {f"{name}/{d}": float(v) for d, v in zip(losses, values, strict=True)}
        for name, values in (metrics.layers or {}).items():
            of = {f"_{i}": x for i, x in enumerate(values)} if np.ndim(values) else {"": values}
            line |= {f"{name}{index}": float(x) for index, x in of.items()}
        if metrics.z_loss_sum is not None:
            line["z_loss"] = float(metrics.z_loss_sum / max(np.sum(metrics.weight_sums), 1e-30))
        return line

    def _timing(self, steps: int, lap: TimeBreakdown) -> dict[str, float | int | None]:
        """The metrics that depend on the machine.

        MFU counts 6N and full attention, `mfu_causal` 6N and causal attention. Seconds are those
        since the last line, shares those of the whole run.
        """
        e, devices, run = self._experiment, jax.device_count(), self._timer.run()
        speed = self._speed = steps * e.tokens_per_step / lap.steps
        peak, length = peak_flops(jax.devices()[0]), e.data.sequence_length
        full = speed * e.model.flops_per_token(length, causal=False)
        causal = speed * e.model.flops_per_token(length, causal=True)
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

    def _check_finite(self, step: int, loss: float, grad_norm: float) -> None:
        for name, value in {"loss": loss, "gradient norm": grad_norm}.items():
            if math.isfinite(value):
                continue
            good = "none here" if self.loss is None else f"step {step - 1} (loss {self.loss:.4f})"
            saved = "none" if self.saved is None else f"step {self.saved}"
            raise Diverged(
                f"the {name} is {value} at step {step}; last good: {good}; newest checkpoint: "
                f"{saved}. Lower ScheduleConfig.peak_lr, lengthen warmup_steps, or lower the "
                "optimizer's max_grad_norm"
            )
