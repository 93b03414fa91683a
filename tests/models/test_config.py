"""Counts, FLOPs and refusals of ModelConfig."""

import dataclasses

import jax
import pytest

from jaxllm.errors import UserError
from jaxllm.models import attention
from jaxllm.models.config import BIASES, ModelConfig, Quirks
from jaxllm.models.decoder import abstract_params
from tests.models.helpers import TINY


@pytest.mark.parametrize("tie_embeddings", [False, True])
@pytest.mark.parametrize("heads", [{}, {"num_kv_heads": 6}, {"head_dim": 14}])
def test_num_params_is_the_size_of_the_tree(tie_embeddings: bool, heads: dict[str, int]) -> None:
    config = dataclasses.replace(TINY, tie_embeddings=tie_embeddings, **heads)
    counted = sum(leaf.size for leaf in jax.tree.leaves(abstract_params(config)))
    assert config.num_params == counted


def test_flops_of_the_7b_model() -> None:
    """6N + 12 L H K T by hand: N without the look-up table and the norms."""
    config = ModelConfig()
    matrices = 6_738_415_616 - 32_000 * 4096 - 65 * 4096
    assert config.flops_per_token(2048) == 6 * matrices + 12 * 32 * 4096 * 2048
    assert config.flops_per_token(2048, causal=True) == 6 * matrices + 12 * 32 * 4096 * 1024.5
    tied = dataclasses.replace(config, tie_embeddings=True)
    assert tied.flops_per_token(2048) == config.flops_per_token(2048)


def test_flops_of_opt_350m() -> None:
    """By hand: plain MLP, 512-wide tied head, two projections; no table, norm or bias."""
    options = {
        "vocab_size": 50_272, "num_layers": 24, "embed_dim": 1024, "mlp_dim": 4096,
        "num_heads": 16, "position_embedding": "learned", "norm": "layer", "mlp_type": "plain",
        "use_bias": BIASES, "tie_embeddings": True,
        "quirks": Quirks(position_offset=2, embedding_dim=512),
    }  # fmt: skip
    blocks = 24 * (4 * 1024**2 + 2 * 1024 * 4096)
    matrices = blocks + 50_272 * 512 + 2 * 1024 * 512
    assert ModelConfig(**options).flops_per_token(2048) == 6 * matrices + 12 * 24 * 1024 * 2048


def test_flops_are_what_the_compiler_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """XLA's count of the unrolled program's products, attention uncut, is ours within 3 %."""
    from jaxllm.models.scoring import token_loss
    from tests.models.helpers import random_batch

    monkeypatch.setattr(attention, "BLOCK_SIZE", 128)
    config = dataclasses.replace(
        TINY, vocab_size=1024, embed_dim=192, mlp_dim=512, scan_layers=False
    )
    batch = random_batch(config, rows=2, length=128)
    gradient = jax.jit(jax.grad(lambda p: token_loss(config, p, batch, chunk_tokens=10_000)[0]))
    cost = gradient.lower(abstract_params(config)).compile().cost_analysis()
    assert cost["flops"] == pytest.approx(2 * 128 * config.flops_per_token(128), rel=0.05)


@pytest.mark.parametrize(
    ("field", "value", "culprit"),
    [
        ("num_kv_heads", 4, "num_kv_heads"),
        ("head_dim", 7, "head_dim"),
        ("vocab_size", 0, "vocab_size"),
        ("num_layers", -1, "num_layers"),
        ("dtype", "float16", "'float32' or 'bfloat16'"),
        ("remat", "some", "minimal"),
    ],
)
def test_impossible_shapes_are_refused(field: str, value: object, culprit: str) -> None:
    with pytest.raises(UserError, match=culprit):
        dataclasses.replace(TINY, **{field: value})
