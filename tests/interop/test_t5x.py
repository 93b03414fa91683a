"""t5x trains, scores and decodes our model as we do, and checkpoints go both ways unchanged.

t5x's own loss, scoring, sampling, partitioner and checkpointers are the other side of every
comparison. t5x is not on the package index: docs/t5x.md says how to install it for these tests.
"""

import dataclasses
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

pytest.importorskip("t5x.models", reason="t5x is not installed (docs/t5x.md)", exc_type=ImportError)

import seqio
import tensorflow as tf
from jax.sharding import PartitionSpec
from t5x import checkpoints, models, partitioning, trainer, utils
from t5x.train_state import FlaxOptimTrainState, InferenceState

from jaxllm.errors import UserError
from jaxllm.interop.t5x import bridge
from jaxllm.models.batch import Batch
from jaxllm.models.config import ModelConfig
from jaxllm.models.decoder import abstract_params, init_params, logits
from jaxllm.models.scoring import score_tokens, token_loss
from jaxllm.sharding.mesh import MeshConfig, make_mesh
from jaxllm.training.config import AdamWConfig
from jaxllm.training.learning_rate import ScheduleConfig, make_schedule
from tests.models.helpers import generate

CONFIG = ModelConfig(
    vocab_size=264,
    num_layers=2,
    embed_dim=32,
    mlp_dim=48,
    num_heads=4,
    num_kv_heads=2,
    max_length=24,
    init_stddev=0.2,  # far from uniform: a wrong token or mask shows
)
SCHEDULE = make_schedule(ScheduleConfig(peak_lr=1e-2, end_lr=1e-3, warmup_steps=2), 10)
OPTIMIZER = AdamWConfig(eps=1e-3)  # smooth where a gradient is nearly 0
LENGTHS = {"inputs": 12, "targets": 12}


def make_model(**changes) -> bridge.DecoderModel:
    return bridge.DecoderModel(
        CONFIG,
        seqio.ByteVocabulary(),
        bridge.adamw(CONFIG, OPTIMIZER, SCHEDULE),
        **changes,
    )


def make_batch(pack: bool, rows: int = 8) -> dict[str, np.ndarray]:
    """Rows of random examples of uneven lengths, as SeqIO converts them for a decoder."""
    rng = np.random.default_rng(0)

    def examples():
        for _ in range(100):
            yield {
                "inputs": rng.integers(3, 259, rng.integers(1, 12)).astype(np.int32),
                "targets": rng.integers(3, 259, rng.integers(1, 12)).astype(np.int32),
            }

    signature = {key: tf.TensorSpec([None], tf.int32) for key in LENGTHS}
    dataset = tf.data.Dataset.from_generator(examples, output_signature=signature)
    converted = seqio.DecoderFeatureConverter(pack=pack)(dataset, LENGTHS)
    return next(converted.batch(rows).as_numpy_iterator())


def ours(batch: dict[str, np.ndarray]) -> Batch:
    tokens = batch["decoder_input_tokens"]
    return Batch(
        inputs=tokens,
        targets=batch["decoder_target_tokens"],
        weights=batch["decoder_loss_weights"].astype(np.float32),
        positions=batch.get("decoder_positions", np.arange(tokens.shape[1]) + 0 * tokens),
        segment_ids=batch.get("decoder_segment_ids", np.ones_like(tokens)),
        domains=np.zeros(len(tokens), np.int32),
    )


def partitioner() -> partitioning.PjitPartitioner:
    """t5x's, on 4 x 2 devices: on CPUs it knows 1 x 8 alone, whatever `num_partitions` is."""
    made = partitioning.PjitPartitioner(
        num_partitions=2, logical_axis_rules=bridge.logical_axis_rules()
    )
    made.mesh = jax.sharding.Mesh(np.array(jax.devices()).reshape(4, 2), ("data", "model"))
    return made


def initializer(model: models.BaseModel, optimizer: bool = True) -> utils.TrainStateInitializer:
    return utils.TrainStateInitializer(
        model.optimizer_def if optimizer else None,
        model.get_initial_variables,
        {"decoder_input_tokens": (8, 24)},
        partitioner(),
    )


