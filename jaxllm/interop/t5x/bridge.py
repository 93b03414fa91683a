"""Our decoder as a t5x model: t5x's `main` trains, evaluates and infers with it.

    python -m t5x.main --run_mode=train --gin_search_paths=gin --gin_file=t5x/pretrain.gin …

t5x is not on the package index; docs/t5x.md has the installation. The model wraps the functions of
`jaxllm.models`: the loss never materializes the logits of a whole batch, decoding uses our KV
cache, and checkpoints store our parameter tree, which `read_checkpoint` and `write_checkpoint`
exchange.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
import orbax.checkpoint as ocp
from etils import epath
from flax.linen.partitioning import AxisMetadata
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.interpreters import pxla

from jaxllm.errors import UserError
from jaxllm.models.batch import Batch
from jaxllm.models.config import ModelConfig
from jaxllm.models.decoder import Decoder, Params, abstract_params, init_params, logits
from jaxllm.models.generation import Cache, decode_step, init_cache, prefill
from jaxllm.models.scoring import score_tokens, token_loss
from jaxllm.sharding.rules import LOGICAL_AXIS_RULES, param_shardings
from jaxllm.training.config import OptimizerConfig

try:
    from t5x import checkpoints, decoding, losses, models, optimizers, partitioning
    from t5x.train_state import InferenceState
except ModuleNotFoundError as error:
    raise UserError(f"the t5x bridge cannot import {error.name}: docs/t5x.md says how") from error

_flat = partial(flatten_dict, sep="/")
_nested = partial(unflatten_dict, sep="/")
Features = Mapping[str, jax.Array]  # from seqio.DecoderFeatureConverter, [B, T] each

# t5x's mesh has two axes. Dimensions that our rules shard over others are replicated.
_MESH_AXES = {"data": "data", "fsdp": "data", "tensor": "model"}


class DecoderModel(models.DecoderOnlyModel):
    """A `t5x.models.DecoderOnlyModel` with our decoder as its module; its arguments are t5x's.

    Token 0 is padding in t5x. Attention over `inputs` is causal; there is no label smoothing.
    `optimizer_def` is None to evaluate or infer; `decode_fn` takes the arguments of
    `temperature_sample`; `z_loss` is the coefficient of log²(Z). UserError if the vocabulary is
    larger than the decoder's.
    """

    def __init__(
        self,
        config: ModelConfig,
        vocabulary: Any,
        optimizer_def: optimizers.OptimizerDefType | None,
        decode_fn: Callable[..., tuple[jax.Array, jax.Array]] = decoding.temperature_sample,
        feature_converter_cls: Callable[..., Any] | None = None,
        z_loss: float = 0.0,
        loss_normalizing_factor: float | str | None = "NUM_REAL_TARGET_TOKENS",
    ) -> None:
        if vocabulary.vocab_size > config.vocab_size:
            raise UserError(
                f"ModelConfig.vocab_size = {config.vocab_size}: the vocabulary has "
                f"{vocabulary.vocab_size} tokens"
            )
        # batch is the second axis of all arrays from `_packed`
        decode = lambda **given: decode_fn(**{**given, "cache_offset": 1})
        super().__init__(
            module=Decoder(config), vocabulary=vocabulary, optimizer_def=optimizer_def,
            decode_fn=decode, feature_converter_cls=feature_converter_cls, z_loss=z_loss,
            loss_normalizing_factor=loss_normalizing_factor,
        )  # fmt: skip
        self.config = config

    def get_initial_variables(
        self, rng: jax.Array, input_shapes: Any, input_types: Any = None
    ) -> flax.core.FrozenDict:
        """Initial parameters, and their logical axis names in t5x's format."""
        del input_shapes, input_types
        return _variables(init_params(self.config, rng))

    def loss_fn(
        self, params: Params, batch: Features, dropout_rng: jax.Array | None
    ) -> tuple[jax.Array, models.MetricsMap]:
        """`token_loss` divided by t5x's normalizing factor, and t5x's metrics."""
        del dropout_rng
        factor, weights = losses.get_loss_normalizing_factor_and_weights(
            self._loss_normalizing_factor, batch
        )
        factor = 1.0 if factor is None else factor
        sequences = _as_batch(batch, weights)
        with _activations_sharded():
            total, scores = token_loss(self.config, params, sequences, self._z_loss)
        z_loss = self._z_loss * jnp.sum(sequences.weights * jnp.square(scores.log_z))
        segments = {"decoder": batch.get("decoder_segment_ids", sequences.targets != 0)}
        # t5x's accuracy needs logits: with one class, target 0 is correct and target 1 wrong
        metrics = self._compute_metrics(
            logits=jnp.zeros((*sequences.targets.shape, 1)),
            targets=1 - scores.correct.astype(jnp.int32),
            mask=sequences.weights,
            loss=total / factor,
            z_loss=z_loss / factor,
            segment_ids=segments,
        )
        return total / factor, metrics

    def score_batch(
        self, params: Params, batch: Features, return_intermediates: bool = False
    ) -> jax.Array | tuple[jax.Array, Mapping[str, Any]]:
        """Summed log-likelihood of the weighted targets, float32 [B]."""
        sequences = _as_batch(batch, batch["decoder_loss_weights"])
        with _activations_sharded():
            scores = score_tokens(self.config, params, sequences).log_likelihood * sequences.weights
        if not return_intermediates:
            return jnp.sum(scores, axis=-1)
        tokens = {"target_tokens": (sequences.targets,), "loss_weights": (sequences.weights,)}
        return jnp.sum(scores, axis=-1), {"decoder": {**tokens, "token_scores": (scores,)}}

    def _compute_logits(
        self, params: Params, batch: Features, *unused: Any, **unused_too: Any
    ) -> jax.Array:
        with _activations_sharded():
            return logits(self.config, params, _as_batch(batch, batch.get("decoder_loss_weights")))

    def _compute_kv_cache(
        self, params: Params, inputs: jax.Array, causal_attention_mask: jax.Array
    ) -> tuple[dict[str, Any], jax.Array]:
        """Prefill all of each prompt except the last token, which starts t5x's decoding."""
        del causal_attention_mask
        batch, length = inputs.shape
        lengths = jnp.sum(inputs[:, 1:] != 0, axis=-1)
        cache = init_cache(self.config, batch, 2 * length)
        with _activations_sharded():
            cache, _ = prefill(self.config, params, cache, inputs, lengths)
        return _packed(cache), lengths

    def _compute_logits_from_slice(
        self, decoding_state: decoding.DecodingState, params: Params, max_decode_length: int
    ) -> tuple[jax.Array, dict[str, Any]]:
        del max_decode_length
        cache = _unpacked(decoding_state.cache)
        with _activations_sharded():
            cache, values = decode_step(self.config, params, cache, decoding_state.cur_token[:, 0])
        return values, _packed(cache)


