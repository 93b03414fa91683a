"""config.json <-> ModelConfig, for every architecture that we know.

Reading is strict about what changes the logits: a value that the decoder does not implement is
refused by name. Writing makes the fields that Transformers reads, then reads them back: whatever
an architecture cannot express is found by that, and named.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from operator import attrgetter
from typing import Any

from jaxllm.errors import UserError
from jaxllm.interop.huggingface import families, rope
from jaxllm.interop.huggingface.families import Tensors
from jaxllm.models.config import BIASES, ModelConfig, Quirks

Json = dict[str, Any]
_REQUIRED = object()


@dataclasses.dataclass(frozen=True)
class Field:
    """A field of ModelConfig and one of config.json that mean the same.

    Attributes:
      ours: the one; 'quirks.NAME' is a field of its quirks.
      theirs: the other.
      default: what Transformers takes (as a value of theirs) where config.json has none.
      values: their value -> ours, where they are not the same.
      biases: where ours is `use_bias`: what theirs, a bool, adds to it.
    """

    ours: str
    theirs: str
    default: Any = _REQUIRED
    values: Mapping[Any, Any] | None = None
    biases: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Family:
    """An architecture: the fields it sets, those it always has, and its tensors.

    Attributes:
      architecture: as config.json's `architectures` names it.
      model_type: config.json's `model_type`.
      tensors: the names of its tensors.
      fields: what config.json says.
      always: ModelConfig fields that the architecture fixes.
      only: config.json fields with the values that we implement, Transformers' default first.
      supported: config.json fields that other families refuse.
      read: derives ModelConfig fields that take more than one field of config.json.
      write: the reverse.
    """

    architecture: str
    model_type: str
    tensors: Tensors
    fields: tuple[Field, ...]
    always: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    only: Mapping[str, tuple[Any, ...]] = dataclasses.field(default_factory=dict)
    supported: tuple[str, ...] = ()
    read: Callable[[Json], Json] = lambda config: {}
    write: Callable[[ModelConfig], Json] = lambda model: {}


_ACTIVATIONS = {
    "silu": "silu", "swish": "silu", "relu": "relu", "gelu": "gelu", "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh",
}  # fmt: skip
_NOWHERE: dict[str, tuple[Any, ...]] = {
    "quantization_config": (None,), "sliding_window": (None,), "use_sliding_window": (False,),
    "is_encoder_decoder": (False,), "add_cross_attention": (False,), "logit_scale": (None, 1.0),
    "attn_logit_softcapping": (None,), "final_logit_softcapping": (None,), "num_experts": (None,),
    "num_local_experts": (None,), "qk_layernorm": (False,),
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
_ROPE_SCALING = Field("quirks.rope_scaling", "rope_scaling", None)
_LLAMA_FIELDS = (
    *_SHAPE,
    Field("mlp_dim", "intermediate_size"),
    Field("num_kv_heads", "num_key_value_heads", None),
    Field("head_dim", "head_dim", None),
    Field("activation", "hidden_act", "silu", _ACTIVATIONS),
    Field("rope_theta", "rope_theta", 10_000.0),
    _ROPE_SCALING,
    Field("use_bias", "attention_bias", False, biases=("qkv", "attention_output")),
    _tied(False),
)
_LENGTH = Field("max_length", "max_position_embeddings", 2048)
_RMS_EPS = Field("norm_eps", "rms_norm_eps", 1e-6)
_UNTURNED = {"partial_rotary_factor": (1.0,)}
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


def _mlp_dim(theirs: str, embed: str) -> Callable[[Json], Json]:
    return lambda config: {"mlp_dim": config.get(theirs) or 4 * config[embed]}


def _read_gpt_neo(config: Json) -> Json:
    return _read_windows(config) | _mlp_dim("intermediate_size", "hidden_size")(config)


def _read_baichuan(config: Json) -> Json:
    """What Baichuan's code knows and its config.json does not say.

    13B has ALiBi, and no max_position_embeddings; Baichuan 2, whose head is normalised, has a
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
    only=_UNTURNED | {"rope_theta": (10_000.0,)},
    read=_read_baichuan, write=_write_baichuan,
)  # fmt: skip
_LLAMA = Family(
    "LlamaForCausalLM", "llama", families.LLAMA,
    (*_LLAMA_FIELDS, _LENGTH, _RMS_EPS, Field("use_bias", "mlp_bias", False, biases=("mlp",))),
    only=_UNTURNED,
)  # fmt: skip