@pytest.fixture(scope="module")
def params():
    return jax.jit(lambda: nn.unbox(init_params(CONFIG, jax.random.key(3))))()


def flatten(tree):
    """A FrozenDict or a boxed tree as plain dicts of arrays."""
    return nn.unbox(tree.unfreeze() if hasattr(tree, "unfreeze") else tree)


def same_bits(a, b) -> None:
    flat = dict(jax.tree_util.tree_leaves_with_path(flatten(b)))
    for path, leaf in jax.tree_util.tree_leaves_with_path(flatten(a)):
        other = flat.pop(path)
        assert leaf.dtype == other.dtype
        np.testing.assert_array_equal(
            np.asarray(leaf).view(np.uint8), np.asarray(other).view(np.uint8)
        )
    assert not flat


def test_parameters_and_moments_are_cut_over_both_axes_of_t5xs_mesh() -> None:
    axes = initializer(make_model()).train_state_axes
    query = PartitionSpec(None, "data", "model", None)
    assert axes.params["layers"]["attention"]["query"] == query
    assert axes.params["embedding"] == PartitionSpec("model", "data")
    assert axes.params["final_norm"]["scale"] == PartitionSpec(None)
    moments = [
        spec
        for path, spec in jax.tree_util.tree_leaves_with_path(
            axes.state_dict()["state"], is_leaf=lambda x: isinstance(x, PartitionSpec)
        )
        if "'query'" in jax.tree_util.keystr(path)
    ]
    assert moments == [query, query]


def test_activations_are_sharded_under_t5xs_mesh(params) -> None:
    model, cut = make_model(), partitioner()
    scored = cut.partition(
        lambda p, b: model.score_batch(p, b), in_axis_resources=None, out_axis_resources=None
    )
    text = scored.lower(params, make_batch(pack=True)).as_text()
    assert text.count('{"data"}') > 4 * CONFIG.num_layers


@pytest.mark.parametrize(
    ("pack", "factor"),
    [(True, "NUM_REAL_TARGET_TOKENS"), (True, "AVERAGE_PER_SEQUENCE"), (False, None)],
)
def test_loss_scores_and_metrics_are_t5xs_own(params, pack: bool, factor) -> None:
    """Against t5x's cross entropy and scoring over all logits."""
    model, batch = make_model(z_loss=1e-3, loss_normalizing_factor=factor), make_batch(pack)
    t5xs = models.DecoderOnlyModel
    gradient = lambda loss_fn: jax.value_and_grad(
        lambda p: loss_fn(p, batch, dropout_rng=None), has_aux=True
    )
    (loss, metrics), grads = jax.jit(gradient(model.loss_fn))(params)
    (wanted, wanted_metrics), wanted_grads = jax.jit(
        gradient(lambda p, b, dropout_rng: t5xs.loss_fn(model, p, b, dropout_rng))
    )(params)
    np.testing.assert_allclose(loss, wanted, rtol=2e-6)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6 * float(loss)),
        grads,
        wanted_grads,
    )
    for name in ("accuracy", "z_loss", "loss_per_nonpadding_target_token"):
        a, b = metrics[name], wanted_metrics[name]
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5), a, b)
    assert metrics.keys() - {"effective_batch_size/decoder", "non_padding_fraction/decoder"} <= (
        wanted_metrics.keys()
    )

    scores = jax.jit(model.score_batch)(params, batch)
    np.testing.assert_allclose(
        scores, jax.jit(partial(t5xs.score_batch, model))(params, batch), rtol=1e-5
    )
    own = jax.jit(partial(score_tokens, CONFIG))(params, ours(batch)).log_likelihood
    np.testing.assert_allclose(scores, (own * ours(batch).weights).sum(-1), rtol=1e-6)
    _, aux = jax.jit(partial(model.score_batch, return_intermediates=True))(params, batch)
    np.testing.assert_allclose(aux["decoder"]["token_scores"][0].sum(-1), scores, rtol=1e-6)


