"""Products in 8 bits: against the same rounding in NumPy, and in a model that learns with them."""

import builtins
import dataclasses
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from jaxllm.errors import UserError
from jaxllm.models.config import ModelConfig
from jaxllm.models.decoder import Decoder, abstract_params
from jaxllm.models.quantization import quantized_linear
from jaxllm.run.run import Run
from jaxllm.training.loop import train
from tests.training.helpers import MODEL, experiment, mesh, stages

pytest.importorskip("qwix")


def rounded(values: np.ndarray, kind: str, axis: int) -> np.ndarray:
    """`values` in the 8-bit type that reaches just to the largest of them along `axis`."""
    highest = np.abs(values).max(axis=axis, keepdims=True)
    if kind == "int8":
        scale = highest / 127.5
        return np.clip(np.rint(values / scale), -128, 127) * scale
    scale = highest / {"e4m3": 448.0, "e5m2": 57344.0}[kind]
    dtype = {"e4m3": ml_dtypes.float8_e4m3fn, "e5m2": ml_dtypes.float8_e5m2}[kind]
    return (values / scale).astype(np.float32).astype(dtype).astype(np.float64) * scale


def operands() -> tuple[np.ndarray, np.ndarray]:
    """The largest of every sum is positive: -127.5 would be as near to -127 as to -128."""
    random = np.random.Generator(np.random.PCG64(0))
    x, weights = random.normal(size=(3, 5, 64)), random.normal(size=(64, 96)) / 8
    x *= np.where(x.max(-1) < -x.min(-1), -1, 1)[..., None]
    weights *= np.where(weights.max(0) < -weights.min(0), -1, 1)
    return x, weights


@pytest.mark.parametrize(("kind", "dtype"), [("int8", "int8"), ("fp8", "e4m3")])
def test_forward_is_the_product_of_rounded_operands(kind: str, dtype: str) -> None:
    x, weights = operands()
    expected = rounded(x, dtype, -1) @ rounded(weights, dtype, 0)
    found = quantized_linear(kind, jnp.float32(x), jnp.float32(weights))
    np.testing.assert_allclose(found, expected, atol=1e-4)
    assert np.abs(found - x @ weights).max() > 1e-3, "it is not the exact one"


@pytest.mark.parametrize(("kind", "bound"), [("int8", 0.02), ("fp8", 0.1)])
def test_gradients_are_near_the_exact_ones(kind: str, bound: float) -> None:
    x, weights = map(jnp.float32, operands())
    loss = lambda product: lambda x, w: jnp.sum(jnp.sin(product(x, w)))
    found = jax.grad(loss(lambda x, w: quantized_linear(kind, x, w)), (0, 1))(x, weights)
    exact = jax.grad(loss(jnp.matmul), (0, 1))(x, weights)
    for ours, theirs in zip(found, exact, strict=True):
        error = jnp.linalg.norm(ours - theirs) / jnp.linalg.norm(theirs)
        assert 1e-4 < error < bound


@pytest.mark.parametrize(("kind", "types"), [("int8", ["xi8>"]), ("fp8", ["xf8E4M3FN", "xf8E5M2"])])
def test_blocks_multiply_in_8_bits_forward_and_backward(kind: str, types: list[str]) -> None:
    """Seven matrices, three products each; attention's and nothing else stay as they are."""
    config = dataclasses.replace(MODEL, quantization=kind, mlp_dim=48)
    params = nn.unbox(abstract_params(config))
    tokens = jnp.zeros((2, 8), jnp.int32)

    def total(params: Any) -> jax.Array:
        return jnp.sum(Decoder(config).apply({"params": params}, tokens, tokens, tokens + 1)[0])

    text = jax.jit(jax.grad(total)).lower(params).as_text()
    products = [line for line in text.splitlines() if "stablehlo.dot_general" in line]
    in_8_bits = [line for line in products if any(name in line for name in types)]
    assert len(in_8_bits) == 7 * 3
    assert len(products) == 7 * 3 + 2 * 3


def test_a_token_does_not_feel_the_others() -> None:
    x, weights = map(jnp.float32, operands())
    other = x.at[1:].multiply(100.0)  # x[0] is one document, the rest are others
    found = [quantized_linear("int8", rows, weights)[0] for rows in (x, other)]
    np.testing.assert_array_equal(*found)


def losses(model_dir: Path, quantization: str, **axes: int) -> list[float]:
    model = dataclasses.replace(MODEL, quantization=quantization)
    e = experiment(model_dir, steps=60, log_every=20, model=model)
    train(e, mesh(int(np.prod(list(axes.values()) or [1])), **axes), stages(e))
    return [row["loss"] for row in Run(model_dir).metrics_lines.read()[0]]


@pytest.fixture(scope="module")
def exact(tmp_path_factory: pytest.TempPathFactory) -> list[float]:
    return losses(tmp_path_factory.mktemp("exact"), "none")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["int8", "fp8"])
def test_a_model_learns_alike_on_one_device_and_on_a_mesh(
    exact: list[float], tmp_path: Path, kind: str
) -> None:
    coarse = losses(tmp_path / "coarse", kind)
    np.testing.assert_allclose(coarse, exact, rtol=0.02)
    assert coarse != exact
    on_a_mesh = losses(tmp_path / "mesh", kind, fsdp=2, tensor=2)
    np.testing.assert_allclose(on_a_mesh, coarse, rtol=5e-3)


def test_qwix_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without_qwix(name: str, *args: Any, **options: Any) -> Any:
        if name.startswith("qwix"):
            raise ImportError(name)
        return real(name, *args, **options)

    monkeypatch.setattr(builtins, "__import__", without_qwix)
    with pytest.raises(UserError, match=r"needs qwix: pip install 'jaxllm\[quantization\]'"):
        quantized_linear("fp8", jnp.ones((1, 2)), jnp.ones((2, 3)))


def test_an_unknown_quantization_is_refused() -> None:
    with pytest.raises(UserError, match="int4"):
        ModelConfig(quantization="int4")
