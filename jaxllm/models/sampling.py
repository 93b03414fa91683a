"""The next token from its logits: the most likely one, or one drawn from a cut distribution."""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp

from jaxllm.errors import UserError


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How a token is chosen. The cuts are made in this order, as in Transformers' `generate`.

    Attributes:
      temperature: divides the logits; 0 takes the most likely token.
      top_k: only this many tokens can be drawn; 0 leaves all.
      top_p: only the most likely tokens can be drawn whose probabilities reach this sum (nucleus
        sampling, Holtzman et al. 2020, section 3.1).
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0

    def __post_init__(self) -> None:
        if not (self.temperature >= 0 and math.isfinite(self.temperature)):
            raise UserError(f"temperature {self.temperature}: must be 0 or above")
        if self.top_k < 0:
            raise UserError(f"top_k {self.top_k}: must be 0 (all tokens) or above")
        if not 0 < self.top_p <= 1:
            raise UserError(f"top_p {self.top_p}: must be above 0 and at most 1")


GREEDY = Sampling()


def sample(sampling: Sampling, logits: jax.Array, keys: jax.Array) -> jax.Array:
    """One token of each row, int32 [B], from logits [B, V] with a random key of each row [B]."""
    if sampling.temperature == 0:
        return greedy(logits)
    logits = logits / sampling.temperature
    if 0 < sampling.top_k < logits.shape[-1]:  # the rest need not be sorted or drawn from
        values, tokens = jax.lax.top_k(logits, sampling.top_k)
        place = jax.vmap(jax.random.categorical)(keys, top_p_filter(values, sampling.top_p))
        return jnp.take_along_axis(tokens, place[:, None], axis=-1)[:, 0].astype(jnp.int32)
    drawn = jax.vmap(jax.random.categorical)(keys, top_p_filter(logits, sampling.top_p))
    return drawn.astype(jnp.int32)


def greedy(logits: jax.Array) -> jax.Array:
    """The most likely token of each row, the first among equals: int32 [B] from [B, V].

    XLA on CPUs takes two reductions in a fraction of the time of its argmax.
    """
    vocab = logits.shape[-1]
    highest = jnp.max(logits, axis=-1, keepdims=True)
    place = jnp.where(logits == highest, jnp.arange(vocab, dtype=jnp.int32), vocab - 1)
    return jnp.min(place, axis=-1)


def top_p_filter(logits: jax.Array, top_p: float) -> jax.Array:
    """Logits [B, V] with -inf outside the nucleus: the fewest tokens whose sum reaches `top_p`."""
    if top_p == 1:
        return logits
    ordered = jnp.sort(logits, axis=-1, descending=True)
    probabilities = jax.nn.softmax(ordered, axis=-1)
    before = jnp.cumsum(probabilities, axis=-1) - probabilities  # of the more likely tokens
    last = jnp.sum(before < top_p, axis=-1, keepdims=True) - 1
    least = jnp.take_along_axis(ordered, jnp.maximum(last, 0), axis=-1)
    return jnp.where(logits >= least, logits, -jnp.inf)
