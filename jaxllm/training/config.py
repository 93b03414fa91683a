"""The settings of training: how long, how fast, with which optimizer, and what is logged."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from jaxllm.configs import configurable
from jaxllm.errors import UserError
from jaxllm.io import location

if TYPE_CHECKING:
    import optax


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
      gradient_accumulation: microbatches of a batch, computed one after another; the update is
        that of the whole batch.
      z_loss: coefficient of log²(Z), which keeps logits from drifting (PaLM, §5: 1e-4); 0 is off.
      log_every: steps between two lines of metrics.jsonl.
      profile_steps: the first and the last step of which `jax.profiler` writes a trace, for
        TensorBoard; None for no trace.
      watchdog_minutes: without a step or a scored batch for so long, the stacks of all threads are
        written to stderr; None for no watchdog.
      exit_on_hang: whether the process then ends, with code 1.
      optimizer: `@AdamWConfig()` or another (`@MuonConfig()`).
    """

    model_dir: str | None = None
    run_name: str | None = None
    family: str | None = None
    steps: int = 1000
    seed: int = 0
    gradient_accumulation: int = 1
    z_loss: float = 0.0
    log_every: int = 10
    profile_steps: tuple[int, int] | None = None
    watchdog_minutes: float | None = 10.0
    exit_on_hang: bool = False
    optimizer: OptimizerConfig = dataclasses.field(default_factory=lambda: AdamWConfig())

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
        if self.watchdog_minutes is not None and self.watchdog_minutes <= 0:
            raise UserError(
                "TrainConfig.watchdog_minutes: it must be positive, or None for no watchdog"
            )
        if self.z_loss < 0:
            raise UserError(f"TrainConfig.z_loss = {self.z_loss}: it must not be negative")


class OptimizerConfig:
    """Builds an optimizer. Its subclasses are what `TrainConfig.optimizer` refers to."""

    def build(self, schedule: optax.Schedule, boxed_params: Any) -> optax.GradientTransformation:
        """The optimizer of a run.

        Args:
          schedule: learning rate by updates done.
          boxed_params: (abstract) parameters with their logical axis names.
        """
        raise NotImplementedError


@configurable
@dataclasses.dataclass(frozen=True)
class AdamWConfig(OptimizerConfig):
    """AdamW (Loshchilov & Hutter 2019, arXiv 1711.05101) behind clipping by global norm.

    Attributes:
      b1: decay of the mean of gradients.
      b2: decay of the mean of their squares.
      eps: added to the root of the second mean.
      weight_decay: decoupled, times the learning rate; LLaMA's 0.1.
      weight_decay_mask: 'matrices' spares norms and other vectors; 'all' decays everything, as
        EasyLM does.
      max_grad_norm: the gradient's global norm is clipped to this; None for no clipping.
      state_dtype: of both means: 'float32'; or 'bfloat16', which halves their memory, rounded
        stochastically (`jaxllm.training.optimizer.with_bf16_state`).
    """

    b1: float = 0.9
    b2: float = 0.95
    eps: float = 1e-8
    weight_decay: float = 0.1
    weight_decay_mask: str = "matrices"
    max_grad_norm: float | None = 1.0
    state_dtype: str = "float32"

    def __post_init__(self) -> None:
        if self.weight_decay_mask not in ("matrices", "all"):
            raise UserError(
                f"AdamWConfig.weight_decay_mask = {self.weight_decay_mask!r}: "
                "choose 'matrices' or 'all'"
            )
        if self.state_dtype not in ("float32", "bfloat16"):
            raise UserError(
                f"AdamWConfig.state_dtype = {self.state_dtype!r}: choose 'float32' or 'bfloat16'"
            )
        for name in ("b1", "b2"):
            if not 0 <= getattr(self, name) < 1:
                raise UserError(f"AdamWConfig.{name} = {getattr(self, name)}: it must be in [0, 1)")
        if self.eps < 0 or self.weight_decay < 0:
            raise UserError(
                f"AdamWConfig: eps = {self.eps} and weight_decay = {self.weight_decay} must "
                "not be negative"
            )
        if self.max_grad_norm is not None and self.max_grad_norm <= 0:
            raise UserError(
                f"AdamWConfig.max_grad_norm = {self.max_grad_norm}: it must be positive, or None "
                "for no clipping"
            )

    def build(self, schedule: optax.Schedule, boxed_params: Any) -> optax.GradientTransformation:
        """Clipping by global norm, then AdamW."""
        import optax

        from jaxllm.training.optimizer import clipped, weight_decay_mask

        mask = weight_decay_mask(boxed_params) if self.weight_decay_mask == "matrices" else None
        adamw = optax.adamw(
            schedule, self.b1, self.b2, self.eps, weight_decay=self.weight_decay, mask=mask
        )
        return clipped(adamw, self.max_grad_norm, self.state_dtype)


@configurable
@dataclasses.dataclass(frozen=True)
class ScheduleConfig:
    """The learning rate over the run; see `jaxllm.training.schedule`.

    Attributes:
      kind: 'cosine'; 'wsd': warmup, stable, decay (arXiv 2404.06395, §4.2); or 'constant'.
      peak_lr: reached at the end of the warmup.
      end_lr: at the last step (not for 'constant').
      warmup_steps: linear from 0; the first step already learns.
      decay_steps: length of the decay of 'wsd'; None: a tenth of the run.
      decay_end_step: where `end_lr` is reached; None: the run's last step. A run that stops early
        on the schedule of a longer one sets it.
    """

    kind: str = "cosine"
    peak_lr: float = 3e-4
    end_lr: float = 3e-5
    warmup_steps: int = 100
    decay_steps: int | None = None
    decay_end_step: int | None = None

    def __post_init__(self) -> None:
        if self.kind not in ("cosine", "wsd", "constant"):
            raise UserError(
                f"ScheduleConfig.kind = {self.kind!r}: choose 'cosine', 'wsd' or 'constant'"
            )
        if self.peak_lr <= 0 or self.end_lr < 0 or self.warmup_steps < 0:
            raise UserError(
                f"ScheduleConfig: peak_lr = {self.peak_lr} must be positive, end_lr = "
                f"{self.end_lr} and warmup_steps = {self.warmup_steps} not negative"
            )
