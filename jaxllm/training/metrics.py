"""Training metrics: from sums on the device to lines of metrics.jsonl."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

import jax
import numpy as np

from jaxllm.kvstore import traffic
from jaxllm.run.run import Resumed, Run
from jaxllm.run.times import GoodputTimer, TimeBreakdown
from jaxllm.sharding.chips import peak_flops, utilisation
from jaxllm.training.experiment import Position
from jaxllm.training.progress import Progress
from jaxllm.training.rollback import Diverged, SpikeWatch
from jaxllm.training.skipping import Verdict
from jaxllm.training.stages import Stage
from jaxllm.training.step import StepMetrics
from jaxllm.training.watchdog import Watchdog


class Writer(Protocol):
    """An output of a run's measurements besides its own files."""

    def begin(self, step: int) -> None:
        """Go on from `step`, at a start or after a rollback: what came later is abandoned."""

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
        self, stage: Stage, start: Position, resumed: Resumed | None, saved: Mapping[str, Any],
        timer: GoodputTimer, watchdog: Watchdog, progress: Progress, run: Run | None,
        writers: Sequence[Writer],
    ) -> None:  # fmt: skip
        """Begin at `start`, with the `saved` custom_metadata; `run`: None on the other hosts."""
        self.loss: float | None = None  # of the last step read
        self.learning_rate: float | None = None  # of the same step
        self.saved = start.step if resumed else None  # step of the newest checkpoint
        self._restarts = resumed.restarts if resumed else 0
        self._timer, self._watchdog, self._progress = timer, watchdog, progress
        self._run, self._writers = run, writers
        self._pending: tuple[int, StepMetrics] | None = None
        self.enter(stage, start, saved)
        self.skipped = int(saved.get("skipped_steps", 0))
        self._rejected = int(saved.get("skip", {}).get("rejected", 0))  # by `skipping`, in a row
        self._steps, self._timed = 0, TimeBreakdown()  # at the last line
        self._first_traffic = self._traffic = traffic()
        self._speed = 0.0

    def enter(self, stage: Stage, start: Position, saved: Mapping[str, Any] | None = None) -> None:
        """Go on from `start` in a stage; the last step of the one before has a line."""
        self.flush()
        saved = saved or {}
        self._experiment, self._start = stage.experiment, start
        self._sums = {
            name: {d: float(saved.get(name, {}).get(d, 0.0)) for d in stage.source.domains}
            for name in ("loss_sums", "weight_sums")
        }
        self.spikes = SpikeWatch(self._experiment.train.rollback, saved.get("spikes", {}))

    def add(self, step: int, metrics: StepMetrics) -> None:
        """Take the metrics of a step just dispatched to the device."""
        self.flush()
        self._pending = (step, metrics)

    def flush(self) -> None:
        """Wait for the pending step and read its metrics; Diverged if the run cannot go on."""
        if self._pending is None:
            return
        (step, metrics), self._pending = jax.device_get(self._pending), None
        self._read(int(step), metrics)
        self._watchdog.heartbeat()

    def custom_metadata(self) -> dict[str, Any]:
        """What a checkpoint must save for the next lines to be exact."""
        sums = {name: dict(sums) for name, sums in self._sums.items()}
        return {**sums, "skipped_steps": self.skipped, "spikes": self.spikes.to_json()}

    def _read(self, step: int, metrics: StepMetrics) -> None:
        loss = float(np.sum(metrics.loss_sums) / max(np.sum(metrics.weight_sums), 1e-30))
        self._steps += 1
        config, skip = self._experiment.train.skip, metrics.skip
        if skip and not skip.normal:
            self._note_outlier(step, loss, float(metrics.grad_norm), skip)
        if not (config and skip) or skip.rejected > config.longest:
            self._check_finite(step, loss, float(metrics.grad_norm))
        if not skip or skip.applied:
            for name, sums in self._sums.items():
                for domain, value in zip(sums, getattr(metrics, name), strict=True):
                    sums[domain] += float(value)
            self.loss = loss
        self.learning_rate = float(metrics.learning_rate)
        judged = bool(config and skip and config.rule == "skip" and skip.normal)
        shifted = judged and config is not None and self._rejected >= config.longest
        self._rejected = int(skip.rejected) if skip else 0
        self.spikes.add(step, loss, shifted)
        if step % self._experiment.train.log_every == 0 or step == self._experiment.train.steps:
            self._write_line(step, metrics)
        tokens = (step - self._start.step) * self._experiment.tokens_per_step
        self._progress.update(step, loss, self._speed or tokens / self._timer.total().steps)

    def _write_line(self, step: int, metrics: StepMetrics) -> None:
        steps, total = self._steps, self._timer.total()
        lap, self._timed = total - self._timed, total
        line = self._line(step, metrics) | self._timing(steps, lap)
        before, self._traffic = self._traffic, traffic()
        if self._traffic != self._first_traffic:  # of this host with buckets, in requests and bytes
            line |= {name: (n - before.get(name, 0)) / steps for name, n in self._traffic.items()}
        self._steps = 0
        for sums in self._sums.values():
            sums.update(dict.fromkeys(sums, 0.0))
        for writer in self._writers:  # the lease is the first
            writer.write_metrics(step, line)
        if self._run:
            self._run.metrics_lines.append({"step": step, **line})

    def _line(self, step: int, metrics: StepMetrics) -> dict[str, float | int | None]:
        """The metrics that depend on seed and step alone.

        Losses are means since the last line, in nats per token, in all and for each domain with
        targets; the others are those of the step. Where every step was skipped there is no loss.
        """
        tokens = self._start.at(step, self._experiment).tokens
        losses, weights = self._sums["loss_sums"], self._sums["weight_sums"]
        line: dict[str, float | int | None] = {
            "tokens": tokens, "flops": self._experiment.flops(tokens),
            **({"loss": sum(losses.values()) / total} if (total := sum(weights.values())) else {}),
            **{f"loss/{d}": losses[d] / weights[d] for d in losses if weights[d] > 0},
            "grad_norm": float(metrics.grad_norm), "param_norm": float(metrics.param_norm),
            "learning_rate": float(metrics.learning_rate),
        }  # fmt: skip
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
        if metrics.skip or self.skipped:
            line["skipped_steps"] = self.skipped
        return line

    def _note_outlier(self, step: int, loss: float, grad_norm: float, verdict: Verdict) -> None:
        """Count a skipped step, and append an outlier with its documents to skipped.jsonl."""
        self.skipped += not verdict.applied
        effect = "clipped" if verdict.applied else "skipped"
        first, end = (self._start.at(s, self._experiment).sequences for s in (step - 1, step))
        limits = {"loss_limit": verdict.limits[0], "grad_norm_limit": verdict.limits[1]}
        row = {"loss": loss, "grad_norm": grad_norm} | {k: float(v) for k, v in limits.items()}
        shown = ", ".join(f"{name} {value:.6g}" for name, value in row.items())
        self._progress.log(f"step {step} is {effect}: {shown}")
        if self._run:
            data = {"first_sequence": first, "last_sequence": end - 1}
            self._run.skipped_lines.append({"step": step, "effect": effect, **row, **data})

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
            "tokens_per_second": speed, "flops_per_second": full,
            "mfu": utilisation(full, devices, peak),
            "mfu_causal": utilisation(causal, devices, peak),
            "step_seconds": lap.steps / steps, "data_wait_seconds": lap.data,
            "checkpoint_seconds": lap.checkpoint, "evaluation_seconds": lap.evaluation,
            "compile_seconds": lap.compile, **run.shares(), "wall_seconds": run.wall,
            "restarts": self._restarts,
        }  # fmt: skip

    def _check_finite(self, step: int, loss: float, grad_norm: float) -> None:
        for name, value in {"loss": loss, "gradient norm": grad_norm}.items():
            if math.isfinite(value):
                continue
            good = "none here" if self.loss is None else f"step {step - 1} (loss {self.loss:.4f})"
            saved = "none" if self.saved is None else f"step {self.saved}"
            raise Diverged(
                f"the {name} is {value} at step {step}; last good: {good}; newest checkpoint: "
                f"{saved}. Lower ScheduleConfig.peak_lr, lengthen warmup_steps, or lower the "
                "optimizer's max_grad_norm", self.spikes.since or step, step
            )  # fmt: skip


@contextlib.contextmanager
def closing_all(*outputs: Progress | Writer) -> Iterator[None]:
    """Close all `outputs` at the end; after an error, suppress further errors of closing."""
    try:
        yield
    except BaseException:
        for output in outputs:
            with contextlib.suppress(Exception):
                output.close()
        raise
    with contextlib.ExitStack() as opened:
        for output in outputs:
            opened.callback(output.close)
