"""Bytes on the links, read from programs whose traffic is known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxllm.planning.hlo import traffic

N = 1024  # float32 numbers of every array: 4096 bytes


def compiled_text(function, *specs, devices=8, shape=(8,), names=("x",), out=None):
    mesh = Mesh(np.array(jax.devices()[:devices]).reshape(shape), names)
    arguments = [
        jax.ShapeDtypeStruct((N,), jnp.float32, sharding=NamedSharding(mesh, spec))
        for spec in specs
    ]
    whole = jax.shard_map(
        function, mesh=mesh, in_specs=specs, out_specs=out or P(), check_vma=False
    )
    return jax.jit(whole).lower(*arguments).compile().as_text()


def sent(text, per_slice=8, slices=1):
    return {(t.kind, t.link): (t.calls, t.bytes) for t in traffic(text, per_slice, slices)}


def test_all_reduce_sends_twice_its_share():
    text = compiled_text(lambda x: jax.lax.psum(x, "x"), P())
    assert sent(text) == {("all-reduce", "ici"): (1, 2 * 4 * N * 7 / 8)}


def test_all_gather_sends_its_share_of_the_whole():
    text = compiled_text(lambda x: jax.lax.all_gather(x, "x", tiled=True), P("x"))
    assert sent(text) == {("all-gather", "ici"): (1, 4 * N * 7 / 8)}


def test_reduce_scatter_counts_what_goes_in():
    scatter = lambda x: jax.lax.psum_scatter(x, "x", tiled=True)
    found = sent(compiled_text(scatter, P(), out=P("x")))
    assert found == {("reduce-scatter", "ici"): (1, 4 * N * 7 / 8)}


def test_tpus_write_reduce_scatter_as_a_fused_reduction_and_slice():
    text = """
%all-reduce-scatter.1 (input: f32[1024]) -> f32[128] {
  %input = f32[1024]{0} parameter(0)
  %all-reduce.1 = f32[1024]{0} all-reduce(%input), channel_id=1, replica_groups={{0,1,2,3,4,5,6,7}}
  ROOT %slice = f32[128]{0} dynamic-slice(%all-reduce.1), dynamic_slice_sizes={128}
}

ENTRY %main (x: f32[1024]) -> f32[128] {
  %x = f32[1024]{0} parameter(0)
  ROOT %fusion = f32[128]{0} fusion(%x), kind=kCustom, calls=%all-reduce-scatter.1
}
"""
    assert sent(text) == {("reduce-scatter", "ici"): (1, 4 * N * 7 / 8)}


def test_permute_sends_an_array():
    ring = [(i, (i + 1) % 8) for i in range(8)]
    text = compiled_text(lambda x: jax.lax.ppermute(x, "x", ring), P())
    assert sent(text) == {("collective-permute", "ici"): (1, 4 * N)}


@pytest.mark.parametrize("trips", [3, 11])
def test_loops_count_as_often_as_they_go_round(trips):
    def function(x):
        def body(x, _):
            return jnp.sin(jax.lax.psum(x, "x")), None

        def outer(x, _):
            return jax.lax.scan(body, x, None, trips)[0], None

        return jax.lax.scan(outer, x, None, 2)[0]

    found = sent(compiled_text(function, P()))
    assert found == {("all-reduce", "ici"): (2 * trips, 2 * trips * 2 * 4 * N * 7 / 8)}


@pytest.mark.parametrize(
    ("axis", "link", "share"), [("slow", "dcn", 1 / 2), ("fast", "ici", 3 / 4)]
)
def test_groups_over_slices_are_on_the_dcn(axis, link, share):
    text = compiled_text(lambda x: jax.lax.psum(x, axis), P(), shape=(2, 4), names=("slow", "fast"))
    assert sent(text, per_slice=4) == {("all-reduce", link): (1, 2 * 4 * N * share)}


def test_the_forms_that_a_tpu_s_compiler_writes():
    """Groups as a mesh, loops whose trips only their condition tells, kernels, and slices."""
    text = """HloModule m

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %sum = f32[] add(%a, %b)
}

%body (p: (s32[], bf16[64,8])) -> (s32[], bf16[64,8]) {
  %p = (s32[], bf16[64,8]{1,0:T(8,128)(2,1)}) parameter(0)
  %x = bf16[64,8]{1,0} get-tuple-element(%p), index=1
  %k = bf16[64,8]{1,0} custom-call(%x), frontend_attributes={kernel_metadata={
"block_q": 128
}}, metadata={op_name="kernel"}
  %r = bf16[64,8]{1,0} all-reduce(%x), replica_groups=mesh['a'=2,'b'=4] {'b'}, to_apply=%add
  %g = (bf16[16,8], bf16[64,8]) all-gather-start(%x), replica_groups=[2,4]<=[8], dimensions={0}
}

%cond (p: (s32[], bf16[64,8])) -> pred[] {
  %n = s32[]{:T(128)} constant(5)
  %i = s32[] get-tuple-element(%p), index=0
  ROOT %lt = pred[] compare(%i, %n), direction=LT
}

ENTRY %main (q: (s32[], bf16[64,8])) -> (s32[], bf16[64,8]) {
  %s = (f32[32], token[]) send(%q), frontend_attributes={_xla_megascale_transfer_type="ALL_REDUCE"}
  %q = (s32[], bf16[64,8]) parameter(0)
  ROOT %w = (s32[], bf16[64,8]) while(%q), condition=%cond, body=%body
}
"""
    array = 2 * 64 * 8
    assert sent(text, per_slice=4, slices=2) == {
        ("all-reduce", "dcn"): (1, 2 * 4 * 32 / 2),
        ("all-reduce", "ici"): (5, 5 * 2 * array * 3 / 4),
        ("all-gather", "ici"): (5, 5 * array * 3 / 4),
    }
