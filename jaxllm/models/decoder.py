"""The decoder and its public functions."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxllm.errors import UserError
from jaxllm.models.attention import ATTENTION_RESIDUALS, PositionBias
from jaxllm.models.batch import Batch, TreeBatch
from jaxllm.models.config import ModelConfig
from jaxllm.models.layers import Block, BlockInputs, LayerCache, linear
from jaxllm.models.norms import Norm
from jaxllm.models.partitioning import param, with_logical_constraint
from jaxllm.models.positions import alibi_slopes, rope_cos_sin

LayerCaches = LayerCache | tuple[LayerCache, ...]
Params = Any  # the tree of parameters, boxed with logical axis names or plain

_ATTENTION = ("query", "key", "value", ATTENTION_RESIDUALS, "attention_output")
_SAVED: dict[str, tuple[str, ...]] = {
    "minimal": (*_ATTENTION, "gate", "up", "mlp_output"),
    "attention": _ATTENTION,
    "residual": ("attention_output",),
    "full": (),
}


class Decoder(nn.Module):
    """Tokens to final hidden states; the output head is applied where logits are used."""

    config: ModelConfig

    @nn.compact
    def __call__(
        self,
        tokens: jax.Array,
        positions: jax.Array,
        segment_ids: jax.Array,
        cache: LayerCaches | None = None,
        cache_segment_ids: jax.Array | None = None,
        cache_index: jax.Array | None = None,
        visible_until: jax.Array | None = None,
    ) -> tuple[jax.Array, LayerCaches | None]:
        """Run the blocks as a scan, or one by one with parameters from `unstack_layers`.

        tokens, positions and segment_ids are int32 [B, T]; for the others see `BlockInputs`.
        Returns the inputs of the output head [B, T, E] in the compute dtype, where E is
        embedding_dim, and the new cache (None without one). UserError if T exceeds the learned
        position embeddings.
        """
        config = self.config
        embed, embedding_dim = config.embed_dim, config.embedding_dim
        table = param(self, "embedding", (config.vocab_size, embedding_dim), ("vocab", "embed"))
        # all-gathered over fsdp before the lookup
        table = with_logical_constraint(table, "vocab", None)
        x = jnp.take(table, tokens, axis=0)
        if embedding_dim != embed:
            x = linear(x, param(self, "project_in", (embedding_dim, embed), (None, "embed")))
        if config.position_embedding == "learned":
            if tokens.shape[1] > config.max_length:
                raise UserError(
                    f"sequences of {tokens.shape[1]} tokens: the model has learned "
                    f"{config.max_length} positions (ModelConfig.max_length)"
                )
            offset = config.quirks.position_offset
            length = config.max_length + offset
            table = param(self, "position_embedding", (length, embed), (None, "embed"))
            # only padding can exceed the table, where jnp.take would put NaNs into a cache
            indices = jnp.clip(positions + offset, 0, length - 1)
            x += jnp.take(with_logical_constraint(table, None, None), indices, axis=0)
        x = with_logical_constraint(x, "batch", "length", "embed_activation")
        inputs = BlockInputs(
            segment_ids,
            rope_cos_sin(config, positions) if config.position_embedding == "rotary" else None,
            _position_bias(config, positions, cache_segment_ids),
            cache_segment_ids,
            cache_index,
            visible_until,
        )
        windows = _windows(config)
        if self.has_variable("params", "layers_0"):
            caches: list[Any] = list(cache or [None] * config.num_layers)
            for i in range(config.num_layers):
                window = None if windows is None else windows[i]
                x, caches[i] = Block(config, name=f"layers_{i}")(x, caches[i], window, inputs)
            cache = tuple(caches) if cache else None
        else:
            layers = nn.scan(
                _rematted(config),
                variable_axes={"params": 0, "monitors": 0, "intermediates": 0},
                split_rngs={"params": True},
                in_axes=(0, 0, nn.broadcast),
                length=config.num_layers,
                unroll=1 if config.scan_layers else config.num_layers,
                metadata_params={nn.PARTITION_NAME: "layers"},
            )
            x, cache = layers(config, name="layers")(x, cache, windows, inputs)
        if not config.tie_embeddings:
            param(self, "head", (embedding_dim, config.vocab_size), ("embed", "vocab"))
        if config.quirks.final_norm:
            x = Norm(config, name="final_norm")(x)
        if embedding_dim != embed:
            x = linear(x, param(self, "project_out", (embed, embedding_dim), ("embed", None)))
        return x, cache


def init_params(config: ModelConfig, key: jax.Array) -> Params:
    """Initial parameters, boxed with logical axis names (`nn.LogicallyPartitioned`).

    Matrices are normal with standard deviation config.init_stddev, norm scales 1, biases 0. Under
    `jax.jit` with output shardings each device creates only its own shard. `nn.unbox` gives plain
    arrays; every function here takes either.
    """
    one = jnp.zeros((1, 1), jnp.int32)
    return Decoder(config).init(key, one, one, one)["params"]


def unstack_layers(params: Params) -> Params:
    """Split unboxed `layers` [L, ...] into `layers_0`, `layers_1`, …; delete the stacked arrays.

    A scan over stacked layers copies each layer's weights before use: negligible for a batch of
    long sequences, but most of the time of a decoding step.
    """
    params = dict(params)
    leaves, tree = jax.tree.flatten(params.pop("layers"))
    split = []
    for leaf in leaves:  # one at a time, so that only one is ever in memory twice
        rows = jax.jit(lambda leaf: [leaf[i] for i in range(len(leaf))])(leaf)
        split.append(jax.block_until_ready(rows))
        leaf.delete()
    for i, layer in enumerate(zip(*split, strict=True)):
        params[f"layers_{i}"] = jax.tree.unflatten(tree, layer)
    return params


@functools.lru_cache(maxsize=16)
def abstract_params(config: ModelConfig) -> Params:
    """The tree of `init_params` as `jax.ShapeDtypeStruct`s, boxed; allocates nothing."""
    return jax.eval_shape(lambda: init_params(config, jax.random.key(0)))


def hidden_states(config: ModelConfig, params: Params, batch: Batch) -> jax.Array:
    """Inputs of the output head [B, T, E], in the compute dtype."""
    hidden, _ = Decoder(config).apply(
        {"params": params}, batch.inputs, batch.positions, batch.segment_ids
    )
    return hidden


def layer_states(config: ModelConfig, params: Params, tokens: jax.Array) -> jax.Array:
    """Hidden states after each layer, [L, B, T, D], of texts [B, T] with -1 after their ends."""
    positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
    _, state = Decoder(dataclasses.replace(config, remat="none")).apply(
        {"params": params}, jnp.maximum(tokens, 0), positions, (tokens >= 0).astype(jnp.int32),
        capture_intermediates=lambda module, _: module.name == "layers", mutable="intermediates",
    )  # fmt: skip
    ((states, _),) = state["intermediates"]["layers"]["__call__"]
    return states


def tree_states(config: ModelConfig, params: Params, batch: TreeBatch) -> jax.Array:
    """`hidden_states` of token trees."""
    none, until = jnp.zeros_like(batch.inputs), jnp.asarray(batch.visible_until)
    hidden, _ = Decoder(config).apply(
        {"params": params}, batch.inputs, batch.positions, none, visible_until=until
    )
    return hidden


def head_kernel(config: ModelConfig, params: Params) -> jax.Array:
    """The output head [E, V] in the compute dtype."""
    kernel = nn.unbox(params["embedding"]).T if config.tie_embeddings else nn.unbox(params["head"])
    if config.quirks.normalize_lm_head:
        norm = jnp.linalg.norm(kernel.astype(jnp.float32), axis=0, keepdims=True)
        kernel = kernel / jnp.maximum(norm, 1e-12)
    return kernel.astype(config.dtype)


def logits(config: ModelConfig, params: Params, batch: Batch) -> jax.Array:
    """All logits, float32 [B, T, V], for small inputs; `score_tokens` needs less memory."""
    hidden, head = hidden_states(config, params, batch), head_kernel(config, params)
    return jnp.einsum("btd,dv->btv", hidden, head, preferred_element_type=jnp.float32)


def _rematted(config: ModelConfig) -> Callable[..., nn.Module]:
    if config.remat == "none":
        return Block
    saveable = jax.checkpoint_policies.save_only_these_names(*_SAVED[config.remat])
    # without a loop, common subexpression elimination would undo the rematerialization
    return nn.remat(Block, policy=saveable, prevent_cse=not config.scan_layers)


def _position_bias(
    config: ModelConfig, positions: jax.Array, cache_segment_ids: jax.Array | None
) -> PositionBias | None:
    if config.position_embedding != "alibi" and not config.sliding_window_pattern:
        return None
    keys = positions
    if cache_segment_ids is not None:  # a cached sequence is one document, with gaps
        keys = jnp.cumsum(cache_segment_ids > 0, axis=1) - 1
    alibi = config.position_embedding == "alibi"
    slopes = jnp.asarray(alibi_slopes(config.num_heads)) if alibi else None
    return PositionBias(positions, keys, None, slopes)


def _windows(config: ModelConfig) -> jax.Array | None:
    """Sliding window of each layer, int32 [L]; None where all have full attention."""
    cycle = config.sliding_window_pattern
    if not any(cycle):
        return None
    windows = [cycle[i % len(cycle)] for i in range(config.num_layers)]
    return jnp.asarray([window or jnp.iinfo(jnp.int32).max for window in windows], jnp.int32)
