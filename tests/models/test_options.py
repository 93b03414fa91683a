"""Every family's options under packing, remat, unrolling and a mesh; bad values are refused."""

import dataclasses
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxllm.errors import UserError
from jaxllm.models.batch import Batch
from jaxllm.models.config import ModelConfig
from jaxllm.models.decoder import Params, abstract_params, logits
from jaxllm.models.norms import Norm
from jaxllm.models.scoring import token_loss
from jaxllm.sharding.mesh import MeshConfig, make_mesh
from jaxllm.sharding.rules import batch_sharding, param_shardings, partitioning
from jaxllm.training.optimizer import weight_decay_mask
from tests.models.families import EVERY_CONFIG
from tests.models.helpers import TINY, pack, random_batch, random_params

# Between them these have every option that the decoder knows.
DIVERSE = ("opt_350m", "neox_parallel", "gpt_neo", "olmo_1_7", "olmo2", "baichuan2_13b")


def loss(config: ModelConfig, params: Params, batch: Batch) -> jax.Array:
    return token_loss(config, params, batch)[0]


@pytest.mark.parametrize("name", DIVERSE)
def test_packed_documents_are_as_each_alone(name: str) -> None:
    """Logits, and the gradient of the packed row, which is the sum of theirs."""
    config = EVERY_CONFIG[name]
    params = random_params(config)
    generator = np.random.default_rng(7)
    documents = [
        generator.integers(1, config.vocab_size, n + 1).astype(np.int32) for n in (11, 4, 13)
    ]
    # As many rows, so that one program does for both.
    together = jax.tree.map(lambda x: np.concatenate([x, 0 * x, 0 * x]), pack(documents, length=32))
    rows = [pack([document], length=32) for document in documents]
    alone = jax.tree.map(lambda *parts: np.concatenate(parts), *rows)
    both = jax.jit(
        lambda p, batch: (logits(config, p, batch), jax.grad(partial(loss, config))(p, batch))
    )
    packed, packed_gradients = both(params, together)
    single, single_gradients = both(params, alone)
    start = 0
    for row, document in enumerate(documents):
        n = len(document) - 1
        np.testing.assert_allclose(packed[0, start : start + n], single[row, :n], atol=2e-5)
        start += n
    jax.tree.map(
        partial(np.testing.assert_allclose, atol=2e-4, rtol=1e-4),
        packed_gradients, single_gradients,
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", DIVERSE)
def test_remat_unrolling_and_a_mesh_change_nothing(name: str) -> None:
    """Gradients with remat, with unrolled layers, and on 2 x 2 x 2 devices."""
    config = EVERY_CONFIG[name]
    params, batch = random_params(config), random_batch(config, rows=4, length=15)
    same = partial(np.testing.assert_allclose, rtol=1e-4, atol=2e-4)
    plain = jax.jit(jax.grad(partial(loss, config)))(params, batch)
    for option in ({"scan_layers": False, "remat": "minimal"}, {"remat": "attention"}):
        other = dataclasses.replace(config, **option)
        jax.tree.map(same, jax.jit(jax.grad(partial(loss, other)))(params, batch), plain)

    full = dataclasses.replace(config, remat="full")
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    shardings = param_shardings(mesh, abstract_params(config))
    with partitioning(mesh):
        sharded = jax.jit(
            jax.grad(partial(loss, full)), in_shardings=(shardings, batch_sharding(mesh))
        )
        gradients = sharded(jax.device_put(params, shardings), batch)
    jax.tree.map(same, gradients, plain)
    assert any(not x.is_fully_replicated for x in jax.tree.leaves(shardings))


@pytest.mark.parametrize("name", EVERY_CONFIG)
def test_parameters_count_name_their_axes_and_decay_as_matrices(name: str) -> None:
    config = EVERY_CONFIG[name]
    boxed = lambda x: isinstance(x, nn.LogicallyPartitioned)
    shapes = abstract_params(config)
    leaves = jax.tree_util.tree_leaves_with_path(shapes, is_leaf=boxed)
    decays = jax.tree.leaves(weight_decay_mask(shapes))
    assert config.num_params == sum(leaf.value.size for _, leaf in leaves)
    for (path, leaf), decay in zip(leaves, decays, strict=True):
        last = path[-1].key
        assert len(leaf.names) == leaf.value.ndim
        assert decay == (last not in ("scale", "bias") and not last.endswith("_bias")), path


def test_a_window_hides_what_is_further_back() -> None:
    """One layer of window 5: a change 5 tokens back is not felt, 4 tokens back it is."""
    config = dataclasses.replace(EVERY_CONFIG["gpt_neo"], num_layers=1, sliding_window_pattern=(5,))
    params, batch = random_params(config), random_batch(config, rows=1, length=20)
    changed = batch._replace(inputs=batch.inputs.at[0, 7].add(1) % config.vocab_size)
    run = jax.jit(partial(logits, config, params))
    felt = np.asarray(run(batch) != run(changed)).any(axis=-1)[0]
    np.testing.assert_array_equal(felt, (np.arange(20) >= 7) & (np.arange(20) < 12))


@pytest.mark.parametrize("kind", ["rms", "layer", "layer_plain"])
def test_a_norm_keeps_nothing_wider_than_what_it_reads(kind: str) -> None:
    norm = Norm(dataclasses.replace(TINY, norm=kind))
    x = jax.ShapeDtypeStruct((2, 8, 64), jnp.bfloat16)
    variables = jax.eval_shape(norm.init, jax.random.key(0), x)
    backward = jax.eval_shape(lambda v, x: jax.vjp(norm.apply, v, x)[1], variables, x)
    kept = [leaf.dtype for leaf in jax.tree.leaves(backward) if leaf.shape == x.shape]
    assert kept == [jnp.bfloat16]


def test_long_rows_need_learned_positions() -> None:
    config = EVERY_CONFIG["gpt2"]
    batch = random_batch(config, rows=1, length=config.max_length + 1)
    with pytest.raises(UserError, match=r"65 tokens.*64 positions"):
        jax.eval_shape(lambda p: logits(config, p, batch), abstract_params(config))


@pytest.mark.parametrize("name", ["opt", "opt_350m", "gpt_neo", "neox_parallel", "baichuan_13b"])
def test_bfloat16_keeps_to_float32_scores(name: str) -> None:
    config = dataclasses.replace(EVERY_CONFIG[name], init_stddev=0.03)
    params, batch = random_params(config), random_batch(config, rows=2, length=20)
    low = dataclasses.replace(config, dtype="bfloat16")
    wide, narrow = jax.jit(lambda p: [logits(c, p, batch) for c in (config, low)])(params)
    assert narrow.dtype == jnp.float32
    np.testing.assert_allclose(narrow, wide, atol=0.06 * float(jnp.abs(wide).max()))


@pytest.mark.parametrize(
    ("options", "culprit"),
    [
        (
            {"position_embedding": "sinusoidal"},
            "position_embedding = 'sinusoidal': must be 'rotary' or 'learned'",
        ),
        ({"norm": "batch"}, "norm = 'batch': must be 'rms' or 'layer'"),
        ({"block_type": "round"}, "block_type"),
        ({"mlp_type": "moe"}, "mlp_type"),
        ({"use_bias": ("qkv", "head")}, "choose from qkv, attention_output, mlp"),
        ({"qk_norm": "True"}, "qk_norm"),
        ({"activation": "swish"}, "activation"),
        ({"quirks": {"rotary_fraction": 1.5}}, "rotary_fraction = 1.5: must be at most 1"),
        ({"quirks": {"rotary_fraction": 0.4}}, "leaves it 3 of 8 dimensions"),
        ({"quirks": {"rotary_fraction": 0.1}}, "leaves it 0 of 8 dimensions"),
        ({"quirks": {"position_offset": -1}}, "position_offset"),
        ({"quirks": {"clip_qkv": 0.0}}, "clip_qkv"),
        ({"quirks": {"clip_qkv": "8"}}, "clip_qkv = '8': must be a finite number > 0 or None"),
        ({"quirks": {"attention_scale": -1.0}}, "attention_scale"),
        ({"quirks": {"embedding_dim": 0}}, "embedding_dim"),
        ({"quirks": {"clip_kqv": 8.0}}, "no field 'clip_kqv'.*clip_qkv.*; it has rotary_fraction"),
        ({"sliding_window_pattern": (-1,)}, "sliding_window_pattern"),
        ({"sliding_window_pattern": 256}, "sliding_window_pattern"),
    ],
)
def test_impossible_options_are_refused(options: Any, culprit: str) -> None:
    with pytest.raises(UserError, match=culprit):
        dataclasses.replace(TINY, **options)


def test_a_list_of_windows_is_as_good_as_a_tuple() -> None:
    assert dataclasses.replace(TINY, sliding_window_pattern=[0, 5]).sliding_window_pattern == (0, 5)
