"""Counts, FLOPs and refusals of ModelConfig, and the model files in gin/models."""

import dataclasses
from pathlib import Path

import gin
import jax
import pytest

from jaxllm.errors import UserError
from jaxllm.models.config import ModelConfig
from jaxllm.models.decoder import abstract_params
from tests.models.helpers import TINY

GIN_MODELS = Path(__file__).resolve().parents[2] / "gin" / "models"
PUBLISHED = {
    "openllama_3b": 3_426_473_600,
    "openllama_7b": 6_738_415_616,
    "openllama_13b": 13_015_864_320,
}


@pytest.mark.parametrize("name", [path.stem for path in sorted(GIN_MODELS.glob("*.gin"))])
def test_gin_models_count_their_parameters_exactly(name: str) -> None:
    gin.clear_config()
    gin.parse_config_file(str(GIN_MODELS / f"{name}.gin"))
    config = ModelConfig()
    gin.clear_config()
    counted = sum(leaf.size for leaf in jax.tree.leaves(abstract_params(config)))
    assert config.num_params == counted == PUBLISHED.get(name, counted)


def test_the_published_sizes_are_all_there() -> None:
    assert set(PUBLISHED) <= {path.stem for path in GIN_MODELS.glob("*.gin")}


@pytest.mark.parametrize("tied_head", [False, True])
@pytest.mark.parametrize("heads", [{}, {"num_kv_heads": 6}, {"head_dim": 14}])
def test_num_params_is_the_size_of_the_tree(tied_head: bool, heads: dict[str, int]) -> None:
    config = dataclasses.replace(TINY, tied_head=tied_head, **heads)
    counted = sum(leaf.size for leaf in jax.tree.leaves(abstract_params(config)))
    assert config.num_params == counted


def test_flops_of_the_7b_model() -> None:
    """6N + 12 L H K T by hand: N without the look-up table and the norms."""
    config = ModelConfig()
    matrices = 6_738_415_616 - 32_000 * 4096 - 65 * 4096
    assert config.flops_per_token(2048) == 6 * matrices + 12 * 32 * 4096 * 2048
    assert config.flops_per_token(2048, causal=True) == 6 * matrices + 12 * 32 * 4096 * 1024.5
    tied = dataclasses.replace(config, tied_head=True)
    assert tied.flops_per_token(2048) == config.flops_per_token(2048)


def test_flops_are_what_the_compiler_counts() -> None:
    """XLA's count of the unrolled program's products, attention uncut, is ours within 3 %."""
    from jaxllm.models.scoring import token_loss
    from tests.models.helpers import random_batch

    config = dataclasses.replace(
        TINY, vocab_size=1024, embed_dim=192, mlp_dim=512, scan_layers=False,
        attention_block=128, loss_chunk_tokens=10_000,
    )  # fmt: skip
    batch = random_batch(config, rows=2, length=128)
    gradient = jax.jit(jax.grad(lambda p: token_loss(config, p, batch)[0]))
    cost = gradient.lower(abstract_params(config)).compile().cost_analysis()
    assert cost["flops"] == pytest.approx(2 * 128 * config.flops_per_token(128), rel=0.05)


@pytest.mark.parametrize(
    ("field", "value", "culprit"),
    [
        ("num_kv_heads", 4, "num_kv_heads"),
        ("head_dim", 7, "head_dim"),
        ("vocab_size", 0, "vocab_size"),
        ("num_layers", -1, "num_layers"),
        ("dtype", "float16", "float32, bfloat16"),
        ("remat", "some", "minimal"),
    ],
)
def test_impossible_shapes_are_refused(field: str, value: object, culprit: str) -> None:
    with pytest.raises(UserError, match=culprit):
        dataclasses.replace(TINY, **{field: value})
