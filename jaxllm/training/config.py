"""Gin-bindable configurations of training: the run, its optimizer and its learning rate."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from jaxllm.configs import (
    Fraction,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    checked,
    configurable,
)
from jaxllm.errors import UserError
from jaxllm.io import location

if TYPE_CHECKING:
    import optax


@checked
@dataclasses.dataclass(frozen=True)
class StageConfig:
    """A stage of a run; what is None is as the run's own configs say.

    Attributes:
      tokens: how long it lasts, in whole batches; the last stage may leave it out, and lasts until
        TrainConfig.steps.
      weights: DataConfig.weights of its sequences; every domain goes on from what was read of it.
      sequence_length: tokens per sequence; ModelConfig.max_length grows with it.
      batch_size: sequences per global batch.
      gradient_accumulation: microbatches per batch.
      rope_theta: base of the RoPE frequencies.
      schedule: fields of a ScheduleConfig of its own, as {'kind': 'wsd', 'decay_steps': 300}, which
        begins and ends with the stage, without a warmup unless it names one. Stages without one
        share the run's schedule, over all of its steps.
    """

    tokens: PositiveFloat | None = None
    weights: Mapping[str, float] | None = None
    sequence_length: PositiveInt | None = None
    batch_size: PositiveInt | None = None
    gradient_accumulation: PositiveInt | None = None
    rope_theta: PositiveFloat | None = None
    schedule: Mapping[str, Any] | None = None


@checked
@dataclasses.dataclass(frozen=True)
class DoReMiConfig:
    """DoReMi (arXiv 2305.10429): the run is the proxy model, and learns weights of the domains.

    Attributes:
      reference: RUN@STEP, the reference model: a checkpoint of a run with the same vocabulary.
      learning_rate: step size η of the weights.
      smoothing: share c of uniform weights that is mixed in at each step.
    """

    reference: str = ""
    learning_rate: NonNegativeFloat = 1.0
    smoothing: Fraction = 1e-3


@checked
@dataclasses.dataclass(frozen=True)
class SkipConfig:
    """Outliers of loss and gradient norm; see `jaxllm.training.skipping`.

    Attributes:
      rule: 'skip' leaves out the update; 'clip' scales its gradient to the limit of the norm.
      threshold: distance above the median of accepted values, in standard deviations.
      window: number of those values, of which half are needed.
      longest: outliers in a row, after which the next is accepted as the new level, or the run has
        diverged if it is not finite.
    """

    rule: Literal["skip", "clip"] = "skip"
    threshold: PositiveFloat = 10.0
    window: PositiveInt = 128
    longest: PositiveInt = 10


@checked
@dataclasses.dataclass(frozen=True)
class RollbackConfig:
    """Rollbacks of a run that diverges; see `jaxllm.training.rollback`.

    Attributes:
      times: how many at most; the next divergence ends the run.
      recovery_steps: steps that a loss may stay above its limit before the run has diverged.
      margin: steps passed over before the first bad one, and after the last.
    """

    times: PositiveInt = 3
    recovery_steps: PositiveInt = 200
    margin: NonNegativeInt = 100


WeightsByStep = tuple[tuple[NonNegativeFloat, Mapping[str, NonNegativeFloat]], ...]


@configurable
@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """A training run.

    Attributes:
      model_dir: the run directory: a local path or gs://bucket/path.
      family: suite of the run, whose runs differ only in size; None: the last part of model_dir,
        which is the run's name.
      steps: number of updates in the whole run.
      seed: seed of the initial parameters (DataConfig.seed, usually the same, is the data's).
      gradient_accumulation: microbatches per batch, computed one after another; the update is that
        of the whole batch.
      z_loss: coefficient of log²(Z), which keeps logits from drifting (PaLM, §5: 1e-4);
        metrics.jsonl has the term as z_loss. 0 disables it.
      log_every: steps between lines of metrics.jsonl.
      monitor_every: steps between lines with norms per layer (`training.monitors`), a multiple of
        log_every; each costs about a step. None for none.
      profile_steps: first and last step of a `jax.profiler` trace for TensorBoard; None for no
        trace.
      watchdog_minutes: minutes without a step or a scored batch after which the stacks of all
        threads are written to stderr; None for no watchdog.
      exit_on_hang: whether the process then exits, with code 1.
      optimizer: `@AdamWConfig()` or another (`@MuonConfig()`).
      ema_decay: keep a moving average of the parameters, decayed so per step (0.999, say), in the
        optimizer state and its dtype, for `jaxllm.average --ema`; None keeps none.
      stages: stretches with settings of their own, in order: ({'tokens': 8e9}, {'tokens': 2e9,
        'weights': {…}, 'sequence_length': 4096}); see `StageConfig`. They make up `steps`.
      domain_weights: weights of the domains in the loss, which is a weighted mean over tokens:
        ((0, {'web': 1.0, 'code': 2.0}), (1000, {'code': 1.0})), by updates done, linear in between;
        a domain that a row leaves out has 1. Or {'reference': 'RUN@STEP'}, by DoReMi; see
        `DoReMiConfig`. None weighs all tokens alike.
      skip: leave out updates that are outliers: {}, or {'threshold': 6.0}; see `SkipConfig`.
      rollback: where the run diverges, go back and past the data: {}; see `RollbackConfig`.
      branch_from: RUN@STEP, the checkpoint of another run at which this one begins, with its
        optimizer state, step and data position; or RUN@STEP:params, of which it takes the
        parameters alone, to begin at step 0; or hf:DIR, likewise.
    """

    model_dir: str | None = None
    family: str | None = None
    steps: PositiveInt = 1000
    seed: int = 0
    gradient_accumulation: PositiveInt = 1
    z_loss: NonNegativeFloat = 0.0
    log_every: PositiveInt = 10
    monitor_every: PositiveInt | None = None
    profile_steps: tuple[int, int] | None = None
    watchdog_minutes: PositiveFloat | None = 10.0
    exit_on_hang: bool = False
    optimizer: OptimizerConfig = dataclasses.field(default_factory=lambda: AdamWConfig())
    ema_decay: Fraction | None = None
    stages: tuple[StageConfig, ...] = ()
    domain_weights: DoReMiConfig | WeightsByStep | None = None
    skip: SkipConfig | None = None
    rollback: RollbackConfig | None = None
    branch_from: str | None = None

    def __post_init__(self) -> None:
        if self.model_dir is not None:
            object.__setattr__(self, "model_dir", location(self.model_dir))
        if self.monitor_every and self.monitor_every % self.log_every:
            multiple = f"no multiple of log_every = {self.log_every}"
            raise UserError(f"TrainConfig.monitor_every = {self.monitor_every}: {multiple}")
        steps = self.profile_steps
        if steps is not None and not 1 <= steps[0] <= steps[1]:
            raise UserError(f"TrainConfig.profile_steps = {steps!r}: give the first and last step")
        if isinstance(self.domain_weights, tuple):
            rows = [step for step, _ in self.domain_weights]
            if not rows or sorted(set(rows)) != rows:
                raise UserError(f"TrainConfig.domain_weights is of steps {rows}: need rising ones")
        elif self.domain_weights and self.stages:
            raise UserError("TrainConfig.domain_weights: DoReMi's proxy is trained without stages")


class OptimizerConfig(abc.ABC):
    """Base class of the optimizers that `TrainConfig.optimizer` refers to."""

    state_dtype: Literal["float32", "bfloat16"] = "float32"

    @abc.abstractmethod
    def build(self, schedule: optax.Schedule, boxed_params: Any) -> optax.GradientTransformation:
        """The optimizer, for (abstract) parameters with their logical axis names."""


@configurable
@dataclasses.dataclass(frozen=True)
class AdamWConfig(OptimizerConfig):
    """AdamW (Loshchilov & Hutter 2019, arXiv 1711.05101) with clipping by global norm.

    Attributes:
      b1: decay of the first moment.
      b2: decay of the second moment.
      eps: added to the root of the second moment.
      weight_decay: decoupled weight decay, times the learning rate; LLaMA's is 0.1.
      weight_decay_mask: 'matrices' excludes norms and other vectors; 'all' decays all parameters,
        as EasyLM does.
      max_grad_norm: global norm to which gradients are clipped; None for no clipping.
      state_dtype: dtype of both moments: 'float32'; or 'bfloat16', which halves their memory, with
        stochastic rounding (`jaxllm.training.optimizer.with_bf16_state`).
    """

    b1: Fraction = 0.9
    b2: Fraction = 0.95
    eps: NonNegativeFloat = 1e-8
    weight_decay: NonNegativeFloat = 0.1
    weight_decay_mask: Literal["matrices", "all"] = "matrices"
    max_grad_norm: PositiveFloat | None = 1.0
    state_dtype: Literal["float32", "bfloat16"] = "float32"

    def build(self, schedule: optax.Schedule, boxed_params: Any) -> optax.GradientTransformation:
        """Clipping by global norm, then AdamW."""
        import optax

        from jaxllm.training.optimizer import clipped

        decay, mask = self.weight_decay, self.decayed(boxed_params)
        adamw = optax.adamw(schedule, self.b1, self.b2, self.eps, weight_decay=decay, mask=mask)
        return clipped(adamw, self.max_grad_norm, self.state_dtype)

    def decayed(self, boxed_params: Any) -> Any:
        """Which parameters decay, as a tree of booleans; None for all."""
        from jaxllm.training.optimizer import weight_decay_mask

        return weight_decay_mask(boxed_params) if self.weight_decay_mask == "matrices" else None


@configurable
@dataclasses.dataclass(frozen=True)
class MuonConfig(AdamWConfig):
    """Muon for the matrices of the blocks, AdamW for embedding, head and vectors.

    Orthogonalized momentum of 0.95 (Jordan 2024), scaled to AdamW's RMS (arXiv 2502.16982, §2.2).
    """

    def build(self, schedule: optax.Schedule, boxed_params: Any) -> optax.GradientTransformation:
        """Clipping by global norm, then Muon."""
        import optax

        from jaxllm.training.optimizer import clipped, muon_dimensions

        # A rate of -1 gives the direction: Optax's own decay leaves out what AdamW updates.
        muon = optax.chain(
            optax.contrib.muon(
                -1.0, beta=0.95, adam_b1=self.b1, adam_b2=self.b2, eps=self.eps, consistent_rms=0.2,
                muon_weight_dimension_numbers=muon_dimensions(boxed_params),
            ),
            optax.add_decayed_weights(self.weight_decay, self.decayed(boxed_params)),
            optax.scale_by_learning_rate(schedule),
        )  # fmt: skip
        return clipped(muon, self.max_grad_norm, self.state_dtype)