def test_a_train_step_is_ours() -> None:
    """t5x's sharded step over 4 x 2 devices, against our loss and Optax on one."""
    model, batch, cut = make_model(), make_batch(pack=True), partitioner()
    made = initializer(model)
    state = made.from_scratch(jax.random.PRNGKey(0))
    before = jax.device_get(flatten(state.params))
    step = cut.partition(
        lambda state, batch: trainer.train_with_lr(
            state, batch, 0.0, jax.random.PRNGKey(0), model, None
        ),
        in_axis_resources=(made.train_state_axes, cut.data_partition_spec),
        out_axis_resources=(made.train_state_axes, None),
    )
    after, metrics = step(state, batch)

    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6),  # rounding, jitted or not
        before,
        jax.jit(lambda: flatten(init_params(CONFIG, jax.random.PRNGKey(0))))(),
    )
    optimizer = OPTIMIZER.build(SCHEDULE, abstract_params(CONFIG))
    rows = ours(batch)

    def loss(p):
        return token_loss(CONFIG, p, rows)[0] / rows.weights.sum()

    @jax.jit
    def update(p):
        value, gradients = jax.value_and_grad(loss)(p)
        return value, optimizer.update(gradients, optimizer.init(p), p)[0]

    value, updates = update(before)
    np.testing.assert_allclose(metrics["loss"].total, value, rtol=1e-6)
    wanted = jax.tree.map(lambda p, u: p + u, before, updates)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=2e-6), flatten(after.params), wanted
    )
    assert int(after.step) == 1


@pytest.mark.parametrize("num_decodes", [1, 3])
def test_greedy_decoding_is_our_generate(params, num_decodes: int) -> None:
    model, batch = make_model(), make_batch(pack=False)
    decode = lambda p, b: model.predict_batch_with_aux(
        p,
        b,
        num_decodes=num_decodes,
        return_all_decodes=True,
        decoder_params={"temperature": 0.0, "rescale_log_probs": False, "eos_id": 1},
    )
    cut = partitioner()
    decode = cut.partition(
        decode, in_axis_resources=(None, cut.data_partition_spec), out_axis_resources=None
    )
    predicted, _ = jax.device_get(decode(params, batch))
    assert predicted.shape == (8, num_decodes, 24)

    prompts = batch["decoder_input_tokens"] * batch["decoder_causal_attention"]
    lengths = batch["decoder_causal_attention"].sum(-1)  # the BOS counts
    assert len(set(lengths.tolist())) > 3
    wanted = np.asarray(
        jax.jit(lambda p, x, n: generate(CONFIG, p, x, n, 24, stop_ids=(1,)))(
            params, prompts, lengths
        )
    )
    for row, length in enumerate(lengths):
        room = 24 - length + 1
        for predictions in predicted[row]:
            assert predictions[:room].tolist() == wanted[row, :room].tolist()
            assert not predictions[room:].any()

    # and each of those tokens is the most likely one by the uncached forward pass
    row, length = 0, int(lengths[0])
    tokens = np.concatenate([prompts[row, :length], wanted[row, : 24 - length]])[None]
    ones = np.ones_like(tokens)
    whole = Batch(tokens, tokens, ones, np.arange(24)[None], ones, np.zeros(1, np.int32))
    best = np.asarray(jax.jit(partial(logits, CONFIG))(params, whole))[0].argmax(-1)
    np.testing.assert_array_equal(best[length - 1 :], wanted[row, : 24 - length + 1])


def test_decoding_reads_the_logits_of_the_uncached_forward(params) -> None:
    model, batch = make_model(), make_batch(pack=False)
    inputs = jnp.asarray(batch["decoder_input_tokens"] * batch["decoder_causal_attention"])

    @jax.jit
    def first_step(params):
        cache, index = model._compute_kv_cache(params, inputs, batch["decoder_causal_attention"])
        last = jnp.take_along_axis(inputs, index[:, None], axis=1)
        state = models.decoding.DecodingState(index, inputs, last, cache)
        return model._compute_logits_from_slice(state, params, 24)[0], index

    values, index = first_step(params)
    rows = ours({**batch, "decoder_input_tokens": inputs})
    whole = jax.jit(partial(logits, CONFIG))(params, rows)
    np.testing.assert_allclose(values, whole[np.arange(8), index], rtol=1e-4, atol=1e-4)


