"""Weights of the domains in the loss: a table over the steps, or those that DoReMi learns.

The loss of a batch is a weighted mean over its tokens, in which a token has its own weight times
that of its domain. Sampling and metrics are untouched. DoReMi (Xie et al. 2023, arXiv 2305.10429,
algorithm 1) trains a small proxy model on

    Σ_i α_i · mean over the tokens of domain i of its loss ℓ

where the domain weights α grow with the excess loss over a reference model of the same kind,

    λ_i = mean over the tokens of domain i of max(ℓ − ℓ_reference, 0)    clipped per token
    α_i ← (1 − c) α_i exp(η λ_i) / Σ_j α_j exp(η λ_j) + c / k

and are used in the step that made them. Their average over the steps is the answer: weights with
which to sample the data of a larger model. A domain without tokens in a batch keeps the λ of its
last one (0 before the first); the loss is then that of the others, with weights of the sum 1.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxllm.errors import UserError, nearest
from jaxllm.models.batch import Array, Batch
from jaxllm.models.config import ModelConfig
from jaxllm.models.decoder import Params
from jaxllm.models.scoring import TokenScores, score_tokens
from jaxllm.training.config import DoReMiConfig, WeightsByStep

_TINY = 1e-30


class DomainWeights(NamedTuple):
    """What DoReMi carries from step to step, float32 [domains] each."""

    domain_weight: Any  # α, of the loss of the last update
    average_domain_weight: Any  # of the α of all updates
    excess_loss: Any  # λ, of the last batch with tokens of the domain

    @classmethod
    def uniform(cls, num_domains: int) -> DomainWeights:
        """The weights before the first update."""
        weights = jnp.full((num_domains,), 1.0 / num_domains, jnp.float32)
        return cls(weights, weights, jnp.zeros_like(weights))


class DoReMi(NamedTuple):
    """DoReMi with a reference model, whose parameters are an argument of the update."""

    config: DoReMiConfig
    reference: ModelConfig

    def excess(
        self, num_domains: int, reference: Params, batch: Batch
    ) -> Callable[[TokenScores], jax.Array]:
        """max(ℓ − ℓ_reference, 0) of a batch, summed by domain, as a function of its scores."""
        of_reference = score_tokens(self.reference, reference, batch).log_likelihood

        def excess(scores: TokenScores) -> jax.Array:
            clipped = jnp.maximum(of_reference - scores.log_likelihood, 0.0)
            return by_domain(batch, num_domains, clipped * batch.weights)

        return excess

    def update(
        self, before: DomainWeights, step: Array, counts: Array, excess: Array
    ) -> DomainWeights:
        """The weights of a batch, from its token weights and `excess`, [domains] each."""
        excess_loss = jnp.where(counts > 0, excess / jnp.maximum(counts, _TINY), before.excess_loss)
        # a softmax, which is the α_i exp(η λ_i) / Σ of the paper without its overflow
        logits = jnp.log(before.domain_weight) + self.config.learning_rate * excess_loss
        c = self.config.smoothing
        weights = (1.0 - c) * jax.nn.softmax(logits) + c / len(logits)
        average = before.average_domain_weight
        return DomainWeights(weights, average + (weights - average) / (step + 1.0), excess_loss)


class WeightTable(NamedTuple):
    """Weights by step, linear in between and constant outside."""

    steps: np.ndarray  # float32 [rows], updates done
    weights: np.ndarray  # float32 [rows, domains]

    @classmethod
    def of(cls, rows: WeightsByStep, domains: Sequence[str]) -> WeightTable:
        """Of the domains of a stage; UserError if they all have weight 0 in a row."""
        weights = [[row.get(domain, 1.0) for domain in domains] for _, row in rows]
        if not all(map(any, weights)):
            raise UserError("TrainConfig.domain_weights: all domains have weight 0 in a row")
        steps = [step for step, _ in rows]
        return cls(np.asarray(steps, np.float32), np.asarray(weights, np.float32))

    def at(self, step: Array) -> jax.Array:
        """The weights [domains] after `step` updates."""
        return jax.vmap(jnp.interp, (None, None, 1))(step, self.steps, self.weights)


def of_config(
    config: DoReMiConfig | WeightsByStep | None,
    domains: Sequence[str],
    reference: ModelConfig | None = None,
) -> DoReMi | WeightTable | None:
    """What TrainConfig.domain_weights states for a stage; raises as `WeightTable.of`."""
    if isinstance(config, DoReMiConfig) and reference:
        return DoReMi(config, reference)
    return WeightTable.of(config, domains) if isinstance(config, tuple) else None


def check_domains(config: DoReMiConfig | WeightsByStep | None, domains: Sequence[str]) -> None:
    """Raise UserError if a table names a domain that is none of the run's."""
    rows = config if isinstance(config, tuple) else ()
    for name in (name for _, row in rows for name in row if name not in domains):
        raise UserError(
            f"TrainConfig.domain_weights names {name}, which the run's data does not have"
            f"{nearest(name, domains)}; it has {', '.join(domains)}"
        )


def by_domain(batch: Batch, num_domains: int, values: Array | None = None) -> jax.Array:
    """Sum values [B, T], or the weights, over the sequences of each domain: [num_domains]."""
    values = batch.weights if values is None else values
    return jax.ops.segment_sum(jnp.sum(values, axis=1), batch.domains, num_domains)


def mean_factors(weights: Array, counts: Array) -> jax.Array:
    """`balanced` factors for a sum of each domain's mean over its tokens, by `weights`."""
    return balanced(jnp.where(counts > 0, weights / jnp.maximum(counts, _TINY), 0.0), counts)


def balanced(factors: Array, counts: Array) -> jax.Array:
    """Factors [domains] of the tokens in the loss, scaled to keep the weight of the whole batch.

    Equal factors become 1; `counts` [domains] are the weights of the batch's tokens.
    """
    factors = jnp.asarray(factors)
    total = jnp.sum(factors * counts)
    return factors * jnp.sum(counts) / jnp.where(total > 0, total, 1.0)