FAMILIES: Mapping[str, Family] = {
    family.architecture: family
    for family in (
        _LLAMA,
        Family(
            "OlmoForCausalLM", "olmo", families.LLAMA,
            (*_LLAMA_FIELDS, _LENGTH, Field("quirks.clip_qkv", "clip_qkv", None)),
            always={"norm": "layer_plain", "norm_eps": 1e-5}, only=_UNTURNED,
        ),
        Family(
            "Olmo2ForCausalLM", "olmo2", families.OLMO2,
            (*_LLAMA_FIELDS, _LENGTH, Field("norm_eps", "rms_norm_eps", 1e-5)),
            always={"block_type": "reordered_norm", "qk_norm": "all_heads"}, only=_UNTURNED,
        ),
        Family(
            "MistralForCausalLM", "mistral", families.LLAMA, (*_LLAMA_FIELDS, _LENGTH, _RMS_EPS),
            only=_UNTURNED | {"attention_bias": (False,)},
            supported=("sliding_window",), read=_read_sliding_window, write=_write_sliding_window,
        ),
        Family(
            "Qwen3ForCausalLM", "qwen3", families.QWEN3,
            (*_LLAMA_FIELDS, Field("head_dim", "head_dim", 128), _LENGTH, _RMS_EPS),
            always={"qk_norm": "per_head"}, only=_UNTURNED,
        ),
        Family(
            "OPTForCausalLM", "opt", families.OPT,
            (*_SHAPE, Field("mlp_dim", "ffn_dim"), _LENGTH, _tied(True),
             Field("activation", "activation_function", "relu", _ACTIVATIONS),
             Field("block_type", "do_layer_norm_before", True,
                   {True: "pre_norm", False: "post_norm"}),
             Field("use_bias", "enable_bias", True, biases=BIASES)),
            always=_LAYER_NORM
            | {"position_embedding": "learned", "quirks.position_offset": 2, "norm_eps": 1e-5},
            only={"layer_norm_elementwise_affine": (True,)},
            read=_read_opt, write=_write_opt,
        ),
        Family(
            "GPTNeoXForCausalLM", "gpt_neox", families.NEOX,
            (*_SHAPE, Field("mlp_dim", "intermediate_size"), _LENGTH, _tied(False),
             Field("activation", "hidden_act", "gelu", _ACTIVATIONS),
             Field("rope_theta", "rotary_emb_base", 10_000), _ROPE_SCALING,
             Field("quirks.rotary_fraction", "rotary_pct", 0.25),
             Field("norm_eps", "layer_norm_eps", 1e-5),
             Field("use_bias", "attention_bias", True, biases=("qkv", "attention_output")),
             Field("block_type", "use_parallel_residual", True,
                   {True: "parallel", False: "pre_norm"})),
            always=_LAYER_NORM | {"use_bias": ("mlp",)},
        ),
        Family(
            "GPT2LMHeadModel", "gpt2", families.GPT2,
            (*_shape("n_layer", "n_embd", "n_head"), Field("max_length", "n_positions", 1024),
             Field("activation", "activation_function", "gelu_new", _ACTIVATIONS),
             Field("norm_eps", "layer_norm_epsilon", 1e-5), _tied(True)),
            always=_LAYER_NORM | {"position_embedding": "learned", "use_bias": BIASES},
            only={"scale_attn_weights": (True,), "scale_attn_by_inverse_layer_idx": (False,)},
            read=_mlp_dim("n_inner", "n_embd"), write=lambda model: {"n_inner": model.mlp_dim},
        ),
        Family(
            "GPTNeoForCausalLM", "gpt_neo", families.GPT_NEO,
            (*_shape("num_layers", "hidden_size", "num_heads"), _LENGTH, _tied(True),
             Field("activation", "activation_function", "gelu_new", _ACTIVATIONS),
             Field("norm_eps", "layer_norm_epsilon", 1e-5)),
            always=_LAYER_NORM
            | {"position_embedding": "learned", "use_bias": ("attention_output", "mlp"),
               "quirks.attention_scale": 1.0},
            read=_read_gpt_neo,
            write=lambda model: _write_windows(model) | {"intermediate_size": model.mlp_dim},
        ),
        _BAICHUAN,
        dataclasses.replace(_BAICHUAN, architecture="BaiChuanForCausalLM"),  # the first 7B's
        dataclasses.replace(
            _LLAMA, architecture="SkyworkForCausalLM", model_type="skywork", tensors=families.LLAMA
        ),
    )
}  # fmt: skip

DEFAULTS: Json = {
    field.name: field.default for field in dataclasses.fields(ModelConfig) if field.name != "quirks"
} | {f"quirks.{field.name}": field.default for field in dataclasses.fields(Quirks)}

# What is not the shape of a model but how it is run is nobody's business here.
_RUNNING = {"dtype", "param_dtype", "init_stddev", "remat", "scan_layers"}


