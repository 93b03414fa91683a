"""Causal attention on TPUs: JAX's splash kernel, under shard_map.

The kernel holds one tile of scores at a time, and skips those that the causal mask or a window
hides. Where sequences are sharded, each device all-gathers whole keys and values.
"""

from __future__ import annotations

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from jaxllm.models.partitioning import device_kind, divisible_spec, mesh_size

ATTENTION_RESIDUALS = "attention_residuals"  # `checkpoint_name`: saved for the backward pass
LANES = 128  # of a TPU's vector unit; tiles and lengths are multiples


class Tiles(NamedTuple):
    """Tile sizes of all passes of the kernel, in tokens."""

    query: int
    key: int
    key_compute: int  # keys per matmul, a divisor of `key`
    fused: bool  # whether one backward kernel computes all gradients, or a second the queries'


# By prefix of the device kind, the longest match. Tests compile each of them.
# The fused backward kernel writes a partial gradient of the queries per key tile, to be summed: it
# pays where one tile holds the keys of a sequence, for which v5e and all up to v4 lack the memory.
_SMALL = Tiles(query=1024, key=1024, key_compute=512, fused=False)
_LARGE = Tiles(query=1024, key=2048, key_compute=512, fused=True)
TILES: dict[str, Tiles] = {
    "TPU v2": _SMALL, "TPU v3": _SMALL, "TPU v4": _SMALL, "TPU v5 lite": _SMALL,
    "TPU v5": _LARGE, "TPU v6 lite": _LARGE, "TPU7x": _LARGE,
}  # fmt: skip


def tiles_for(kind: str, length: int) -> Tiles:
    """The tiles of a device kind that divide `length` tokens, a multiple of 128."""
    fitting = [name for name in TILES if kind.startswith(name)]
    query, key, compute, fused = TILES[max(fitting, key=len, default="TPU v4")]
    query, key = math.gcd(query, length), math.gcd(key, length)
    return Tiles(query, key, math.gcd(compute, key), fused)


def splash_attention(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    segment_ids: jax.Array,
    *,
    scale: float | None = None,
    window: int | None = None,
    interpret: bool = False,
) -> jax.Array:
    """`causal_attention`, T a multiple of 128.

    `interpret` runs the kernel on any platform, but slowly, for tests.
    """
    query = query * jnp.asarray(scale or query.shape[-1] ** -0.5, query.dtype)
    queries = divisible_spec(query.shape, "batch", "length", "heads", "head_dim")
    keys = divisible_spec(key.shape, "batch", "length", "kv_heads", "head_dim")
    if len(queries) and (queries[2] is not None) and (keys[2] is None):
        # the kv heads cannot be sharded like the query heads: repeat them for each of these
        repeats = query.shape[2] // key.shape[2]
        key, value = jnp.repeat(key, repeats, axis=2), jnp.repeat(value, repeats, axis=2)
        keys = divisible_spec(key.shape, "batch", "length", "heads", "head_dim")
    if not len(queries):
        kernel = _kernel(query.shape, 1, 1, window, interpret)
        return _on_one_device(None, kernel, query, key, value, segment_ids)
    mesh, heads, lengths = jax.sharding.get_abstract_mesh(), queries[2], queries[1]
    kernel = _kernel(query.shape, mesh_size(heads), mesh_size(lengths), window, interpret)
    sharded = kernel.manual_sharding_spec(NamedSharding(mesh, PartitionSpec(heads, lengths)))
    return jax.shard_map(
        functools.partial(_on_one_device, queries[1]),
        mesh=mesh,
        in_specs=(sharded, queries, keys, keys, PartitionSpec(*queries[:2])),
        out_specs=queries,
        check_vma=False,
    )(kernel, query, key, value, segment_ids)


def _on_one_device(axis, kernel, query, key, value, own):  # type: ignore[no-untyped-def]
    """Run the kernel on query, key, value [B, t, h, K], a shard of the tokens and heads.

    Keys and values are all-gathered here, not by the caller, so that each device receives the
    gradients of its own shard only.
    """
    from jax.experimental.pallas.ops.tpu import splash_attention as splash

    key_segments = own
    if axis is not None:
        gather = functools.partial(jax.lax.all_gather, axis_name=axis, axis=1, tiled=True)
        key, value, key_segments = gather(key), gather(value), gather(own)
    # Mosaic multiplies bfloat16 from v4 on
    compute = jnp.float32 if device_kind()[1].startswith(("TPU v2", "TPU v3")) else query.dtype
    by_head = lambda x: x.swapaxes(1, 2).astype(compute)
    attend = lambda q, k, v, *segments: kernel(q, k, v, splash.SegmentIds(*segments))
    attn_out = jax.vmap(attend)(by_head(query), by_head(key), by_head(value), own, key_segments)
    return attn_out.swapaxes(1, 2).astype(query.dtype)


def _kernel(shape, head_shards, length_shards, window, interpret):  # type: ignore[no-untyped-def]
    from jax.experimental.pallas.ops.tpu import splash_attention as splash

    _, length, heads, _ = shape
    square = (length, length)
    mask: Any = splash.CausalMask(square, shard_count=length_shards)
    if window is not None:
        mask = splash.LocalMask(square, (window - 1, 0), 0, shard_count=length_shards)
    tiles = tiles_for(device_kind()[1], length // length_shards)
    return splash.make_splash_mha(
        splash.MultiHeadMask([mask] * heads),
        head_shards=head_shards,
        q_seq_shards=length_shards,
        block_sizes=splash.BlockSizes(
            block_q=tiles.query, block_kv=tiles.key, block_kv_compute=tiles.key_compute,
            block_q_dkv=tiles.query, block_kv_dkv=tiles.key,
            block_kv_dkv_compute=tiles.key_compute,
            block_q_dq=None if tiles.fused else tiles.query,
            block_kv_dq=None if tiles.fused else tiles.key,
            use_fused_bwd_kernel=tiles.fused,
        ),
        residual_checkpoint_name=ATTENTION_RESIDUALS,  # output and log-sum-exp
        interpret=interpret,
    )  # fmt: skip
