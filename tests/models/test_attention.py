"""Every implementation of attention that runs here, against softmax attention spelt out."""

import importlib.util
import json
import os
import subprocess
import sys
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxllm.models import attention, positions
from jaxllm.models.attention import cudnn_attention, implementation
from jaxllm.models.attention.blockwise import PositionBias, blockwise_attention
from jaxllm.models.attention.splash import TILES, Tiles, splash_attention, tiles_for
from jaxllm.sharding.mesh import MeshConfig, make_mesh
from jaxllm.sharding.rules import partitioning
from tests.conftest import REPOSITORY

ROWS, LENGTH, WIDTH = 2, 256, 64


def blockwise(query, key, value, segments, window=None, block=96):
    places = jnp.broadcast_to(jnp.arange(LENGTH), (ROWS, LENGTH))
    distance = PositionBias(places, places, jnp.int32(window), None) if window else None
    return blockwise_attention(query, key, value, segments, block, position_bias=distance)


def splash(*args, **options):
    """Interpreted, in several tiles."""
    with mock.patch.dict(TILES, {"TPU v4": Tiles(128, 128, 128, fused=False)}):
        return splash_attention(*args, interpret=True, **options)


IMPLEMENTATIONS = {"blockwise": blockwise, "splash": splash}
if jax.default_backend() == "gpu":
    IMPLEMENTATIONS["cudnn"] = cudnn_attention


def reference(query, key, value, segments, window=None):
    """softmax(q k / sqrt K) v over what a token may see, with every matrix in full."""
    key, value = (np.repeat(x, query.shape[2] // x.shape[2], axis=2) for x in (key, value))
    scores = jnp.einsum("bqhk,bshk->bhqs", query, key) / np.sqrt(WIDTH)
    back = np.arange(LENGTH)[:, None] - np.arange(LENGTH)
    seen = (back >= 0) & (back < (window or LENGTH))
    seen = seen[None] & (segments[:, :, None] == segments[:, None, :])
    scores = jnp.where(seen[:, None], scores, -jnp.inf)
    return jnp.einsum("bhqs,bshk->bqhk", jax.nn.softmax(scores), value)


@pytest.fixture(scope="module", params=[(4, 4), (4, 2), (3, 1)], ids=["all", "grouped", "one"])
def inputs(request):
    heads, groups = request.param
    draw = np.random.default_rng(heads * 10 + groups)
    tensors = [
        draw.normal(size=(ROWS, LENGTH, count, WIDTH)).astype(np.float32)
        for count in (heads, groups, groups)
    ]
    ends = np.sort(draw.integers(1, LENGTH, (ROWS, 3)), axis=1)
    segments = 1 + (np.arange(LENGTH)[None, :, None] >= ends[:, None]).sum(-1)
    return *tensors, segments.astype(np.int32)


def kernel(name):
    if name == "cudnn":
        return lambda *a, **k: cudnn_attention(*(x.astype(jnp.bfloat16) for x in a[:3]), a[3], **k)
    return IMPLEMENTATIONS[name]


@pytest.mark.parametrize("window", [None, 70])
@pytest.mark.parametrize("name", IMPLEMENTATIONS)
def test_values_and_gradients_are_the_reference_s(name, window, inputs):
    *tensors, segments = inputs
    weights = np.random.default_rng(7).normal(size=tensors[0].shape).astype(np.float32)

    def total(attention):
        def loss(*tensors):
            mixed = attention(*tensors, segments, window=window)
            return jnp.sum(mixed * weights), mixed

        both = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True))
        (_, mixed), gradients = both(*tensors)
        return mixed, *gradients

    tolerance = 3e-2 if name == "cudnn" else 3e-5
    for ours, expected in zip(total(kernel(name)), total(reference), strict=True):
        np.testing.assert_allclose(ours, expected, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("name", IMPLEMENTATIONS)
def test_nothing_leaks_between_documents(name, inputs):
    """Another document in a row changes no bit of the others' outputs and gradients."""
    *tensors, segments = inputs
    changed = [np.where((segments == 2)[..., None, None], x * 3 + 1, x) for x in tensors]
    assert all((a != b).any() for a, b in zip(tensors, changed, strict=True))

    @jax.jit
    def both(tensors):
        mixed, back = jax.vjp(lambda *t: kernel(name)(*t, segments), *tensors)
        return mixed, *back(jnp.ones_like(mixed))

    others = segments != 2
    for before, after in zip(both(tensors), both(changed), strict=True):
        assert np.array_equal(np.asarray(before)[others], np.asarray(after)[others])


def test_large_rows_keep_no_scores(monkeypatch):
    """Beyond MAX_SAVED_SCORE_BYTES the backward pass recomputes a block's scores: less memory."""
    length = 2048
    shape = jax.ShapeDtypeStruct((1, length, 2, WIDTH), jnp.float32)
    segments = jnp.ones((1, length), jnp.int32)

    def temporaries():
        loss = lambda *t: jnp.sum(jnp.sin(blockwise_attention(*t, segments, 256)))
        compiled = jax.jit(jax.grad(loss, argnums=(0, 1, 2))).lower(*[shape] * 3).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    kept = temporaries()
    monkeypatch.setattr("jaxllm.models.attention.blockwise.MAX_SAVED_SCORE_BYTES", 0)
    assert temporaries() < 0.7 * kept


def test_making_scores_again_changes_nothing(monkeypatch, inputs):
    *tensors, segments = inputs
    loss = lambda *t: jnp.sum(jnp.sin(blockwise(*t, segments)))
    gradients = lambda: jax.jit(jax.grad(lambda *t: loss(*t), argnums=(0, 1, 2)))(*tensors)
    kept = gradients()
    monkeypatch.setattr("jaxllm.models.attention.blockwise.MAX_SAVED_SCORE_BYTES", 0)
    for a, b in zip(kept, gradients(), strict=True):
        np.testing.assert_allclose(a, b, atol=3e-5, rtol=3e-5)


def test_kernels_are_for_their_platforms():
    query = jnp.zeros((1, 256, 2, 64), jnp.bfloat16)
    assert implementation(query) == ("cudnn" if jax.default_backend() == "gpu" else "blockwise")


@pytest.mark.parametrize("kind", TILES)
@pytest.mark.parametrize("length", [128, 384, 2048, 32_768])
def test_tiles_divide_the_row(kind, length):
    tiles = tiles_for(kind, length)
    assert length % tiles.query == 0 and length % tiles.key == 0
    assert tiles.key % tiles.key_compute == 0 and tiles.key_compute % 128 == 0


@pytest.mark.parametrize(
    "axes", [{"fsdp": 2, "tensor": 4}, {"fsdp": 2, "sequence": 2, "tensor": 2}], ids=str
)
def test_splash_on_a_mesh_is_splash_on_one_device(axes):
    """Rows, heads (fewer keys than devices too) and the tokens of a row are cut over devices."""
    draw = np.random.default_rng(3)
    query = draw.normal(size=(ROWS, LENGTH, 4, WIDTH)).astype(np.float32)
    key, value = (draw.normal(size=(ROWS, LENGTH, 2, WIDTH)).astype(np.float32) for _ in "kv")
    segments = np.repeat(np.arange(1, 5, dtype=np.int32), LENGTH // 4)[None].repeat(ROWS, 0)
    mesh = make_mesh(MeshConfig(**axes), jax.devices()[:8])

    def loss(query, key, value):
        mixed = splash(query, key, value, segments)
        return jnp.sum(jnp.sin(mixed))

    def on_the_mesh(*tensors):
        with partitioning(mesh):
            return loss(*tensors)

    everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    gradients = jax.jit(
        jax.value_and_grad(on_the_mesh, argnums=(0, 1, 2)), out_shardings=everywhere
    )
    expected = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2)))(query, key, value)
    found = gradients(query, key, value)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed")