def family_of(config: Json) -> Family:
    """The family that config.json names.

    Raises:
      UserError: it names none, or one that we do not know.
    """
    names = config.get("architectures")
    if not names:
        kind = config.get("model_type")
        names = [name for name, family in FAMILIES.items() if family.model_type == kind]
        if not names:
            known = ", ".join(sorted({family.model_type for family in FAMILIES.values()}))
            raise UserError(f"model_type = {kind!r} is not implemented; known are {known}")
    if names[0] not in FAMILIES:
        known = ", ".join(FAMILIES)
        raise UserError(f"architectures = {names} is not implemented; known are {known}")
    return FAMILIES[names[0]]


def to_model(config: Json) -> ModelConfig:
    """The model that config.json describes.

    Raises:
      UserError: names the field that is missing, or whose value we do not implement.
    """
    family = family_of(config)
    config = rope.flattened(config)
    if config["rope_scaling"] and _ROPE_SCALING not in family.fields:
        raise UserError(f"rope_scaling of {family.architecture} is not implemented")
    for name, values in {**_NOWHERE, **family.only}.items():
        if name in family.supported:
            continue
        if config.get(name, values[0]) not in (*values, None):
            raise UserError(f"{name} = {config[name]!r} is not implemented")
    # All fields are said: ModelConfig would take what gin binds for those that are not.
    ours: Json = {**DEFAULTS, **family.always}
    for field in family.fields:
        value = _value(field, config)
        if field.biases:
            ours["use_bias"] += field.biases if value else ()
        else:
            ours[field.ours] = value
    ours |= family.read(config)
    quirks = {name.split(".")[1]: ours.pop(name) for name in DEFAULTS if name.startswith("quirks.")}
    return ModelConfig(**ours, quirks=Quirks(**quirks))


def to_config(model: ModelConfig, architecture: str | None = None) -> Json:
    """The config.json of a model, in `architecture` or the first that can express it.

    Raises:
      UserError: names the architecture, and the field of ModelConfig that it has no place for.
    """
    if architecture is not None and architecture not in FAMILIES:
        raise UserError(f"no architecture {architecture}; known are {', '.join(FAMILIES)}")
    complaints = []
    for name in [architecture] if architecture else FAMILIES:
        config = _written(FAMILIES[name], model)
        try:
            different = differences(model, to_model(config))
        except UserError:  # it cannot even be read back
            continue
        if not different:
            return config
        complaints.append((len(different), name, different[0]))
    if not complaints:
        raise UserError(f"{architecture or 'every architecture'} lacks what this model has")
    _, name, field = min(complaints, key=lambda complaint: complaint[0])
    value = attrgetter(field)(model)
    raise UserError(f"{name}, the nearest architecture, has no ModelConfig.{field} = {value!r}")


def differences(a: ModelConfig, b: ModelConfig) -> list[str]:
    """The fields in which two models differ as functions of their parameters."""
    a, b = _plain(a), _plain(b)
    names = [name for name in DEFAULTS if name not in _RUNNING]
    return [name for name in names if attrgetter(name)(a) != attrgetter(name)(b)]


def _plain(model: ModelConfig) -> ModelConfig:
    """The model with defaults filled in, and what has no effect in it at one value."""
    rotary = model.position_embedding == "rotary"
    quirks = dataclasses.replace(
        model.quirks,
        attention_scale=model.quirks.attention_scale or model.head_size**-0.5,
        rotary_fraction=model.rotary_dim / model.head_size if rotary else 1.0,
    )
    pattern = model.sliding_window_pattern
    return dataclasses.replace(
        model,
        num_kv_heads=model.kv_heads,
        head_dim=model.head_size,
        rope_theta=model.rope_theta if rotary else 10_000.0,
        use_bias=tuple(name for name in BIASES if name in model.use_bias),
        sliding_window_pattern=pattern if any(pattern) else (),
        quirks=quirks,
    )


def _written(family: Family, model: ModelConfig) -> Json:
    config: Json = {"architectures": [family.architecture], "model_type": family.model_type}
    config |= {name: values[0] for name, values in family.only.items() if name not in _UNTURNED}
    plain = {"num_kv_heads": model.kv_heads, "head_dim": model.head_size}
    for field in family.fields:
        value = plain.get(field.ours, attrgetter(field.ours)(model))
        if field.biases:
            value = set(field.biases) <= set(model.use_bias)
        elif field.values is not None:
            theirs = [key for key, ours in field.values.items() if ours == value]
            value = theirs[0] if theirs else None
        config[field.theirs] = value
    config = {name: value for name, value in config.items() if value is not None}
    if scaling := config.get("rope_scaling"):
        config["rope_scaling"] = rope.written(scaling)
    return config | family.write(model)


def _value(field: Field, config: Json) -> Any:
    value = config.get(field.theirs)
    if value is None:
        value = field.default
    if value is _REQUIRED:
        raise UserError(f"the field {field.theirs} is missing")
    if field.values is None:
        return value
    if value not in field.values:
        known = ", ".join(map(repr, field.values))
        raise UserError(f"{field.theirs} = {value!r} is not implemented; known are {known}")
    return field.values[value]
