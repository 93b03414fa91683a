"""What each architecture of the Hugging Face hub calls our parameters.

A family that trains with the block of another shares its table. Names hold `{}` where the number of
the layer stands. Parameters that a config has not (a bias, a tied head) are passed over.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from jaxllm.interop.huggingface.layouts import (
    CONV,
    CONV_OF_HEADS,
    LINEAR,
    LINEAR_OF_HEADS,
    TABLE,
    VECTOR,
    Layout,
)

Names = Mapping[str, tuple[str, Layout]]


@dataclasses.dataclass(frozen=True)
class Tensors:
    """The tensors of one architecture.

    Attributes:
      names: our parameter -> the name of their tensor, and where in it ours lies.
      head: their name of the output head, which a tied model may repeat.
      base: what a checkpoint saved without its head leaves out of the names.
    """

    names: Names
    head: str = "lm_head.weight"
    base: str = "model."


def _biased(ours: str, theirs: str, layout: Layout) -> dict[str, tuple[str, Layout]]:
    """A matrix and its bias."""
    bias = dataclasses.replace(layout, inputs=0)
    return {
        ours: (f"{theirs}.weight", layout),
        f"{ours}_bias": (f"{theirs}.bias", bias),
    }


def _norm(ours: str, theirs: str) -> dict[str, tuple[str, Layout]]:
    return {
        f"{ours}/scale": (f"{theirs}.weight", VECTOR),
        f"{ours}/bias": (f"{theirs}.bias", VECTOR),
    }


def _fused(theirs: str, layout: Layout) -> dict[str, tuple[str, Layout]]:
    """Query, key and value in one tensor."""
    names: dict[str, tuple[str, Layout]] = {}
    for part, ours in enumerate(("query", "key", "value")):
        place = dataclasses.replace(layout, part=part, parts=3)
        names |= _biased(f"layers/attention/{ours}", theirs, place)
    return names


def _separate(theirs: str) -> dict[str, tuple[str, Layout]]:
    names: dict[str, tuple[str, Layout]] = {}
    for ours in ("query", "key", "value"):
        names |= _biased(f"layers/attention/{ours}", theirs.format(ours[0]), LINEAR)
    return names


_LLAMA_PREFIX = "model.layers.{}."
_LLAMA = {
    "embedding": ("model.embed_tokens.weight", TABLE),
    "head": ("lm_head.weight", LINEAR),
    **_norm("final_norm", "model.norm"),
    **_norm("layers/attention_norm", _LLAMA_PREFIX + "input_layernorm"),
    **_norm("layers/mlp_norm", _LLAMA_PREFIX + "post_attention_layernorm"),
    **_separate("model.layers.{{}}.self_attn.{}_proj"),
    **_biased("layers/attention/output", _LLAMA_PREFIX + "self_attn.o_proj", LINEAR_OF_HEADS),
    **_biased("layers/mlp/gate", _LLAMA_PREFIX + "mlp.gate_proj", LINEAR),
    **_biased("layers/mlp/up", _LLAMA_PREFIX + "mlp.up_proj", LINEAR),
    **_biased("layers/mlp/down", _LLAMA_PREFIX + "mlp.down_proj", LINEAR),
}
LLAMA = Tensors(_LLAMA)
BAICHUAN = Tensors({**_LLAMA, **_fused(_LLAMA_PREFIX + "self_attn.W_pack", LINEAR)})
OLMO2 = Tensors(
    {
        **_LLAMA,
        **_norm("layers/attention_norm", _LLAMA_PREFIX + "post_attention_layernorm"),
        **_norm("layers/mlp_norm", _LLAMA_PREFIX + "post_feedforward_layernorm"),
        **_norm("layers/attention/query_norm", _LLAMA_PREFIX + "self_attn.q_norm"),
        **_norm("layers/attention/key_norm", _LLAMA_PREFIX + "self_attn.k_norm"),
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
        **_biased("layers/attention/output", _OPT_PREFIX + "self_attn.out_proj", LINEAR_OF_HEADS),
        **_biased("layers/mlp/up", _OPT_PREFIX + "fc1", LINEAR),
        **_biased("layers/mlp/down", _OPT_PREFIX + "fc2", LINEAR),
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
        **_biased("layers/attention/output", _NEOX_PREFIX + "attention.dense", LINEAR_OF_HEADS),
        **_biased("layers/mlp/up", _NEOX_PREFIX + "mlp.dense_h_to_4h", LINEAR),
        **_biased("layers/mlp/down", _NEOX_PREFIX + "mlp.dense_4h_to_h", LINEAR),
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
        **_biased("layers/attention/output", _GPT_PREFIX + "attn.c_proj", CONV_OF_HEADS),
        **_biased("layers/mlp/up", _GPT_PREFIX + "mlp.c_fc", CONV),
        **_biased("layers/mlp/down", _GPT_PREFIX + "mlp.c_proj", CONV),
    },
    base="transformer.",
)
GPT_NEO = Tensors(
    {
        **_GPT,
        **_separate("transformer.h.{{}}.attn.attention.{}_proj"),
        **_biased(
            "layers/attention/output", _GPT_PREFIX + "attn.attention.out_proj", LINEAR_OF_HEADS
        ),
        **_biased("layers/mlp/up", _GPT_PREFIX + "mlp.c_fc", LINEAR),
        **_biased("layers/mlp/down", _GPT_PREFIX + "mlp.c_proj", LINEAR),
    },
    base="transformer.",
)
