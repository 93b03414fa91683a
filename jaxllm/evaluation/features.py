"""Hidden states of a model: at the last token of texts, for MAUVE, and of all layers at tokens."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from jaxllm.evaluation.inference import shard_batch
from jaxllm.evaluation.scoring import Scorer
from jaxllm.evaluation.spans import Tokenizer, start_token
from jaxllm.models.config import ModelConfig
from jaxllm.models.decoder import Decoder, Params, layer_states
from jaxllm.run.token_losses import TokenSet
from jaxllm.sharding.rules import partitioning, replicated

MAX_TOKENS = 1024  # of a text, as in the package
TOKENS_PER_BATCH = 16_384


def last_states(
    model: ModelConfig, params: Params, vocabulary: Tokenizer, mesh: Mesh, texts: Sequence[str]
) -> np.ndarray:
    """The inputs of the output head after the first tokens of each text, float32 [n, E]."""
    start, room = start_token(vocabulary), min(MAX_TOKENS, model.max_length - 1)
    tokens = [[start, *vocabulary.encode(text)[:room]] for text in texts]

    def states(params: Params, prompts: jax.Array, lengths: jax.Array) -> jax.Array:
        with partitioning(mesh):
            places = jnp.broadcast_to(jnp.arange(prompts.shape[1]), prompts.shape)
            valid = (places < lengths[:, None]).astype(jnp.int32)
            hidden, _ = Decoder(model).apply({"params": params}, prompts, places, valid)
        return hidden[jnp.arange(len(prompts)), lengths - 1].astype(jnp.float32)

    program = jax.jit(states, out_shardings=replicated(mesh))
    features = np.zeros((len(texts), model.embedding_dim), np.float32)
    for batch in Scorer(model, mesh, vocabulary, TOKENS_PER_BATCH).prompt_batches(tokens):
        arrays = (shard_batch(mesh, array) for array in (batch.prompts, batch.lengths))
        features[list(batch.numbers)] = np.asarray(program(params, *arrays))[: len(batch.numbers)]
    return features


def states_at(
    model: ModelConfig, params: Params, mesh: Mesh, text: TokenSet, chosen: np.ndarray
) -> np.ndarray:
    """Hidden states after each layer at `chosen` tokens of a set, int [n]: [L, n, D].

    They are in the model's dtype. A device holds those of one document at a time.
    """
    rows, places = mesh.shape["data"] * mesh.shape["fsdp"], text.positions[chosen]
    width, documents = int(places.max()) + 1, text.documents[chosen]
    own, row = np.unique(documents, return_inverse=True)
    tokens = np.full((-(-len(own) // rows), rows, width), -1, np.int32)
    read = np.flatnonzero(np.isin(text.documents, own) & (text.positions < width))
    of = np.searchsorted(own, text.documents[read])
    tokens[of // rows, of % rows, text.positions[read]] = text.tokens[read]

    def states(params: Params, tokens: jax.Array, at: jax.Array) -> jax.Array:
        with partitioning(mesh):
            every = layer_states(model, params, tokens)
        return every.reshape(len(every), -1, every.shape[-1])[:, at]

    program = jax.jit(states, out_shardings=replicated(mesh))
    most = np.bincount(row // rows).max()  # of a batch, so that one shape is compiled
    found = np.empty((model.num_layers, len(chosen), model.embed_dim), jnp.dtype(model.dtype))
    for number, batch in enumerate(tokens):
        (inside,) = np.nonzero(row // rows == number)
        at = np.resize((row % rows * width + places)[inside], most)
        found[:, inside] = program(params, shard_batch(mesh, batch), at)[:, : len(inside)]
    return found
