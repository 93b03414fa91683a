"""Features of texts: a model's hidden state at the last token, as MAUVE takes them."""

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
from jaxllm.models.decoder import Decoder, Params
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