def adamw(
    config: ModelConfig, optimizer: OptimizerConfig, schedule: optax.Schedule
) -> optimizers.OptimizerDef:
    """The optimizer of `jaxllm.train` in t5x's wrapper: clipping, AdamW, weight decay."""
    boxed = flax.core.freeze(abstract_params(config))
    return optimizers.OptaxWrapper(optimizer.build(schedule, boxed))


def logical_axis_rules(
    first: Sequence[tuple[str, str | None]] = (),
) -> list[tuple[str, str | None]]:
    """Our sharding rules for `t5x.partitioning.PjitPartitioner`, whose mesh is `data` x `model`.

    Sequences are sharded over data, and parameters over both: over data along `embed`, as in FSDP.
    t5x rejects a dimension that is not divisible by its mesh axis. The rules in `first` take
    precedence: ("vocab", None) replicates an odd vocabulary.
    """

    def axis(ours: str | tuple[str, ...] | None) -> str | None:
        names = (ours,) if isinstance(ours, str) else ours or ()
        return next((_MESH_AXES[name] for name in names if name in _MESH_AXES), None)

    return [*first, *((name, axis(ours)) for name, ours in LOGICAL_AXIS_RULES)]


def read_checkpoint(
    directory: epath.PathLike, step: int, config: ModelConfig, mesh: jax.sharding.Mesh
) -> Params:
    """Read the parameters of DIRECTORY/checkpoint_STEP onto our mesh, bitwise identical.

    Returns the tree of `init_params`, unboxed, in the checkpoint's dtypes. UserError if there is no
    such checkpoint, or a parameter is missing, unknown or misshapen.
    """
    path = epath.Path(directory).absolute() / f"checkpoint_{step}"
    boxed = abstract_params(config)
    expected, shardings = _flat(nn.unbox(boxed)), _flat(param_shardings(mesh, boxed))
    if not (path / "state").is_dir():
        raise UserError(f"{path}: no t5x checkpoint in Orbax's format")
    checkpointer = ocp.PyTreeCheckpointer()
    _check(path, _flat(checkpointer.metadata(path / "state").item_metadata.tree), expected)
    places = {name: ocp.ArrayRestoreArgs(sharding=shardings[name]) for name in expected}
    restore = ocp.args.PyTreeRestore(
        {"target": _nested(expected)}, {"target": _nested(places)}, partial_restore=True
    )
    return checkpointer.restore(path / "state", restore)["target"]


