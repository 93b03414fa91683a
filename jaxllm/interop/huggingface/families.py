"""Tensor names and layouts of our parameters in each Hugging Face architecture.

Families with the same block share a table. `{}` in a name is the layer index. Entries for absent
parameters (a bias, a tied head) are ignored.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping

import numpy as np


@dataclasses.dataclass(frozen=True)
class Layout:
    """The layout of one parameter (of one layer) in a checkpoint tensor.

    Attributes:
      inputs: number of leading axes that the matmul contracts; the others are outputs. A vector
        has none.
      transposed: whether the tensor is [outputs, inputs], as in torch.nn.Linear, instead of
        [inputs, outputs], as in GPT-2's Conv1D.
      part: index of the parameter among the `parts` fused along the outputs.
      parts: number of fused parameters.
      by_head: whether they are interleaved by head, [head, part, head_dim], instead of
        concatenated.
    """

    inputs: int = 1
    transposed: bool = False
    part: int = 0
    parts: int = 1
    by_head: bool = False

    def shape(self, param: tuple[int, ...]) -> tuple[int, ...]:
        """The tensor shape for a parameter of shape `param`."""
        inputs = math.prod(param[: self.inputs])
        outputs = math.prod(param[self.inputs :]) * self.parts
        if not self.inputs:
            return (outputs,)
        return (outputs, inputs) if self.transposed else (inputs, outputs)

    def view(self, tensor: np.ndarray, param: tuple[int, ...]) -> np.ndarray:
        """A writable view, of shape `param`, of the parameter in a contiguous tensor."""
        if self.transposed and self.inputs:
            tensor = tensor.T
        inputs, outputs = param[: self.inputs], param[self.inputs :]
        if self.by_head:
            heads, head_dim = outputs
            view = tensor.reshape(*inputs, heads, self.parts, head_dim)[..., self.part, :]
        else:
            view = tensor.reshape(*inputs, self.parts, *outputs)[
                (slice(None),) * len(inputs) + (self.part,)
            ]
        assert np.shares_memory(view, tensor)
        return view


TABLE = Layout(inputs=1)
VECTOR = Layout(inputs=0)
LINEAR = Layout(inputs=1, transposed=True)
LINEAR_OF_HEADS = Layout(inputs=2, transposed=True)
CONV = Layout(inputs=1)
CONV_OF_HEADS = Layout(inputs=2)

Names = Mapping[str, tuple[str, Layout]]


@dataclasses.dataclass(frozen=True)
class Tensors:
    """The tensors of one architecture.

    Attributes:
      names: parameter -> tensor name and layout.
      head: tensor of the LM head, which a tied model may store as well.
      base: name prefix that is absent from checkpoints of the headless model.
    """

    names: Names
    head: str = "lm_head.weight"
    base: str = "model."


def _linear(param: str, hf: str, layout: Layout) -> dict[str, tuple[str, Layout]]:
    """A linear layer: kernel and bias."""
    bias = dataclasses.replace(layout, inputs=0)
    return {param: (f"{hf}.weight", layout), f"{param}_bias": (f"{hf}.bias", bias)}


def _norm(param: str, hf: str) -> dict[str, tuple[str, Layout]]:
    return {f"{param}/scale": (f"{hf}.weight", VECTOR), f"{param}/bias": (f"{hf}.bias", VECTOR)}


def _fused(hf: str, layout: Layout) -> dict[str, tuple[str, Layout]]:
    """Query, key and value fused in one tensor."""
    names: dict[str, tuple[str, Layout]] = {}
    for part, param in enumerate(("query", "key", "value")):
        place = dataclasses.replace(layout, part=part, parts=3)
        names |= _linear(f"layers/attention/{param}", hf, place)
    return names


def _separate(hf: str) -> dict[str, tuple[str, Layout]]:
    """Query, key and value in separate tensors."""
    names: dict[str, tuple[str, Layout]] = {}
    for param in ("query", "key", "value"):
        names |= _linear(f"layers/attention/{param}", hf.format(param[0]), LINEAR)
    return names


_LLAMA_PREFIX = "model.layers.{}."
_LLAMA = {
    "embedding": ("model.embed_tokens.weight", TABLE),
    "head": ("lm_head.weight", LINEAR),
    **_norm("final_norm", "model.norm"),
    **_norm("layers/attention_norm", _LLAMA_PREFIX + "input_layernorm"),
    **_norm("layers/mlp_norm", _LLAMA_PREFIX + "post_attention_layernorm"),
    **_separate("model.layers.{{}}.self_attn.{}_proj"),
    **_linear("layers/attention/output", _LLAMA_PREFIX + "self_attn.o_proj", LINEAR_OF_HEADS),
    **_linear("layers/mlp/gate", _LLAMA_PREFIX + "mlp.gate_proj", LINEAR),
    **_linear("layers/mlp/up", _LLAMA_PREFIX + "mlp.up_proj", LINEAR),
    **_linear("layers/mlp/down", _LLAMA_PREFIX + "mlp.down_proj", LINEAR),
}
LLAMA = Tensors(_LLAMA)
BAICHUAN = Tensors({**_LLAMA, **_fused(_LLAMA_PREFIX + "self_attn.W_pack", LINEAR)})
_QK_NORMS = {
    **_norm("layers/attention/query_norm", _LLAMA_PREFIX + "self_attn.q_norm"),
    **_norm("layers/attention/key_norm", _LLAMA_PREFIX + "self_attn.k_norm"),
}
QWEN3 = Tensors({**_LLAMA, **_QK_NORMS})
OLMO2 = Tensors(
    {
        **_LLAMA,
        **_QK_NORMS,
        **_norm("layers/attention_norm", _LLAMA_PREFIX + "post_attention_layernorm"),
        **_norm("layers/mlp_norm", _LLAMA_PREFIX + "post_feedforward_layernorm"),
    }
)
_OPT_PREFIX = "model.decoder.layers.{}."
OPT = Tensors(
    {
        "embedding": ("model.decoder.embed_tokens.weight", TABLE),
        "position_embedding": ("model.decoder.embed_positions.weight", TABLE),
        "project_in": ("model.decoder.project_in.weight", LINEAR),
        "project_out": ("model.decoder.project_out.weight", LINEAR),
        "head": ("lm_head.weight", LINEAR),
        **_norm("final_norm", "model.decoder.final_layer_norm"),
        **_norm("layers/attention_norm", _OPT_PREFIX + "self_attn_layer_norm"),
        **_norm("layers/mlp_norm", _OPT_PREFIX + "final_layer_norm"),
        **_separate("model.decoder.layers.{{}}.self_attn.{}_proj"),
        **_linear("layers/attention/output", _OPT_PREFIX + "self_attn.out_proj", LINEAR_OF_HEADS),
        **_linear("layers/mlp/up", _OPT_PREFIX + "fc1", LINEAR),
        **_linear("layers/mlp/down", _OPT_PREFIX + "fc2", LINEAR),
    }
)

_NEOX_PREFIX = "gpt_neox.layers.{}."
NEOX = Tensors(
    {
        "embedding": ("gpt_neox.embed_in.weight", TABLE),
        "head": ("embed_out.weight", LINEAR),
        **_norm("final_norm", "gpt_neox.final_layer_norm"),
        **_norm("layers/attention_norm", _NEOX_PREFIX + "input_layernorm"),
        **_norm("layers/mlp_norm", _NEOX_PREFIX + "post_attention_layernorm"),
        **_fused(_NEOX_PREFIX + "attention.query_key_value", Layout(transposed=True, by_head=True)),
        **_linear("layers/attention/output", _NEOX_PREFIX + "attention.dense", LINEAR_OF_HEADS),
        **_linear("layers/mlp/up", _NEOX_PREFIX + "mlp.dense_h_to_4h", LINEAR),
        **_linear("layers/mlp/down", _NEOX_PREFIX + "mlp.dense_4h_to_h", LINEAR),
    },
    head="embed_out.weight",
    base="gpt_neox.",
)

_GPT_PREFIX = "transformer.h.{}."
_GPT = {
    "embedding": ("transformer.wte.weight", TABLE),
    "position_embedding": ("transformer.wpe.weight", TABLE),
    "head": ("lm_head.weight", LINEAR),
    **_norm("final_norm", "transformer.ln_f"),
    **_norm("layers/attention_norm", _GPT_PREFIX + "ln_1"),
    **_norm("layers/mlp_norm", _GPT_PREFIX + "ln_2"),
}
GPT2 = Tensors(
    {
        **_GPT,
        **_fused(_GPT_PREFIX + "attn.c_attn", CONV),
        **_linear("layers/attention/output", _GPT_PREFIX + "attn.c_proj", CONV_OF_HEADS),
        **_linear("layers/mlp/up", _GPT_PREFIX + "mlp.c_fc", CONV),
        **_linear("layers/mlp/down", _GPT_PREFIX + "mlp.c_proj", CONV),
    },
    base="transformer.",
)
GPT_NEO = Tensors(
    {
        **_GPT,
        **_separate("transformer.h.{{}}.attn.attention.{}_proj"),
        **_linear(
            "layers/attention/output", _GPT_PREFIX + "attn.attention.out_proj", LINEAR_OF_HEADS
        ),
        **_linear("layers/mlp/up", _GPT_PREFIX + "mlp.c_fc", LINEAR),
        **_linear("layers/mlp/down", _GPT_PREFIX + "mlp.c_proj", LINEAR),
    },
    base="transformer.",
)
