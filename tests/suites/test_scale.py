"""The dial: sizes as asked, budgets by their definition, laws as published."""

import itertools
import math

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from jaxllm.errors import UserError
from jaxllm.models.config import ModelConfig
from jaxllm.suites import scale
from jaxllm.training.rules import RULES, without_embeddings


@example(10.859375)
@given(st.floats(math.log(scale.SMALLEST), math.log(1e11)))
def test_a_model_has_the_parameters_asked_for_within_2_percent(log_params: float) -> None:
    params = math.exp(log_params)
    sizes = scale.shape(params)
    model = ModelConfig(vocab_size=64, **sizes._asdict())
    assert without_embeddings(model) == pytest.approx(params, rel=0.02)
    assert 1 <= sizes.mlp_dim / sizes.embed_dim <= 6
    assert model.head_size % 2 == 0 and 16 <= model.head_size <= 256


def test_larger_models_are_deeper_and_wider() -> None:
    shapes = [scale.shape(1e5 * 4**k) for k in range(10)]
    for smaller, larger in itertools.pairwise(shapes):
        assert larger.num_layers >= smaller.num_layers
        assert larger.embed_dim > smaller.embed_dim
    seven = scale.shape(6.5e9)  # LLaMA 7B has 32 layers of 4096
    assert 28 <= seven.num_layers <= 60 and 2560 <= seven.embed_dim <= 4608


@pytest.mark.parametrize(
    ("dial", "expected"),
    [
        ({"params": 1e9}, (1e9, 2e10)),
        ({"params": 1e9, "tokens": 3e9}, (1e9, 3e9)),
        ({"params": 1e9, "tokens_per_param": 5}, (1e9, 5e9)),
        ({"flops": 1.2e20, "params": 1e9}, (1e9, 2e10)),
        ({"flops": 1.2e20, "tokens_per_param": 20}, (1e9, 2e10)),
        ({"flops": 1.2e20, "tokens": 2e10}, (1e9, 2e10)),
    ],
)
def test_two_of_the_dial_give_the_others(dial: dict[str, float], expected: tuple) -> None:
    assert scale.budget(dial) == pytest.approx(expected)


@pytest.mark.parametrize("dial", [{"tokens": 1e9}, {"params": 1e9, "tokens": 1e9, "flops": 1e9}])
def test_too_little_or_too_much_is_refused(dial: dict[str, float]) -> None:
    with pytest.raises(UserError, match="give two of params, tokens_per_param, tokens and flops"):
        scale.budget(dial)


def test_laws_say_what_their_papers_say() -> None:
    """DeepSeek LLM 7B's own batch and rate (table 2: 2304 x 4096 tokens and 4.2e-4, near theirs);

    Step Law's 1.07B on 28.4B tokens lies near its optimum 1.2e-3 and 0.5M tokens.
    """
    deepseek, step_law = RULES["deepseek"], RULES["step_law"]
    assert deepseek.learning_rate(6.5e9, 2e12) == pytest.approx(4.2e-4, rel=0.25)
    assert deepseek.batch_tokens(6.5e9, 2e12) == pytest.approx(2304 * 4096, rel=0.6)
    assert step_law.learning_rate(1.07e9, 28.4e9) == pytest.approx(1.0e-3, rel=0.3)
    assert "beyond" in step_law.advice(1e5, 2e6) and "beyond" not in step_law.advice(5e8, 1e10)


def test_a_run_trains_on_its_tokens() -> None:
    bindings = scale.settings(1e5, 2e6, 128, RULES["deepseek"], 12)
    tokens = bindings["BATCH_SIZE"] * 128 * bindings["TRAIN_STEPS"]
    assert tokens == pytest.approx(2e6, rel=0.01)
    assert math.log2(bindings["BATCH_SIZE"]).is_integer()
    assert bindings["TRAIN_STEPS"] // bindings["CheckpointConfig.every_steps"] == 12