def write_checkpoint(
    directory: epath.PathLike, step: int, config: ModelConfig, params: Params
) -> None:
    """Write parameters, plain or boxed, to DIRECTORY/checkpoint_STEP, bitwise identical.

    t5x can evaluate and infer from it, or train on from it with a fresh optimizer (docs/t5x.md).
    """
    path = epath.Path(directory).absolute()
    path.mkdir(parents=True, exist_ok=True)
    axes = _variables(abstract_params(config))["params_axes"]
    state = InferenceState(
        step=jnp.asarray(step), params=flax.core.freeze(nn.unbox(params)), params_axes=axes
    )
    partitioner = partitioning.PjitPartitioner(
        num_partitions=1, logical_axis_rules=logical_axis_rules()
    )
    manager = checkpoints.OrbaxCheckpointManagerInterface(str(path), state, partitioner)
    manager.save(state)
    manager.wait_until_finished()
    manager.close()


def _as_batch(batch: Features, weights: jax.Array | None) -> Batch:
    """Convert t5x's features to our `Batch`; an unpacked sequence is one document."""
    tokens = batch["decoder_input_tokens"]
    positions = jnp.broadcast_to(jnp.arange(tokens.shape[1], dtype=jnp.int32), tokens.shape)
    return Batch(
        inputs=tokens,
        targets=batch["decoder_target_tokens"],
        weights=jnp.ones(tokens.shape) if weights is None else weights.astype(jnp.float32),
        positions=batch.get("decoder_positions", positions),
        segment_ids=batch.get("decoder_segment_ids", jnp.ones_like(tokens)),
        domains=jnp.zeros(tokens.shape[0], jnp.int32),
    )


def _variables(boxed: Params) -> flax.core.FrozenDict:
    """Split boxed parameters into t5x's collections `params` and `params_axes`."""
    axes = {
        (*path[:-1], f"{path[-1]}_axes"): AxisMetadata(names=tuple(box.names))
        for path, box in flatten_dict(boxed).items()
    }
    return flax.core.freeze({"params": nn.unbox(boxed), "params_axes": unflatten_dict(axes)})


def _packed(cache: Cache) -> dict[str, Any]:
    """The cache as a dictionary of arrays [?, B, ...], which t5x tiles for several decodes."""
    index = jnp.broadcast_to(cache.cache_index, cache.lengths.shape)
    return {
        "layers": cache.layers,
        "segment_ids": cache.segment_ids[None],
        "cache_index": index[None],
        "lengths": cache.lengths[None],
    }


def _unpacked(packed: Mapping[str, Any]) -> Cache:
    return Cache(
        packed["layers"],
        packed["segment_ids"][0],
        packed["cache_index"][0, 0],
        packed["lengths"][0],
    )


@contextlib.contextmanager
def _activations_sharded() -> Iterator[None]:
    """Make t5x's mesh, entered with the older `with mesh:`, apply to our sharding constraints."""
    legacy = getattr(pxla, "thread_resources", None)
    if legacy is None or legacy.env.physical_mesh.empty:
        yield
        return
    with jax.sharding.use_abstract_mesh(legacy.env.physical_mesh.abstract_mesh):
        yield


def _check(path: epath.Path, saved: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    stored = {n.removeprefix("target/"): x for n, x in saved.items() if n.startswith("target/")}
    for name in sorted(expected.keys() ^ stored.keys()):
        where = "missing in it" if name in expected else "unknown to the model"
        raise UserError(f"{path}: parameter {name} is {where}")
    for name, array in expected.items():
        there, here = list(stored[name].shape), list(array.shape)
        if there != here:
            raise UserError(f"{path}: {name} has shape {there} in it, and {here} in the model")