def test_reads_what_t5x_saves_bit_for_bit(tmp_path) -> None:
    """A training state with its optimizer."""
    made, cut = initializer(make_model()), partitioner()
    state = made.from_scratch(jax.random.PRNGKey(1)).replace_step(jnp.asarray(5))
    manager = checkpoints.OrbaxCheckpointManagerInterface(
        str(tmp_path), made.global_train_state_shape, cut
    )
    manager.save(state)
    manager.close()
    mesh = make_mesh(MeshConfig(fsdp=4, tensor=2))
    found = bridge.read_checkpoint(tmp_path, 5, CONFIG, mesh)
    assert found["embedding"].sharding.mesh.shape == mesh.shape
    assert not found["embedding"].sharding.is_fully_replicated
    same_bits(found, state.params)

    with pytest.raises(UserError, match="checkpoint_6: no t5x checkpoint"):
        bridge.read_checkpoint(tmp_path, 6, CONFIG, mesh)
    tied = dataclasses.replace(CONFIG, tie_embeddings=True)
    with pytest.raises(UserError, match="parameter head is unknown to the model"):
        bridge.read_checkpoint(tmp_path, 5, tied, mesh)
    wide = dataclasses.replace(CONFIG, mlp_dim=64)
    with pytest.raises(UserError, match=r"layers/mlp/down has shape \[2, 48, 32\] in it, and"):
        bridge.read_checkpoint(tmp_path, 5, wide, mesh)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_t5x_restores_what_we_write_bit_for_bit(tmp_path, dtype: str) -> None:
    config = dataclasses.replace(CONFIG, param_dtype=dtype)
    written = init_params(config, jax.random.key(4))
    bridge.write_checkpoint(tmp_path / "new", 7, config, written)
    made, cut = initializer(make_model(), optimizer=False), partitioner()
    manager = checkpoints.OrbaxCheckpointManagerInterface(
        str(tmp_path / "new"), made.global_train_state_shape, cut
    )
    restored = manager.restore(step=7)
    assert isinstance(restored, InferenceState)
    assert int(restored.step) == 7
    assert restored.params["embedding"].sharding.spec == PartitionSpec("model", "data")
    same_bits(restored.params, written)
    again = bridge.read_checkpoint(tmp_path / "new", 7, config, make_mesh(MeshConfig()))
    same_bits(again, written)


def test_training_goes_on_from_what_we_write(tmp_path, params) -> None:
    bridge.write_checkpoint(tmp_path, 3, CONFIG, params)
    restore = utils.RestoreCheckpointConfig(
        path=str(tmp_path / "checkpoint_3"),
        mode="specific",
        fallback_to_scratch=True,
        assignment_map=[("state/param_states.*", None)],
    )
    state, _ = utils.create_checkpoint_manager_and_restore(
        initializer(make_model()),
        partitioner(),
        restore,
        restore.path,
        jax.random.PRNGKey(0),
        model_dir=str(tmp_path),
        use_orbax=True,
    )
    assert isinstance(state, FlaxOptimTrainState)
    assert int(state.step) == 3
    same_bits(state.params, params)


def test_a_vocabulary_that_does_not_fit_is_refused() -> None:
    small = dataclasses.replace(CONFIG, vocab_size=100)
    with pytest.raises(UserError, match="vocab_size = 100: the vocabulary has 259 tokens"):
        bridge.DecoderModel(small, seqio.ByteVocabulary(), None)


def test_rules_of_the_user_come_first() -> None:
    rules = bridge.logical_axis_rules([("vocab", None)])
    spec = nn.logical_to_mesh_axes(("vocab", "embed"), rules)
    assert spec == PartitionSpec(None, "data")
