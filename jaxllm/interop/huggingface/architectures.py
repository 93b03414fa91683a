"""The supported architectures of the Hugging Face hub: the fields of their config.json.

A family is mostly data: pairs of fields, fixed values, and the supported values of config.json
fields without a counterpart in ModelConfig.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from jaxllm.errors import UserError
from jaxllm.interop.huggingface import families
from jaxllm.interop.huggingface.families import Tensors
from jaxllm.models.config import BIASES, ModelConfig

Json = dict[str, Any]
REQUIRED = object()


@dataclasses.dataclass(frozen=True)
class Field:
    """A field of ModelConfig and its counterpart in config.json.

    Attributes:
      name: name in ModelConfig; 'quirks.NAME' is a field of its quirks.
      hf_name: name in config.json.
      default: Transformers' default if config.json has no value.
      values: value in config.json -> value in ModelConfig, if they differ.
      biases: for `use_bias`: the entries that a true value in config.json adds to it.
    """

    name: str
    hf_name: str
    default: Any = REQUIRED
    values: Mapping[Any, Any] | None = None
    biases: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Family:
    """An architecture: its config.json fields, fixed ModelConfig fields, and tensors.

    Attributes:
      architecture: its name in config.json's `architectures`.
      model_type: config.json's `model_type`.
      tensors: its tensor names and layouts.
      fields: one-to-one fields.
      fixed: ModelConfig fields that the architecture fixes.
      supported: config.json field -> supported values, Transformers' default first.
      implements: config.json fields that are refused for other families.
      read: derives the ModelConfig fields that are not one-to-one.
      write: the inverse of `read`.
    """

    architecture: str
    model_type: str
    tensors: Tensors
    fields: tuple[Field, ...]
    fixed: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    supported: Mapping[str, tuple[Any, ...]] = dataclasses.field(default_factory=dict)
    implements: tuple[str, ...] = ()
    read: Callable[[Json], Json] = lambda config: {}
    write: Callable[[ModelConfig], Json] = lambda model: {}


_ACTIVATIONS = {
    "silu": "silu", "swish": "silu", "relu": "relu", "gelu": "gelu", "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh",
}  # fmt: skip


def _shape(layers: str, embed: str, heads: str) -> tuple[Field, ...]:
    return (
        Field("vocab_size", "vocab_size"),
        Field("num_layers", layers),
        Field("embed_dim", embed),
        Field("num_heads", heads),
    )


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
FULL_ROTARY = {"partial_rotary_factor": (1.0,)}
_LAYER_NORM = {"norm": "layer", "mlp_type": "plain"}


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


def _read_windows(config: Json) -> Json:
    kinds = [k for group, n in config["attention_types"] for k in list(group) * n]
    unknown = set(kinds) - {"global", "local"}
    if unknown or len(kinds) != config["num_layers"]:
        raise UserError(f"attention_types = {config['attention_types']!r} is not implemented")
    count = len(kinds)
    period = next(p for p in range(1, count + 1) if kinds == (kinds[:p] * count)[:count])
    window = config.get("window_size", 256)
    windows = tuple(window if kind == "local" else 0 for kind in kinds[:period])
    return {"sliding_window_pattern": windows if any(windows) else ()}


def _write_windows(model: ModelConfig) -> Json:
    cycle = model.sliding_window_pattern or (0,)
    layers = [cycle[i % len(cycle)] for i in range(model.num_layers)]
    whole = model.num_layers % len(cycle) == 0
    groups = [(cycle, model.num_layers // len(cycle))] if whole else [(layers, 1)]
    types = [[["local" if w else "global" for w in group], n] for group, n in groups]
    return {"attention_types": types, "window_size": max(cycle) or 256}


def _read_sliding_window(config: Json) -> Json:
    window = config.get("sliding_window", 4096)
    return {"sliding_window_pattern": (window,) if window else ()}


def _write_sliding_window(model: ModelConfig) -> Json:
    return {"sliding_window": model.uniform_window}


def _mlp_dim(hf_name: str, embed: str) -> Callable[[Json], Json]:
    return lambda config: {"mlp_dim": config.get(hf_name) or 4 * config[embed]}


def _read_gpt_neo(config: Json) -> Json:
    return _read_windows(config) | _mlp_dim("intermediate_size", "hidden_size")(config)


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


_BAICHUAN = Family(
    "BaichuanForCausalLM", "baichuan", families.BAICHUAN,
    (*_SHAPE, Field("mlp_dim", "intermediate_size"),
     Field("activation", "hidden_act", "silu", _ACTIVATIONS), _RMS_EPS, _tied(False)),
    supported=FULL_ROTARY | {"rope_theta": (10_000.0,)},
    read=_read_baichuan, write=_write_baichuan,
)  # fmt: skip
_LLAMA = Family(
    "LlamaForCausalLM", "llama", families.LLAMA,
    (*_LLAMA_FIELDS, _LENGTH, _RMS_EPS, Field("use_bias", "mlp_bias", False, biases=("mlp",))),
    supported=FULL_ROTARY,
)  # fmt: skip

FAMILIES: Mapping[str, Family] = {
    family.architecture: family
    for family in (
        _LLAMA,
        Family(
            "OlmoForCausalLM", "olmo", families.LLAMA,
            (*_LLAMA_FIELDS, _LENGTH, Field("quirks.clip_qkv", "clip_qkv", None)),
            fixed={"norm": "layer_plain", "norm_eps": 1e-5}, supported=FULL_ROTARY,
        ),
        Family(
            "Olmo2ForCausalLM", "olmo2", families.OLMO2,
            (*_LLAMA_FIELDS, _LENGTH, Field("norm_eps", "rms_norm_eps", 1e-5)),
            fixed={"block_type": "reordered_norm", "qk_norm": "all_heads"}, supported=FULL_ROTARY,
        ),
        Family(
            "MistralForCausalLM", "mistral", families.LLAMA, (*_LLAMA_FIELDS, _LENGTH, _RMS_EPS),
            supported=FULL_ROTARY | {"attention_bias": (False,)},
            implements=("sliding_window",), read=_read_sliding_window, write=_write_sliding_window,
        ),
        Family(
            "Qwen3ForCausalLM", "qwen3", families.QWEN3,
            (*_LLAMA_FIELDS, Field("head_dim", "head_dim", 128), _LENGTH, _RMS_EPS),
            fixed={"qk_norm": "per_head"}, supported=FULL_ROTARY,
        ),
        Family(
            "OPTForCausalLM", "opt", families.OPT,
            (*_SHAPE, Field("mlp_dim", "ffn_dim"), _LENGTH, _tied(True),
             Field("activation", "activation_function", "relu", _ACTIVATIONS),
             Field("block_type", "do_layer_norm_before", True,
                   {True: "pre_norm", False: "post_norm"}),
             Field("use_bias", "enable_bias", True, biases=BIASES)),
            fixed=_LAYER_NORM
            | {"position_embedding": "learned", "quirks.position_offset": 2, "norm_eps": 1e-5},
            supported={"layer_norm_elementwise_affine": (True,)},
            read=_read_opt, write=_write_opt,
        ),
        Family(
            "GPTNeoXForCausalLM", "gpt_neox", families.NEOX,
            (*_SHAPE, Field("mlp_dim", "intermediate_size"), _LENGTH, _tied(False),
             Field("activation", "hidden_act", "gelu", _ACTIVATIONS),
             Field("rope_theta", "rotary_emb_base", 10_000), ROPE_SCALING,
             Field("quirks.rotary_fraction", "rotary_pct", 0.25),
             Field("norm_eps", "layer_norm_eps", 1e-5),
             Field("use_bias", "attention_bias", True, biases=("qkv", "attention_output")),
             Field("block_type", "use_parallel_residual", True,
                   {True: "parallel", False: "pre_norm"})),
            fixed=_LAYER_NORM | {"use_bias": ("mlp",)},
        ),
        Family(
            "GPT2LMHeadModel", "gpt2", families.GPT2,
            (*_shape("n_layer", "n_embd", "n_head"), Field("max_length", "n_positions", 1024),
             Field("activation", "activation_function", "gelu_new", _ACTIVATIONS),
             Field("norm_eps", "layer_norm_epsilon", 1e-5), _tied(True)),
            fixed=_LAYER_NORM | {"position_embedding": "learned", "use_bias": BIASES},
            supported={"scale_attn_weights": (True,), "scale_attn_by_inverse_layer_idx": (False,)},
            read=_mlp_dim("n_inner", "n_embd"), write=lambda model: {"n_inner": model.mlp_dim},
        ),
        Family(
            "GPTNeoForCausalLM", "gpt_neo", families.GPT_NEO,
            (*_shape("num_layers", "hidden_size", "num_heads"), _LENGTH, _tied(True),
             Field("activation", "activation_function", "gelu_new", _ACTIVATIONS),
             Field("norm_eps", "layer_norm_epsilon", 1e-5)),
            fixed=_LAYER_NORM
            | {"position_embedding": "learned", "use_bias": ("attention_output", "mlp"),
               "quirks.attention_scale": 1.0},
            read=_read_gpt_neo,
            write=lambda model: _write_windows(model) | {"intermediate_size": model.mlp_dim},
        ),
        _BAICHUAN,
        dataclasses.replace(_BAICHUAN, architecture="BaiChuanForCausalLM"),  # the first 7B
        dataclasses.replace(
            _LLAMA, architecture="SkyworkForCausalLM", model_type="skywork", tensors=families.LLAMA
        ),
    )
}  # fmt: skip
