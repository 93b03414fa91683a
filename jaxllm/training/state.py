"""The train state: parameters, optimizer state, step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from jaxllm.models.config import ModelConfig
from jaxllm.models.decoder import abstract_params, init_params
from jaxllm.sharding.rules import abstract_sharded
from jaxllm.training.config import SkipConfig
from jaxllm.training.domain_weights import DomainWeights
from jaxllm.training.skipping import SkipState


class TrainState(NamedTuple):
    """The state of a run, sharded over the mesh.

    It has no random state: all randomness is a function of the seed and the step.
    """

    step: Any  # int32 [], updates done
    params: Any  # tree of unboxed parameters
    opt_state: Any  # Optax's state; its moments are sharded as their parameters
    domain_weights: Any = None  # DomainWeights of a run with DoReMi
    skip: Any = None  # SkipState of a run that skips outliers; saved as a checkpoint's JSON

    @property
    def training(self) -> dict[str, Any]:
        """What a checkpoint holds beside the parameters."""
        held = {"step": self.step, "opt_state": self.opt_state}
        learned = {"domain_weights": self.domain_weights} if self.domain_weights else {}
        return held | learned


def abstract_state(
    model: ModelConfig,
    optimizer: optax.GradientTransformation,
    mesh: jax.sharding.Mesh,
    weighted_domains: int = 0,
    skip: SkipConfig | None = None,
) -> TrainState:
    """The state as `jax.ShapeDtypeStruct`s with their shardings on `mesh`.

    Allocates nothing. `weighted_domains`: number of domains whose weights DoReMi learns.
    """

    def first(params: Any) -> TrainState:
        weights = DomainWeights.uniform(weighted_domains) if weighted_domains else None
        like = TrainState(None, None, None, weights, skip and SkipState.empty(skip.window))
        return _first(params, optimizer, like)

    return abstract_sharded(mesh, jax.eval_shape(first, abstract_params(model)))


def initializer(
    model: ModelConfig, optimizer: optax.GradientTransformation, abstract: TrainState
) -> Callable[[int], TrainState]:
    """The new state of a seed, compiled once; each device initializes its own shards."""
    init = lambda key: _first(nn.unbox(init_params(model, key)), optimizer, abstract)
    compiled = jax.jit(init, out_shardings=jax.tree.map(lambda leaf: leaf.sharding, abstract))
    return lambda seed: compiled(jax.random.key(seed))


def state_of(
    params: Any, optimizer: optax.GradientTransformation, abstract: TrainState
) -> TrainState:
    """The state at step 0 with these parameters."""
    init = lambda params: _first(params, optimizer, abstract)
    return jax.jit(init, out_shardings=jax.tree.map(lambda x: x.sharding, abstract))(params)


def _first(params: Any, optimizer: optax.GradientTransformation, like: TrainState) -> TrainState:
    weights = like.domain_weights and DomainWeights.uniform(len(like.domain_weights.excess_loss))
    skip = like.skip and SkipState.empty(like.skip.accepted.shape[1])
    return TrainState(jnp.int32(0), params, optimizer.init(params), weights, skip)


def num_bytes(abstract: Any) -> int:
    """Total bytes of the arrays in a tree, over all devices."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(abstract))
