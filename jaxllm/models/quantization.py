"""Matrix products in 8 bits, forward and backward, by qwix.

Each row of an operand is scaled by its largest magnitude along the summed axis, so that what a
token becomes depends on no other token of the batch. Scales and sums stay in higher precision, and
so do the parameters that the optimizer updates.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxllm.errors import UserError

# dtypes of activations and weights, and of the gradients that come back, which need more range
# (Micikevicius et al. 2022, arXiv 2209.05433, section 3)
_DTYPES = {"int8": ("int8", "int8"), "fp8": ("float8_e4m3fn", "float8_e5m2")}


def quantized_linear(kind: str, x: jax.Array, weights: jax.Array) -> jax.Array:
    """x [..., D] times weights [D, F] -> [..., F], all three products of it and its gradients.

    qwix' provider, which wraps a whole model, sees the forward products only: the backward ones of
    our own gradient (`layers.linear`) come when it has gone. Its product with a gradient of its own
    is therefore called here.

    Raises:
      UserError: qwix is not installed.
    """
    try:
        from qwix._src.core import dot_general_qt
    except ImportError as error:
        raise UserError(
            f"ModelConfig.quantization = {kind!r} needs qwix: pip install 'jaxllm[quantization]'"
        ) from error
    forward, backward = map(jnp.dtype, _DTYPES[kind])
    config = dot_general_qt.DotGeneralQtConfig(
        lhs_qtype=forward,
        rhs_qtype=forward,
        dlhs_grad_qtype=backward,
        drhs_grad_qtype=backward,
    )
    summed = (((x.ndim - 1,), (0,)), ((), ()))
    return dot_general_qt.dot_general_qt(x, weights, summed, config)
