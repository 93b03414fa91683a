"""Tiny models and batches that the model tests share."""

import zlib
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxllm.models.batch import Batch
from jaxllm.models.config import ModelConfig
from jaxllm.models.decoder import init_params, logits
from jaxllm.models.generation import Model, decode_n, start_decoding
from jaxllm.models.scoring import token_loss

TINY = ModelConfig(
    vocab_size=97,
    num_layers=2,
    embed_dim=48,
    mlp_dim=80,
    num_heads=6,
    num_kv_heads=2,
    max_length=64,
    init_stddev=0.15,
)


@partial(jax.jit, static_argnames=("config", "seed"))
def random_params(config: ModelConfig, seed: int = 0) -> Any:
    """Random matrices, scales away from 1 and biases away from 0: a forgotten one shows."""
    params = nn.unbox(init_params(config, jax.random.key(seed)))

    def shake(path: Any, x: jax.Array) -> jax.Array:
        name = jax.tree_util.keystr(path)
        if "norm" not in name and "bias" not in name:
            return x
        return x + 0.3 * jax.random.normal(jax.random.key(zlib.crc32(name.encode())), x.shape)

    return jax.tree_util.tree_map_with_path(shake, params)


def generate(
    config: Model, params: Any, prompts: Any, lengths: Any, max_new_tokens: int, **options: Any
) -> jax.Array:
    """Prefill and decode: int32 [B, max_new_tokens]; `options` are those of `decode_n`."""
    state = start_decoding(config, params, prompts, lengths, max_new_tokens)
    return decode_n(config, params, state, max_new_tokens, **options)[1]


def random_batch(config: ModelConfig, rows: int, length: int, seed: int = 0) -> Batch:
    """One document per row, every target counted."""
    tokens = np.random.default_rng(seed).integers(0, config.vocab_size, (rows, length + 1))
    return one_document_rows(tokens.astype(np.int32))


def one_document_rows(tokens: np.ndarray) -> Batch:
    """int32 [B, T + 1] -> a Batch of one document per row."""
    rows, length = tokens.shape[0], tokens.shape[1] - 1
    return Batch(
        inputs=jnp.asarray(tokens[:, :-1]),
        targets=jnp.asarray(tokens[:, 1:]),
        weights=jnp.ones((rows, length), jnp.float32),
        positions=jnp.broadcast_to(jnp.arange(length, dtype=jnp.int32), (rows, length)),
        segment_ids=jnp.ones((rows, length), jnp.int32),
        domains=jnp.zeros(rows, jnp.int32),
    )


def pack(documents: list[np.ndarray], length: int) -> Batch:
    """Documents (each int32 [n + 1]) one after the other in a single row, then padding."""
    row = {
        name: np.zeros((1, length), np.int32)
        for name in ("inputs", "targets", "positions", "segment_ids")
    }
    weights = np.zeros((1, length), np.float32)
    start = 0
    for segment, document in enumerate(documents, start=1):
        span = slice(start, start + len(document) - 1)
        row["inputs"][0, span] = document[:-1]
        row["targets"][0, span] = document[1:]
        row["positions"][0, span] = np.arange(len(document) - 1)
        row["segment_ids"][0, span] = segment
        weights[0, span] = 1
        start = span.stop
    return Batch(**row, weights=weights, domains=np.zeros(1, np.int32))


def compared_with_torch(config: ModelConfig, params: Any, batch: Batch, theirs: Any) -> Any:
    """Our logits and mean loss equal PyTorch's logits `theirs` [B, T, V] and their loss.

    Runs PyTorch's backward pass, and returns our gradients.
    """
    import torch

    targets = torch.tensor(np.asarray(batch.targets), dtype=torch.long)
    their_loss = torch.nn.functional.cross_entropy(theirs.flatten(0, 1), targets.flatten())
    their_loss.backward()

    def mean_loss(params: Any) -> tuple[jax.Array, jax.Array]:
        total, _ = token_loss(config, params, batch)
        return total / jnp.sum(batch.weights), logits(config, params, batch)

    (loss, ours), gradients = jax.jit(jax.value_and_grad(mean_loss, has_aux=True))(params)
    np.testing.assert_allclose(ours, theirs.detach().numpy(), atol=1e-4, rtol=1e-4)
    np.testing.assert_allclose(loss, their_loss.item(), rtol=1e-5)
    return gradients
