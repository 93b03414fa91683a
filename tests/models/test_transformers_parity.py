"""Logits, loss, gradients and greedy text are those of Transformers' LLaMA at the same weights."""

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxllm.models.config import ModelConfig
from jaxllm.models.decoder import logits
from jaxllm.models.generation import generate
from jaxllm.models.scoring import score_tokens, token_loss
from tests.models.helpers import TINY, random_batch, random_params

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

CONFIGS = {
    "grouped": TINY,
    "multi_head_tied": dataclasses.replace(TINY, num_kv_heads=6, tied_head=True),
    "wide_heads_rope": dataclasses.replace(TINY, head_dim=10, rope_theta=500.0, norm_eps=1e-5),
}


def to_transformers(config: ModelConfig, tree: Any) -> dict[str, "torch.Tensor"]:
    """Our tree of parameters (or gradients) under Transformers' names and in its layout."""
    tree = jax.tree.map(np.asarray, tree)
    names = {"model.embed_tokens.weight": tree["embedding"]}
    names["model.norm.weight"] = tree["final_norm"]["scale"]
    names["lm_head.weight"] = tree["embedding"] if config.tied_head else tree["head"].T
    layers, embed = tree["layers"], config.embed_dim
    for i in range(config.num_layers):
        prefix = f"model.layers.{i}."
        attention, mlp = layers["attention"], layers["mlp"]
        for ours, theirs in (("query", "q"), ("key", "k"), ("value", "v")):
            matrix = attention[ours][i].reshape(embed, -1)
            names[f"{prefix}self_attn.{theirs}_proj.weight"] = matrix.T
        names[f"{prefix}self_attn.o_proj.weight"] = attention["output"][i].reshape(-1, embed).T
        for part in ("gate", "up", "down"):
            names[f"{prefix}mlp.{part}_proj.weight"] = mlp[part][i].T
        names[f"{prefix}input_layernorm.weight"] = layers["attention_norm"]["scale"][i]
        names[f"{prefix}post_attention_layernorm.weight"] = layers["mlp_norm"]["scale"][i]
    return {name: torch.tensor(np.ascontiguousarray(value)) for name, value in names.items()}


def reference(config: ModelConfig, params: Any) -> "transformers.LlamaForCausalLM":
    model = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=config.vocab_size,
            hidden_size=config.embed_dim,
            intermediate_size=config.mlp_dim,
            num_hidden_layers=config.num_layers,
            num_attention_heads=config.num_heads,
            num_key_value_heads=config.kv_heads,
            head_dim=config.head_width,
            rms_norm_eps=config.norm_eps,
            rope_parameters={"rope_type": "default", "rope_theta": config.rope_theta},
            tie_word_embeddings=config.tied_head,
            attn_implementation="eager",
            bos_token_id=None,
            eos_token_id=None,
        )
    )
    model.load_state_dict(to_transformers(config, params), strict=True)
    return model.float()


@pytest.mark.parametrize("name", CONFIGS)
def test_logits_loss_and_gradients(name: str) -> None:
    config = CONFIGS[name]
    params = random_params(config)
    batch = random_batch(config, rows=3, length=29)
    model = reference(config, params)

    theirs = model(torch.tensor(np.asarray(batch.inputs), dtype=torch.long)).logits
    targets = torch.tensor(np.asarray(batch.targets), dtype=torch.long)
    their_loss = torch.nn.functional.cross_entropy(theirs.flatten(0, 1), targets.flatten())
    their_loss.backward()

    ours = jax.jit(lambda p: logits(config, p, batch))(params)
    np.testing.assert_allclose(ours, theirs.detach().numpy(), atol=1e-4, rtol=1e-4)

    def mean_loss(params: Any) -> jax.Array:
        return token_loss(config, params, batch)[0] / jnp.sum(batch.weights)

    def scored_loss(params: Any) -> jax.Array:
        return -jnp.mean(score_tokens(config, params, batch).log_likelihood)

    for loss in (mean_loss, scored_loss):
        value, gradients = jax.jit(jax.value_and_grad(loss))(params)
        np.testing.assert_allclose(value, their_loss.item(), rtol=1e-5)
        mapped = to_transformers(config, gradients)
        for parameter, weight in model.named_parameters():
            np.testing.assert_allclose(
                mapped[parameter].numpy(), weight.grad.numpy(), atol=1e-4, err_msg=parameter
            )
            assert weight.grad.abs().max() > 1e-4, f"{parameter} has no gradient to compare"


def test_greedy_text() -> None:
    params = random_params(TINY)
    model = reference(TINY, params)
    prompts = np.random.default_rng(1).integers(1, TINY.vocab_size, (4, 9)).astype(np.int32)
    lengths = np.array([9, 9, 4, 1], np.int32)
    greedy = jax.jit(partial(generate, TINY, max_new_tokens=12))
    ours = np.asarray(greedy(params, jnp.asarray(prompts), jnp.asarray(lengths)))
    for row, length in enumerate(lengths):
        prompt = torch.tensor(prompts[row : row + 1, :length], dtype=torch.long)
        theirs = model.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            max_new_tokens=12,
            do_sample=False,
            pad_token_id=0,
        )
        np.testing.assert_array_equal(ours[row], theirs[0, length:].numpy())