def test_every_chip_s_tiles_compile():
    environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    done = subprocess.run(
        [sys.executable, "-m", "tests.models.splash_on_tpus"],
        cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=900, check=True,
    )  # fmt: skip
    found = json.loads(done.stdout.splitlines()[-1])
    assert {kind.rsplit(" ", 1)[0] for kind in found} == set(TILES)
    assert found == dict.fromkeys(found)


def test_shards_of_a_sequence_below_a_tile_leave_the_tpu_kernel(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(attention, "device_kind", lambda: ("tpu", "TPU v5"))
    query = {length: jax.ShapeDtypeStruct((8, length, 4, 128), "bfloat16") for length in (128, 256)}
    assert attention.implementation(query[128]) == "splash"
    with partitioning(make_mesh(MeshConfig(fsdp=4, sequence=2))):
        assert attention.implementation(query[128]) == "blockwise"
        assert attention.implementation(query[256]) == "splash"


@pytest.mark.parametrize(("dtype", "exact"), [("float32", True), ("bfloat16", False)])
def test_rotation_on_tpus_asks_for_what_makes_it_exact(
    dtype: str, exact: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(positions, "device_kind", lambda: ("tpu", "TPU v5"))
    x, angle = jnp.ones((1, 4, 2, 8), dtype), jnp.ones((1, 4, 1, 4))
    program = str(jax.make_jaxpr(positions.apply_rope)(x, angle, angle))
    assert "dot_general" in program and ("HIGHEST" in program) is exact
