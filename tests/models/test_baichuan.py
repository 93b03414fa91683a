"""Baichuan and Skywork, which Transformers has no class for, against their block in PyTorch.

Stated after what the releases say of themselves: one matrix makes queries, keys and values
(`W_pack`); the 7B models have LLaMA's rotary positions, the 13B models ALiBi; Baichuan 2 scales
the head's rows to length 1 (`NormHead`); Skywork's block is LLaMA's.
"""

import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxllm.models.config import ModelConfig
from jaxllm.models.positions import alibi_slopes
from tests.models.families import BAICHUAN
from tests.models.helpers import compared_with_torch, generate, random_batch, random_params

torch = pytest.importorskip("torch")
Tensors = dict[str, Any]


def published_slopes(heads: int) -> list[float]:
    """The recursion of the ALiBi paper's code: a power of two, or the one below and a rest."""
    if math.log2(heads).is_integer():
        start = 2 ** (-(2 ** -(math.log2(heads) - 3)))
        return [start**i for i in range(1, heads + 1)]
    below = 2 ** math.floor(math.log2(heads))
    return published_slopes(below) + published_slopes(2 * below)[0::2][: heads - below]


def published_logits(config: ModelConfig, weights: Tensors, tokens: Any) -> Any:
    """tokens int64 [T] -> logits [T, V]."""
    heads, length = config.num_heads, len(tokens)

    def norm(x: Any, scale: Any) -> Any:
        return scale * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + config.norm_eps))

    def rotary(x: Any) -> Any:  # [H, T, K]
        width = x.shape[-1]
        inverse = 1.0 / config.rope_theta ** (torch.arange(0, width, 2).float() / width)
        angles = torch.outer(torch.arange(length).float(), inverse).repeat(1, 2)
        turned = torch.cat([-x[..., width // 2 :], x[..., : width // 2]], dim=-1)
        return x * angles.cos() + turned * angles.sin()

    mask = torch.full((length, length), -torch.inf).triu(1).expand(heads, -1, -1)
    if config.position_embedding == "alibi":
        slopes = torch.tensor(published_slopes(heads))
        mask = mask + slopes[:, None, None] * torch.arange(length)[None, None, :]

    x = weights["embed_tokens"][tokens]
    for i in range(config.num_layers):
        w = {name.removeprefix(f"{i}."): value for name, value in weights.items()}
        packed = norm(x, w["input_layernorm"]) @ w["W_pack"].T
        query, key, value = (
            part.view(length, heads, -1).transpose(0, 1) for part in packed.chunk(3, dim=-1)
        )
        if config.position_embedding == "rotary":
            query, key = rotary(query), rotary(key)
        scores = query @ key.transpose(1, 2) / math.sqrt(query.shape[-1]) + mask
        mixed = (scores.softmax(-1) @ value).transpose(0, 1).reshape(length, -1)
        x = x + mixed @ w["o_proj"].T
        inner = norm(x, w["post_attention_layernorm"])
        gate = torch.nn.functional.silu(inner @ w["gate_proj"].T)
        x = x + (gate * (inner @ w["up_proj"].T)) @ w["down_proj"].T
    head = weights["lm_head"]
    if config.quirks.normalize_lm_head:
        head = torch.nn.functional.normalize(head)
    return norm(x, weights["norm"]) @ head.T


def to_published(config: ModelConfig, tree: Any) -> Tensors:
    """Our parameters (or gradients) under the releases' names and in their layout."""
    tree = jax.tree.map(np.asarray, tree)
    names = {
        "embed_tokens": tree["embedding"], "norm": tree["final_norm"]["scale"],
        "lm_head": tree["head"].T,
    }  # fmt: skip
    layers, embed = tree["layers"], config.embed_dim
    for i in range(config.num_layers):
        attention, mlp = layers["attention"], layers["mlp"]
        parts = [attention[part][i].reshape(embed, -1).T for part in ("query", "key", "value")]
        names[f"{i}.W_pack"] = np.concatenate(parts)
        names[f"{i}.o_proj"] = attention["output"][i].reshape(-1, embed).T
        for part in ("gate", "up", "down"):
            names[f"{i}.{part}_proj"] = mlp[part][i].T
        names[f"{i}.input_layernorm"] = layers["attention_norm"]["scale"][i]
        names[f"{i}.post_attention_layernorm"] = layers["mlp_norm"]["scale"][i]
    return {name: torch.tensor(np.ascontiguousarray(value)) for name, value in names.items()}


@pytest.mark.parametrize("name", BAICHUAN)
def test_logits_loss_gradients_and_greedy_text(name: str) -> None:
    config = BAICHUAN[name]
    params = random_params(config)
    weights = {name: value.requires_grad_() for name, value in to_published(config, params).items()}
    batch = random_batch(config, rows=2, length=29)
    theirs = torch.stack(
        [
            published_logits(config, weights, torch.tensor(np.asarray(row), dtype=torch.long))
            for row in batch.inputs
        ]
    )
    gradients = compared_with_torch(config, params, batch, theirs)
    for name, value in to_published(config, gradients).items():
        np.testing.assert_allclose(value.numpy(), weights[name].grad.numpy(), atol=1e-4)
        assert weights[name].grad.abs().max() > 1e-4, f"{name} has no gradient to compare"

    prompts = np.asarray(batch.inputs[:, :9])
    lengths = np.array([9, 4])
    greedy = jax.jit(partial(generate, config, max_new_tokens=10))
    texts = np.asarray(greedy(params, jnp.asarray(prompts), jnp.asarray(lengths)))
    for prompt, length, text in zip(prompts, lengths, texts, strict=True):
        read = [*prompt[:length]]
        for token in text:
            with torch.no_grad():
                best = published_logits(config, weights, torch.tensor(read))[-1].argmax()
            assert token == best
            read.append(token)


@pytest.mark.parametrize("heads", [1, 2, 5, 8, 12, 32, 40])
def test_slopes_are_the_papers(heads: int) -> None:
    np.testing.assert_allclose(alibi_slopes(heads), published_slopes(heads), rtol=1e-6)
