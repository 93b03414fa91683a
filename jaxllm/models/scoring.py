"""Log-likelihoods and losses, without the logits of the whole batch in memory.

Sequences are split into chunks along their length, and a loop computes the logits of one chunk at a
time. The batch dimension, and so its sharding, is unchanged. `score_tokens` is differentiated by
autodiff, which recomputes the logits. The weights of `token_loss`, for training, are known in the
forward pass, which computes the gradients too, from each chunk's logits.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxllm.models.batch import Array, Batch, TreeBatch
from jaxllm.models.config import ModelConfig
from jaxllm.models.decoder import Params, head_kernel, hidden_states, tree_states
from jaxllm.models.partitioning import device_kind, num_shards, with_logical_constraint

# Tokens per device whose logits are in memory at a time; saturating a GPU takes more.
CHUNK_TOKENS = {"gpu": 4096, "cuda": 4096}
DEFAULT_CHUNK_TOKENS = 1024


class TokenScores(NamedTuple):
    """Scores of each target, [B, T]."""

    log_likelihood: jax.Array  # float32, log p(target)
    correct: jax.Array  # bool, whether no token was more likely than the target
    log_z: jax.Array  # float32, log of the softmax's denominator (for z-loss)


def score_tokens(config: ModelConfig, params: Params, batch: Batch) -> TokenScores:
    """Score every target of the batch; weights are not applied.

    Differentiable in `log_likelihood` and `log_z`.
    """
    return _score_hidden(config, params, hidden_states(config, params, batch), batch.targets)


def score_targets(
    config: ModelConfig, params: Params, batch: TreeBatch, chunk_tokens: int | None = None
) -> TokenScores:
    """Score the targets of token trees, [B, S], with only their logits; `chunk_tokens` as below."""
    hidden = tree_states(config, params, batch)
    index = jnp.asarray(batch.target_index)[..., None]
    hidden = jnp.take_along_axis(hidden, index, axis=1)  # [B, S, E]
    return _score_hidden(config, params, hidden, batch.targets, chunk_tokens)


def token_loss(
    config: ModelConfig,
    params: Params,
    batch: Batch,
    z_loss: float = 0.0,
    chunk_tokens: int | None = None,
    weigh: Callable[[TokenScores], Array] | None = None,
) -> tuple[jax.Array, TokenScores]:
    """Summed training loss, and the token scores, for metrics only: they have no gradient.

    The loss is sum(weights * (-log_likelihood + z_loss * log_z^2)), float32, differentiable with
    respect to `params`.

    Args:
      z_loss: coefficient of log_z^2 (PaLM, section 5: 1e-4).
      chunk_tokens: tokens per device whose logits are in memory at a time; None means the
        platform's default.
      weigh: weights [B, T] as a function of the scores, in place of the batch's; no gradient flows
        through it. Costs the logits once more.
    """
    hidden, kernel = hidden_states(config, params, batch), head_kernel(config, params)
    batch_size, length = batch.targets.shape
    size, weights = _chunk_length(batch_size, length, chunk_tokens), batch.weights
    if weigh:
        fixed = jax.lax.stop_gradient((hidden, kernel))
        weights = weigh(_score_chunks(size, *fixed, batch.targets))
    return _head_loss(size, z_loss, hidden, kernel, batch.targets, weights)


def _score_hidden(
    config: ModelConfig,
    params: Params,
    hidden: jax.Array,
    targets: Array,
    chunk_tokens: int | None = None,
) -> TokenScores:
    """Scores of targets [B, S] after hidden states [B, S, E]."""
    batch_size, length = targets.shape
    size = _chunk_length(batch_size, length, chunk_tokens)
    return _score_chunks(size, hidden, head_kernel(config, params), targets)


def _score_chunks(size: int, hidden: jax.Array, kernel: jax.Array, targets: Array) -> TokenScores:
    @jax.checkpoint
    def score(chunk: tuple[jax.Array, jax.Array]) -> TokenScores:
        return _scores(_logits(chunk[0], kernel), chunk[1])

    scores = jax.lax.map(score, (_split(hidden, size), _split(targets, size)))
    return jax.tree.map(lambda x: _join(x, targets.shape[1]), scores)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _head_loss(
    size: int,
    z_loss: float,
    hidden: jax.Array,
    kernel: jax.Array,
    targets: jax.Array,
    weights: jax.Array,
) -> tuple[jax.Array, TokenScores]:
    scores = _score_chunks(size, hidden, kernel, targets)
    return _weighted_sum(scores, weights, z_loss), scores


def _head_loss_forward(
    size: int,
    z_loss: float,
    hidden: jax.Array,
    kernel: jax.Array,
    targets: jax.Array,
    weights: jax.Array,
) -> tuple[tuple[jax.Array, TokenScores], tuple[jax.Array, jax.Array]]:
    """The loss, and its gradients with respect to hidden and kernel at cotangent 1."""

    def step(
        kernel_gradient: jax.Array, chunk: tuple[jax.Array, jax.Array, jax.Array]
    ) -> tuple[jax.Array, tuple[TokenScores, jax.Array]]:
        x, target, weight = chunk  # [B, C, D], [B, C], [B, C]
        values = _logits(x, kernel)  # float32 [B, C, V]
        scores = _scores(values, target)
        # d(-ll)/d logits = p - onehot, d(log_z^2)/d logits = 2 log_z p
        probability_factor = weight * (1.0 + 2.0 * z_loss * scores.log_z)
        probability = jnp.exp(values - scores.log_z[..., None])
        one_hot = jnp.arange(values.shape[-1]) == target[..., None]
        gradient = probability * probability_factor[..., None] - one_hot * weight[..., None]
        gradient = gradient.astype(kernel.dtype)
        hidden_gradient = jnp.einsum("bcv,dv->bcd", gradient, kernel)
        kernel_gradient += jnp.einsum(
            "bcd,bcv->dv", x, gradient, preferred_element_type=jnp.float32
        )
        return kernel_gradient, (scores, hidden_gradient)

    chunks = (_split(hidden, size), _split(targets, size), _split(weights, size))
    zero = jnp.zeros(kernel.shape, jnp.float32)
    kernel_gradient, (scores, hidden_gradient) = jax.lax.scan(step, zero, chunks)
    scores = jax.tree.map(lambda x: _join(x, hidden.shape[1]), scores)
    loss = _weighted_sum(scores, weights, z_loss)
    gradients = (_join(hidden_gradient, hidden.shape[1]), kernel_gradient.astype(kernel.dtype))
    return (loss, scores), gradients


def _head_loss_backward(
    size: int,
    z_loss: float,
    gradients: tuple[jax.Array, jax.Array],
    cotangents: tuple[jax.Array, TokenScores],
) -> tuple[jax.Array, jax.Array, None, None]:
    hidden, kernel = ((x * cotangents[0]).astype(x.dtype) for x in gradients)
    return hidden, kernel, None, None


_head_loss.defvjp(_head_loss_forward, _head_loss_backward)


def _logits(hidden: jax.Array, kernel: jax.Array) -> jax.Array:
    values = jnp.einsum("bcd,dv->bcv", hidden, kernel, preferred_element_type=jnp.float32)
    return with_logical_constraint(values, "batch", "length", "vocab")


def _scores(values: jax.Array, targets: jax.Array) -> TokenScores:
    highest = jnp.max(values, axis=-1)
    log_z = highest + jnp.log(jnp.sum(jnp.exp(values - highest[..., None]), axis=-1))
    if device_kind()[0] == "tpu":  # a sum fuses with the passes above, a gather does not
        one_hot = jnp.arange(values.shape[-1]) == targets[..., None]
        target = jnp.sum(jnp.where(one_hot, values, 0.0), axis=-1)
    else:
        target = jnp.take_along_axis(values, targets[..., None], axis=-1)[..., 0]
    # compared with the maximum, since XLA's argmax on CPUs costs more than the softmax
    return TokenScores(target - log_z, target == highest, log_z)


def _weighted_sum(scores: TokenScores, weights: jax.Array, z_loss: float) -> jax.Array:
    return jnp.sum(weights * (z_loss * jnp.square(scores.log_z) - scores.log_likelihood))


def _chunk_length(batch_size: int, length: int, chunk_tokens: int | None = None) -> int:
    """Tokens per sequence and chunk, for the fewest equal chunks that `chunk_tokens` allows."""
    sequences = max(1, batch_size // num_shards("batch"))  # per device
    tokens = chunk_tokens or CHUNK_TOKENS.get(device_kind()[0], DEFAULT_CHUNK_TOKENS)
    chunks = -(-length // max(1, tokens // sequences))
    return -(-length // chunks)


def _split(x: Array, size: int) -> jax.Array:
    """[B, T, ...] -> [ceil(T / size), B, size, ...], padded with zeros at the end."""
    chunks = -(-x.shape[1] // size)
    padding = [(0, 0), (0, chunks * size - x.shape[1])] + [(0, 0)] * (x.ndim - 2)
    x = jnp.pad(x, padding)
    return jnp.moveaxis(x.reshape(x.shape[0], chunks, size, *x.shape[2:]), 1, 0)


def _join(x: jax.Array, length: int) -> jax.Array:
    x = jnp.moveaxis(x, 0, 1)
    return x.reshape(x.shape[0], -1, *x.shape[3:])[:, :length]
