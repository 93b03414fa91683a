"""The decoder, and the functions that everything else calls."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxllm.models.batch import Batch
from jaxllm.models.config import ModelConfig
from jaxllm.models.layers import Block, Context, LayerCache, RMSNorm, matrix, rotations
from jaxllm.models.partitioning import constrain

Params = Any  # the tree of parameters, boxed with logical axis names or plain

_SAVED: dict[str, tuple[str, ...]] = {
    "minimal": (
        "query", "key", "value", "context", "attention_output", "gate", "up", "mlp_output"
    ),
    "attention": ("query", "key", "value", "context", "attention_output"),
    "full": (),
}  # fmt: skip


class Decoder(nn.Module):
    """Tokens to the final hidden states. The head is applied where the logits are used."""

    config: ModelConfig

    @nn.compact
    def __call__(
        self,
        tokens: jax.Array,
        positions: jax.Array,
        segment_ids: jax.Array,
        cache: LayerCache | None = None,
        cache_segment_ids: jax.Array | None = None,
        slot: jax.Array | None = None,
    ) -> tuple[jax.Array, LayerCache | None]:
        """Runs the blocks.

        Args:
          tokens: int32 [B, T].
          positions: int32 [B, T].
          segment_ids: int32 [B, T].
          cache: keys and values of all layers, [L, B, S, G, K].
          cache_segment_ids: int32 [B, S], already holding the segments of `tokens`.
          slot: int32, the slot of the cache where `tokens` begin.

        Returns:
          Normed hidden states [B, T, D] in the compute dtype, and the new cache (None without one).
        """
        config = self.config
        table = matrix(self, "embedding", (config.vocab_size, config.embed_dim), ("vocab", "embed"))
        table = constrain(table, "vocab", None)  # gathered over fsdp before the look-up
        x = constrain(jnp.take(table, tokens, axis=0), "batch", "length", "embed_activation")
        context = Context(*rotations(config, positions), segment_ids, cache_segment_ids, slot)
        layers = nn.scan(
            _rematted(config.remat),
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=(0, nn.broadcast),
            length=config.num_layers,
            unroll=1 if config.scan_layers else config.num_layers,
            metadata_params={nn.PARTITION_NAME: "layers"},
        )
        x, cache = layers(config, name="layers")(x, cache, context)
        if not config.tied_head:
            matrix(self, "head", (config.embed_dim, config.vocab_size), ("embed", "vocab"))
        return RMSNorm(config, name="final_norm")(x), cache


def init_params(config: ModelConfig, key: jax.Array) -> Params:
    """Fresh parameters, boxed with their logical axis names (`nn.LogicallyPartitioned`).

    Every matrix is N(0, config.init_stddev), every norm 1. Under `jax.jit` with output shardings
    each device makes only its own part. `nn.unbox` gives plain arrays; every function here takes
    either.
    """
    one = jnp.zeros((1, 1), jnp.int32)
    return Decoder(config).init(key, one, one, one)["params"]


def abstract_params(config: ModelConfig) -> Params:
    """The tree of `init_params` as `jax.ShapeDtypeStruct`s, boxed; costs no memory."""
    return jax.eval_shape(lambda: init_params(config, jax.random.key(0)))


def hidden_states(config: ModelConfig, params: Params, batch: Batch) -> jax.Array:
    """Final hidden states [B, T, D], in the compute dtype."""
    hidden, _ = Decoder(config).apply(
        {"params": params}, batch.inputs, batch.positions, batch.segment_ids
    )
    return hidden


def head_kernel(config: ModelConfig, params: Params) -> jax.Array:
    """The output head [D, V] in the compute dtype."""
    kernel = nn.unbox(params["embedding"]).T if config.tied_head else nn.unbox(params["head"])
    return kernel.astype(config.dtype)


def logits(config: ModelConfig, params: Params, batch: Batch) -> jax.Array:
    """All logits, float32 [B, T, V]: for tests and small use (`score_tokens` never holds them)."""
    return jnp.einsum(
        "btd,dv->btv",
        hidden_states(config, params, batch),
        head_kernel(config, params),
        preferred_element_type=jnp.float32,
    )


def _rematted(policy: str) -> Callable[..., nn.Module]:
    if policy == "none":
        return Block
    saveable = jax.checkpoint_policies.save_only_these_names(*_SAVED[policy])
    return nn.remat(Block, policy=saveable, prevent_cse=False)
