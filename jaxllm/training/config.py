"""What a run is told: how long, how fast it learns, what it writes down."""

from __future__ import annotations

import dataclasses

from jaxllm.configs import configurable
from jaxllm.errors import UserError
from jaxllm.io import location


@configurable
@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """One run.

    Attributes:
      model_dir: where everything of the run is written: a directory or gs://bucket/path.
      run_name: the name of its records; None: the last part of model_dir.
      family: runs of one family differ only in size; None: the run's name.
      steps: updates in the whole run.
      seed: of the initial parameters (the data have their own, usually the same).
      gradient_accumulation: parts that a batch is cut into, worked on one after another; the
        update is that of the whole batch.
      z_loss: coefficient of log²(Z), which keeps logits from drifting (PaLM, §5: 1e-4); 0 is off.
      log_every: steps between two lines of metrics.jsonl.
      progress_seconds: where the output is no terminal, seconds between two lines of progress.
      profile_steps: the first and the last step of which `jax.profiler` writes a trace, for
        TensorBoard; None for no trace.
      hang_minutes: without a sign of life for so long, and for hang_medians times the median step,
        the stacks of all threads are written; None for no such watchdog.
      hang_medians: see hang_minutes.
      hang_exit: whether the process then ends, with code 1.
    """

    model_dir: str | None = None
    run_name: str | None = None
    family: str | None = None
    steps: int = 1000
    seed: int = 0
    gradient_accumulation: int = 1
    z_loss: float = 0.0
    log_every: int = 10
    progress_seconds: float = 30.0
    profile_steps: tuple[int, int] | None = None
    hang_minutes: float | None = 10.0
    hang_medians: float = 20.0
    hang_exit: bool = False

    def __post_init__(self) -> None:
        if self.model_dir is not None:
            object.__setattr__(self, "model_dir", location(self.model_dir))
        for name in ("steps", "gradient_accumulation", "log_every"):
            value = getattr(self, name)
            if value < 1:
                raise UserError(f"TrainConfig.{name} = {value}: it must be positive")
        steps = self.profile_steps
        if steps is not None and not 1 <= steps[0] <= steps[1]:
            raise UserError(f"TrainConfig.profile_steps = {steps!r}: give the first and last step")
        if self.hang_minutes is not None and self.hang_minutes <= 0:
            raise UserError(
                "TrainConfig.hang_minutes: it must be positive, or None for no watchdog"
            )
        if self.z_loss < 0:
            raise UserError(f"TrainConfig.z_loss = {self.z_loss}: it must not be negative")


@configurable
@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """AdamW (Loshchilov & Hutter 2019, arXiv 1711.05101) behind clipping by global norm.

    Attributes:
      b1: decay of the mean of gradients.
      b2: decay of the mean of their squares.
      eps: added to the root of the second mean.
      weight_decay: decoupled, times the learning rate; LLaMA's 0.1.
      decay: 'matrices' spares norms and other vectors; 'all' decays everything, as EasyLM does.
      clip: the gradient's global norm is cut to this; None for no clipping.
      moments_dtype: of both means: 'float32'; or 'bfloat16', which halves their memory, rounded at
        random (`jaxllm.training.optimizer.kept_in_bfloat16`).
    """

    b1: float = 0.9
    b2: float = 0.95
    eps: float = 1e-8
    weight_decay: float = 0.1
    decay: str = "matrices"
    clip: float | None = 1.0
    moments_dtype: str = "float32"

    def __post_init__(self) -> None:
        if self.decay not in ("matrices", "all"):
            raise UserError(f"OptimizerConfig.decay = {self.decay!r}: choose 'matrices' or 'all'")
        if self.moments_dtype not in ("float32", "bfloat16"):
            raise UserError(
                f"OptimizerConfig.moments_dtype = {self.moments_dtype!r}: "
                "choose 'float32' or 'bfloat16'"
            )
        for name in ("b1", "b2"):
            if not 0 <= getattr(self, name) < 1:
                raise UserError(
                    f"OptimizerConfig.{name} = {getattr(self, name)}: it must be in [0, 1)"
                )
        if self.eps < 0 or self.weight_decay < 0:
            raise UserError(
                f"OptimizerConfig: eps = {self.eps} and weight_decay = {self.weight_decay} must "
                "not be negative"
            )
        if self.clip is not None and self.clip <= 0:
            raise UserError(
                f"OptimizerConfig.clip = {self.clip}: it must be positive, or None for no clipping"
            )


@configurable
@dataclasses.dataclass(frozen=True)
class ScheduleConfig:
    """The learning rate over the run; see `jaxllm.training.schedule`.

    Attributes:
      kind: 'cosine'; 'wsd': warmup, stable, decay (arXiv 2404.06395, §4.2); or 'constant'.
      peak: reached at the end of the warmup.
      final: at the last step (not for 'constant').
      warmup_steps: linear from 0; the first step already learns.
      decay_steps: length of the decay of 'wsd'; None: a tenth of the run.
      horizon: the step at which `final` is reached; None: the run's last step. A run that stops
        early on the schedule of a longer one sets it.
    """

    kind: str = "cosine"
    peak: float = 3e-4
    final: float = 3e-5
    warmup_steps: int = 100
    decay_steps: int | None = None
    horizon: int | None = None

    def __post_init__(self) -> None:
        if self.kind not in ("cosine", "wsd", "constant"):
            raise UserError(
                f"ScheduleConfig.kind = {self.kind!r}: choose 'cosine', 'wsd' or 'constant'"
            )
        if self.peak <= 0 or self.final < 0 or self.warmup_steps < 0:
            raise UserError(
                f"ScheduleConfig: peak = {self.peak} must be positive, final = {self.final} and "
                f"warmup_steps = {self.warmup_steps} not negative"
            )
