"""What each architecture of the Hugging Face hub calls our parameters, and how it lays them out.

A family that trains with the block of another shares its table. Names hold `{}` where the number of
the layer stands. Parameters that a config does not have (a bias, a tied head) are skipped.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping

import numpy as np


@dataclasses.dataclass(frozen=True)
class Layout:
    """Where one parameter (one layer of it) lies in a tensor of the checkpoint.

    Attributes:
      inputs: leading axes of the parameter that a matmul sums over; the others are its outputs.
        Without inputs it is a vector.
      transposed: [outputs, inputs], as torch.nn.Linear; else [inputs, outputs], as GPT-2's Conv1D.
      part: which of the `parts` that the tensor holds along its outputs.
      parts: how many.
      by_head: the parts alternate with every head, (head, part, head_dim), instead of following
        each other.
    """

    inputs: int = 1
    transposed: bool = False
    part: int = 0
    parts: int = 1
    by_head: bool = False

    def shape(self, param: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of the tensor, from that of the parameter."""
        inputs = math.prod(param[: self.inputs])
        outputs = math.prod(param[self.inputs :]) * self.parts
        if not self.inputs:
            return (outputs,)
        return (outputs, inputs) if self.transposed else (inputs, outputs)

    def view(self, tensor: np.ndarray, param: tuple[int, ...]) -> np.ndarray:
        """The parameter, of shape `param`, as a view of a contiguous tensor, to read or write."""
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
      names: parameter -> the name of the tensor, and where in it the parameter lies.
      head: the tensor of the output head, which a tied model may repeat.
      base: what a checkpoint saved without its head leaves out of the names.
    """

    names: Names
    head: str = "lm_head.weight"
    base: str = "model."


def _linear(param: str, hf: str, layout: Layout) -> dict[str, tuple[str, Layout]]:
    """A matrix and its bias."""
    bias = dataclasses.replace(layout, inputs=0)
    return {param: (f"{hf}.weight", layout), f"{param}_bias": (f"{hf}.bias", bias)}


def _norm(param: str, hf: str) -> dict[str, tuple[str, Layout]]:
    return {f"{param}/scale": (f"{hf}.weight", VECTOR), f"{param}/bias": (f"{hf}.bias", VECTOR)}


def _fused(hf: str, layout: Layout) -> dict[str, tuple[str, Layout]]:
    """Query, key and value in one tensor."""
    names: dict[str, tuple[str, Layout]] = {}
    for part, param in enumerate(("query", "key", "value")):
        place = dataclasses.replace(layout, part=part, parts=3)
        names |= _linear(f"layers/attention/{param}", hf, place)
    return names


def _separate(hf: str) -> dict[str, tuple[str, Layout]]:
    """Query, key and value in tensors of their own."""
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
