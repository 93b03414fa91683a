"""The supported architectures: their tensors, and the fields of their config.json.

An architecture is mostly data: names of modules, pairs of fields, fixed values, and the supported
values of config.json fields without a counterpart in ModelConfig.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from jaxllm.errors import UserError
from jaxllm.models.config import BIASES, ModelConfig

Json = dict[str, Any]
REQUIRED = object()


@dataclasses.dataclass(frozen=True)
class Layout:
    """The layout of one parameter (of one layer) in a checkpoint tensor."""

    # number of leading axes that the matmul contracts; the others are outputs. A vector has none.
    inputs: int = 1
    # whether the tensor is [outputs, inputs], as in torch.nn.Linear, instead of [inputs, outputs],
    # as in GPT-2's Conv1D
    transposed: bool = False
    part: int = 0  # index of the parameter among the `parts` fused along the outputs
    parts: int = 1  # number of fused parameters
    # whether they are interleaved by head, [head, part, head_dim], instead of concatenated
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
        fused = [*outputs[:1], self.parts, *outputs[1:]] if self.by_head else [self.parts, *outputs]
        parts = np.moveaxis(tensor.reshape(*inputs, *fused), len(inputs) + self.by_head, 0)
        view = parts[self.part]
        assert np.shares_memory(view, tensor)
        return view


# Parameter -> tensor name, with `{}` for the layer index, and layout.
Names = Mapping[str, tuple[str, Layout]]


def _tensors(modules: Mapping[str, str], conv: bool = False, by_head: bool = False) -> Names:
    """The weights and biases of modules by parameter; entries of absent parameters are ignored.

    `layers/attention/qkv` is query, key and value in one, interleaved `by_head` or not. With `conv`
    the layers' matrices are GPT-2's Conv1D.
    """
    names: dict[str, tuple[str, Layout]] = {}
    for param, module in modules.items():
        weight, bias = f"{module}.weight", f"{module}.bias"
        if param.endswith("norm"):
            names[f"{param}/scale"] = weight, Layout(inputs=0)
            names[f"{param}/bias"] = bias, Layout(inputs=0)
            continue
        if param.endswith("embedding"):
            names[param] = weight, Layout()
            continue
        fused = ("query", "key", "value") if param.endswith("qkv") else ("qkv",)
        for part, name in enumerate(param.replace("qkv", name) for name in fused):
            transposed = not (conv and param.startswith("layers/"))
            inputs = 2 if name.endswith("attention/output") else 1
            layout = Layout(inputs, transposed, part, len(fused), by_head and len(fused) > 1)
            names[name] = weight, layout
            names[f"{name}_bias"] = bias, dataclasses.replace(layout, inputs=0)
    return names


_LLAMA_MODULES = {
    "embedding": "model.embed_tokens",
    "head": "lm_head",
    "final_norm": "model.norm",
    "layers/attention_norm": "model.layers.{}.input_layernorm",
    "layers/mlp_norm": "model.layers.{}.post_attention_layernorm",
    "layers/attention/query": "model.layers.{}.self_attn.q_proj",
    "layers/attention/key": "model.layers.{}.self_attn.k_proj",
    "layers/attention/value": "model.layers.{}.self_attn.v_proj",
    "layers/attention/output": "model.layers.{}.self_attn.o_proj",
    "layers/mlp/gate": "model.layers.{}.mlp.gate_proj",
    "layers/mlp/up": "model.layers.{}.mlp.up_proj",
    "layers/mlp/down": "model.layers.{}.mlp.down_proj",
}
_QWEN3_MODULES = _LLAMA_MODULES | {
    "layers/attention/query_norm": "model.layers.{}.self_attn.q_norm",
    "layers/attention/key_norm": "model.layers.{}.self_attn.k_norm",
}
_OLMO2_MODULES = _QWEN3_MODULES | {
    "layers/attention_norm": "model.layers.{}.post_attention_layernorm",
    "layers/mlp_norm": "model.layers.{}.post_feedforward_layernorm",
}
_BAICHUAN_MODULES = _LLAMA_MODULES | {
    "layers/attention/qkv": "model.layers.{}.self_attn.W_pack",
}
_OPT_MODULES = {
    "embedding": "model.decoder.embed_tokens",
    "position_embedding": "model.decoder.embed_positions",
    "project_in": "model.decoder.project_in",
    "project_out": "model.decoder.project_out",
    "head": "lm_head",
    "final_norm": "model.decoder.final_layer_norm",
    "layers/attention_norm": "model.decoder.layers.{}.self_attn_layer_norm",
    "layers/mlp_norm": "model.decoder.layers.{}.final_layer_norm",
    "layers/attention/query": "model.decoder.layers.{}.self_attn.q_proj",
    "layers/attention/key": "model.decoder.layers.{}.self_attn.k_proj",
    "layers/attention/value": "model.decoder.layers.{}.self_attn.v_proj",
    "layers/attention/output": "model.decoder.layers.{}.self_attn.out_proj",
    "layers/mlp/up": "model.decoder.layers.{}.fc1",
    "layers/mlp/down": "model.decoder.layers.{}.fc2",
}
_NEOX_MODULES = {
    "embedding": "gpt_neox.embed_in",
    "head": "embed_out",
    "final_norm": "gpt_neox.final_layer_norm",
    "layers/attention_norm": "gpt_neox.layers.{}.input_layernorm",
    "layers/mlp_norm": "gpt_neox.layers.{}.post_attention_layernorm",
    "layers/attention/qkv": "gpt_neox.layers.{}.attention.query_key_value",
    "layers/attention/output": "gpt_neox.layers.{}.attention.dense",
    "layers/mlp/up": "gpt_neox.layers.{}.mlp.dense_h_to_4h",
    "layers/mlp/down": "gpt_neox.layers.{}.mlp.dense_4h_to_h",
}
_GPT_MODULES = {
    "embedding": "transformer.wte",
    "position_embedding": "transformer.wpe",
    "head": "lm_head",
    "final_norm": "transformer.ln_f",
    "layers/attention_norm": "transformer.h.{}.ln_1",
    "layers/mlp_norm": "transformer.h.{}.ln_2",
    "layers/mlp/up": "transformer.h.{}.mlp.c_fc",
    "layers/mlp/down": "transformer.h.{}.mlp.c_proj",
}
_GPT2_MODULES = _GPT_MODULES | {
    "layers/attention/qkv": "transformer.h.{}.attn.c_attn",
    "layers/attention/output": "transformer.h.{}.attn.c_proj",
}
_GPT_NEO_MODULES = _GPT_MODULES | {
    "layers/attention/query": "transformer.h.{}.attn.attention.q_proj",
    "layers/attention/key": "transformer.h.{}.attn.attention.k_proj",
    "layers/attention/value": "transformer.h.{}.attn.attention.v_proj",
    "layers/attention/output": "transformer.h.{}.attn.attention.out_proj",
}


@dataclasses.dataclass(frozen=True)
class Field:
    """A field `name` of ModelConfig, or 'quirks.NAME', and its counterpart in config.json."""

    name: str
    hf_name: str
    default: Any = REQUIRED  # Transformers' default if config.json has no value
    # value in config.json -> value in ModelConfig, if they differ
    values: Mapping[Any, Any] | None = None
    # for `use_bias`: the entries that a true value in config.json adds to it
    biases: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Family:
    """An architecture."""

    architecture: str  # its name in config.json's `architectures`
    model_type: str  # config.json's `model_type`
    tensors: Names  # its tensor names and layouts
    fields: tuple[Field, ...]  # pairs of fields
    # ModelConfig fields that the architecture fixes
    fixed: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    # config.json field -> supported values, Transformers' default first
    supported: Mapping[str, tuple[Any, ...]] = dataclasses.field(default_factory=dict)
    implements: tuple[str, ...] = ()  # config.json fields that are refused for other families
    # derives the ModelConfig fields that are not one-to-one
    read: Callable[[Json], Json] = lambda config: {}
    write: Callable[[ModelConfig], Json] = lambda model: {}  # the inverse of `read`


_ACTIVATIONS = {
    "silu": "silu", "swish": "silu", "relu": "relu", "gelu": "gelu", "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh",
}  # fmt: skip


def _shape(*hf_names: str) -> tuple[Field, ...]:
    names = ("vocab_size", "num_layers", "embed_dim", "num_heads")
    return tuple(map(Field, names, ("vocab_size", *hf_names)))


def _tied(default: bool) -> Field:
    return Field("tie_embeddings", "tie_word_embeddings", default)


_SHAPE = _shape("num_hidden_layers", "hidden_size", "num_attention_heads")
ROPE_SCALING = Field("quirks.rope_scaling", "rope_scaling", None)
_LLAMA_FIELDS = (
    *_SHAPE,
    Field("mlp_dim", "intermediate_size"),
    Field("num_kv_heads", "num_key_value_heads", None),
    Field("head_dim", "head_dim", None),
    Field("activation", "hidden_act", "silu", _ACTIVATIONS),
    Field("rope_theta", "rope_theta", 10_000.0),
    ROPE_SCALING,
    Field("use_bias", "attention_bias", False, biases=("qkv", "attention_output")),
    _tied(False),
)
_LENGTH = Field("max_length", "max_position_embeddings", 2048)
_RMS_EPS = Field("norm_eps", "rms_norm_eps", 1e-6)
_LAYER_NORM = {"norm": "layer", "mlp_type": "plain"}
_LEARNED = _LAYER_NORM | {"position_embedding": "learned"}


def _read_opt(config: Json) -> Json:
    pre = config.get("do_layer_norm_before", True)
    width = config.get("word_embed_proj_dim")
    return {
        "quirks.final_norm": bool(pre and not config.get("_remove_final_layer_norm", False)),
        "quirks.embedding_dim": None if width == config["hidden_size"] else width,
    }


def _write_opt(model: ModelConfig) -> Json:
    pre = model.block_type != "post_norm"
    return {
        "_remove_final_layer_norm": pre and not model.quirks.final_norm,
        "word_embed_proj_dim": model.embedding_dim,
    }


def _read_gpt_neo(config: Json) -> Json:
    kinds = [k for group, n in config["attention_types"] for k in list(group) * n]
    if set(kinds) - {"global", "local"} or len(kinds) != config["num_layers"]:
        raise UserError(f"attention_types = {config['attention_types']!r} is not implemented")
    count = len(kinds)
    period = next(p for p in range(1, count + 1) if kinds == (kinds[:p] * count)[:count])
    window = config.get("window_size", 256)
    windows = tuple(window if kind == "local" else 0 for kind in kinds[:period])
    return {
        "sliding_window_pattern": windows if any(windows) else (),
        "mlp_dim": config.get("intermediate_size") or 4 * config["hidden_size"],
    }


def _write_gpt_neo(model: ModelConfig) -> Json:
    cycle = model.sliding_window_pattern or (0,)
    kinds = ["local" if window else "global" for window in cycle]
    repeats, rest = divmod(model.num_layers, len(cycle))
    groups = [[kinds, repeats]] if not rest else [[kinds * repeats + kinds[:rest], 1]]
    return {
        "attention_types": groups,
        "window_size": max(cycle) or 256,
        "intermediate_size": model.mlp_dim,
    }


def _read_mistral(config: Json) -> Json:
    window = config.get("sliding_window", 4096)
    return {"sliding_window_pattern": (window,) if window else ()}


def _read_baichuan(config: Json) -> Json:
    """Derive the fields that Baichuan's code fixes and its config.json lacks.

    13B has ALiBi, and no max_position_embeddings; Baichuan 2, with a normalized LM head, has a
    z_loss_weight.
    """
    rotary = "max_position_embeddings" in config
    length = config.get("max_position_embeddings" if rotary else "model_max_length", 4096)
    return {
        "position_embedding": "rotary" if rotary else "alibi",
        "max_length": length,
        "quirks.normalize_lm_head": "z_loss_weight" in config,
    }


def _write_baichuan(model: ModelConfig) -> Json:
    rotary, scaled_head = model.position_embedding == "rotary", model.quirks.normalize_lm_head
    length = "max_position_embeddings" if rotary else "model_max_length"
    return {length: model.max_length} | ({"z_loss_weight": 0} if scaled_head else {})


_LLAMA = Family(
    "LlamaForCausalLM", "llama", _tensors(_LLAMA_MODULES),
    (*_LLAMA_FIELDS, _LENGTH, _RMS_EPS, Field("use_bias", "mlp_bias", False, biases=("mlp",))),
)  # fmt: skip
_BAICHUAN = Family(
    "BaichuanForCausalLM", "baichuan", _tensors(_BAICHUAN_MODULES),
    (*_SHAPE, Field("mlp_dim", "intermediate_size"),
     Field("activation", "hidden_act", "silu", _ACTIVATIONS), _RMS_EPS, _tied(False)),
    supported={"rope_theta": (10_000.0,)}, read=_read_baichuan, write=_write_baichuan,
)  # fmt: skip

FAMILIES: dict[str, Family] = {
    family.architecture: family
    for family in (
        _LLAMA,
        Family(
            "OlmoForCausalLM", "olmo", _LLAMA.tensors,
            (*_LLAMA_FIELDS, _LENGTH, Field("quirks.clip_qkv", "clip_qkv", None)),
            fixed={"norm": "layer_plain", "norm_eps": 1e-5},
        ),
        Family(
            "Olmo2ForCausalLM", "olmo2", _tensors(_OLMO2_MODULES),
            (*_LLAMA_FIELDS, _LENGTH, Field("norm_eps", "rms_norm_eps", 1e-5)),
            fixed={"block_type": "reordered_norm", "qk_norm": "all_heads"},
        ),
        Family(
            "MistralForCausalLM", "mistral", _LLAMA.tensors, (*_LLAMA_FIELDS, _LENGTH, _RMS_EPS),
            supported={"attention_bias": (False,)}, implements=("sliding_window",),
            read=_read_mistral, write=lambda model: {"sliding_window": model.uniform_window},
        ),
        Family(
            "Qwen3ForCausalLM", "qwen3", _tensors(_QWEN3_MODULES),
            (*_LLAMA_FIELDS, Field("head_dim", "head_dim", 128), _LENGTH, _RMS_EPS),
            fixed={"qk_norm": "per_head"},
        ),
        Family(
            "OPTForCausalLM", "opt", _tensors(_OPT_MODULES),
            (*_SHAPE, Field("mlp_dim", "ffn_dim"), _LENGTH, _tied(True),
             Field("activation", "activation_function", "relu", _ACTIVATIONS),
             Field("block_type", "do_layer_norm_before", True,
                   {True: "pre_norm", False: "post_norm"}),
             Field("use_bias", "enable_bias", True, biases=BIASES)),
            fixed=_LEARNED | {"quirks.position_offset": 2, "norm_eps": 1e-5},
            supported={"layer_norm_elementwise_affine": (True,)},
            read=_read_opt, write=_write_opt,
        ),
        Family(
            "GPTNeoXForCausalLM", "gpt_neox", _tensors(_NEOX_MODULES, by_head=True),
            (*_SHAPE, Field("mlp_dim", "intermediate_size"), _LENGTH, _tied(False),
             Field("activation", "hidden_act", "gelu", _ACTIVATIONS),
             Field("rope_theta", "rotary_emb_base", 10_000), ROPE_SCALING,
             Field("quirks.rotary_fraction", "rotary_pct", 0.25),
             Field("norm_eps", "layer_norm_eps", 1e-5),
             Field("use_bias", "attention_bias", True, biases=("qkv", "attention_output")),
             Field("block_type", "use_parallel_residual", True,
                   {True: "parallel", False: "pre_norm"})),
            fixed=_LAYER_NORM | {"use_bias": ("mlp",)}, implements=("partial_rotary_factor",),
        ),
        Family(
            "GPT2LMHeadModel", "gpt2", _tensors(_GPT2_MODULES, conv=True),
            (*_shape("n_layer", "n_embd", "n_head"), Field("max_length", "n_positions", 1024),
             Field("activation", "activation_function", "gelu_new", _ACTIVATIONS),
             Field("norm_eps", "layer_norm_epsilon", 1e-5), _tied(True)),
            fixed=_LEARNED | {"use_bias": BIASES},
            supported={"scale_attn_weights": (True,), "scale_attn_by_inverse_layer_idx": (False,)},
            read=lambda config: {"mlp_dim": config.get("n_inner") or 4 * config["n_embd"]},
            write=lambda model: {"n_inner": model.mlp_dim},
        ),
        Family(
            "GPTNeoForCausalLM", "gpt_neo", _tensors(_GPT_NEO_MODULES),
            (*_shape("num_layers", "hidden_size", "num_heads"), _LENGTH, _tied(True),
             Field("activation", "activation_function", "gelu_new", _ACTIVATIONS),
             Field("norm_eps", "layer_norm_epsilon", 1e-5)),
            fixed=_LEARNED
            | {"use_bias": ("attention_output", "mlp"), "quirks.attention_scale": 1.0},
            read=_read_gpt_neo, write=_write_gpt_neo,
        ),
        _BAICHUAN,
        dataclasses.replace(_BAICHUAN, architecture="BaiChuanForCausalLM"),  # the first 7B
        dataclasses.replace(_LLAMA, architecture="SkyworkForCausalLM", model_type="skywork"),
    )
}  # fmt: skip
