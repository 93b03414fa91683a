"""The next token from its logits: greedy, or sampled with temperature, top-k and top-p."""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp

from jaxllm.errors import UserError


@dataclasses.dataclass(frozen=True)
class Sampling:
    """Sampling parameters, applied in this order, as in Transformers' `generate`.

    `top_p` is nucleus sampling (Holtzman et al. 2020, section 3.1).
    """

    temperature: float = 0.0  # divisor of the logits; 0 is greedy
    top_k: int = 0  # number of the most likely tokens to sample from; 0 means all
    top_p: float = 1.0  # or the fewest most likely ones whose probabilities reach this sum

    def __post_init__(self) -> None:
        if not (self.temperature >= 0 and math.isfinite(self.temperature)):
            raise UserError(f"temperature {self.temperature}: must be 0 or above")
        if self.top_k < 0:
            raise UserError(f"top_k {self.top_k}: must be 0 (all tokens) or above")
        if not 0 < self.top_p <= 1:
            raise UserError(f"top_p {self.top_p}: must be above 0 and at most 1")


GREEDY = Sampling()


def sample(sampling: Sampling, logits: jax.Array, keys: jax.Array) -> jax.Array:
    """Sample one token per sequence, int32 [B], from logits [B, V] with random keys [B]."""
    if sampling.temperature == 0:
        return greedy(logits)
    logits = logits / sampling.temperature
    if 0 < sampling.top_k < logits.shape[-1]:  # no need to sort or sample the rest
        values, tokens = jax.lax.top_k(logits, sampling.top_k)
        place = jax.vmap(jax.random.categorical)(keys, top_p_filter(values, sampling.top_p))
        return jnp.take_along_axis(tokens, place[:, None], axis=-1)[:, 0].astype(jnp.int32)
    drawn = jax.vmap(jax.random.categorical)(keys, top_p_filter(logits, sampling.top_p))
    return drawn.astype(jnp.int32)


def greedy(logits: jax.Array) -> jax.Array:
    """The most likely token per sequence, int32 [B], from logits [B, V]; ties go to the lowest id.

    On CPUs, two reductions take XLA a fraction of the time of its argmax.
    """
    vocab = logits.shape[-1]
    highest = jnp.max(logits, axis=-1, keepdims=True)
    place = jnp.where(logits == highest, jnp.arange(vocab, dtype=jnp.int32), vocab - 1)
    return jnp.min(place, axis=-1)


def top_p_filter(logits: jax.Array, top_p: float) -> jax.Array:
    """Set logits [B, V] to -inf outside the nucleus, the fewest tokens that reach `top_p`."""
    if top_p == 1:
        return logits
    ordered = jnp.sort(logits, axis=-1, descending=True)
    probabilities = jax.nn.softmax(ordered, axis=-1)
    before = jnp.cumsum(probabilities, axis=-1) - probabilities  # of the more likely tokens
    last = jnp.sum(before < top_p, axis=-1, keepdims=True) - 1
    least = jnp.take_along_axis(ordered, jnp.maximum(last, 0), axis=-1)
    return jnp.where(logits >= least, logits, -jnp.inf)
