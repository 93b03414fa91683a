"""8-bit matmuls, forward and backward, by qwix.

Operands are scaled by their largest magnitude along the contracted axis: a token's result depends
on no other token. Scales, sums and the parameters themselves stay in higher precision.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxllm.errors import UserError

# dtypes of activations and weights, and of gradients, which need more range
# (Micikevicius et al. 2022, arXiv 2209.05433, section 3)
_DTYPES = {"int8": ("int8", "int8"), "fp8": ("float8_e4m3fn", "float8_e5m2")}


def quantized_linear(kind: str, x: jax.Array, weights: jax.Array) -> jax.Array:
    """Matmul x [..., D] @ weights [D, F] -> [..., F], quantized, as are its gradient matmuls.

    qwix' provider, which wraps a whole model, quantizes forward matmuls only: it is inactive when
    the custom gradient of `layers.linear` is traced. So qwix' differentiable matmul is called here.
    """
    try:
        from qwix._src.core import dot_general_qt
    except ImportError as error:
        raise UserError(
            f"ModelConfig.quantization = {kind!r} needs qwix: pip install 'jaxllm[quantization]'"
        ) from error
    forward, backward = map(jnp.dtype, _DTYPES[kind])
    config = dot_general_qt.DotGeneralQtConfig(
        lhs_qtype=forward, rhs_qtype=forward, dlhs_grad_qtype=backward, drhs_grad_qtype=backward
    )
    summed = (((x.ndim - 1,), (0,)), ((), ()))
    return dot_general_qt.dot_general_qt(x, weights, summed, config)
