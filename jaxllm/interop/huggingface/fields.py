"""Conversion config.json <-> ModelConfig for the supported architectures.

Reading is strict about fields that change the logits: an unsupported value is an error that names
it. Writing reads the new config.json back, which finds and names any field that the architecture
cannot express.
"""

from __future__ import annotations

import dataclasses
from operator import attrgetter
from typing import Any

from jaxllm.errors import UserError
from jaxllm.interop.huggingface import rope
from jaxllm.interop.huggingface.architectures import (
    FAMILIES,
    FULL_ROTARY,
    REQUIRED,
    ROPE_SCALING,
    Family,
    Field,
    Json,
)
from jaxllm.models.config import BIASES, ModelConfig, Quirks

_UNSUPPORTED: dict[str, tuple[Any, ...]] = {
    "quantization_config": (None,), "sliding_window": (None,), "use_sliding_window": (False,),
    "is_encoder_decoder": (False,), "add_cross_attention": (False,), "logit_scale": (None, 1.0),
    "attn_logit_softcapping": (None,), "final_logit_softcapping": (None,), "num_experts": (None,),
    "num_local_experts": (None,), "qk_layernorm": (False,),
}  # fmt: skip
DEFAULTS: Json = {
    field.name: field.default for field in dataclasses.fields(ModelConfig) if field.name != "quirks"
} | {f"quirks.{field.name}": field.default for field in dataclasses.fields(Quirks)}

# These do not change the function that a model computes.
_EXECUTION_FIELDS = {"dtype", "param_dtype", "init_stddev", "remat", "scan_layers"}


def family_of(config: Json) -> Family:
    """The family of config.json's architecture.

    Raises:
      UserError: the architecture is missing or not supported.
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
    """The ModelConfig of a config.json.

    Raises:
      UserError: a field is missing or has an unsupported value; the message names it.
    """
    family = family_of(config)
    config = rope.flattened(config)
    if config["rope_scaling"] and ROPE_SCALING not in family.fields:
        raise UserError(f"rope_scaling of {family.architecture} is not implemented")
    for name, values in {**_UNSUPPORTED, **family.supported}.items():
        if name in family.implements:
            continue
        if config.get(name, values[0]) not in (*values, None):
            raise UserError(f"{name} = {config[name]!r} is not implemented")
    # All fields are set explicitly, because gin bindings apply to the others.
    fields: Json = {**DEFAULTS, **family.fixed}
    for field in family.fields:
        value = _value(field, config)
        if field.biases:
            fields["use_bias"] += field.biases if value else ()
        else:
            fields[field.name] = value
    fields |= family.read(config)
    quirks = {
        name.split(".")[1]: fields.pop(name) for name in DEFAULTS if name.startswith("quirks.")
    }
    return ModelConfig(**fields, quirks=Quirks(**quirks))


def to_config(model: ModelConfig, architecture: str | None = None) -> Json:
    """The config.json of a model, for `architecture` or the first that can express it.

    Raises:
      UserError: it cannot express a field of ModelConfig; the message names both.
    """
    if architecture is not None and architecture not in FAMILIES:
        raise UserError(f"no architecture {architecture}; known are {', '.join(FAMILIES)}")
    complaints = []
    for name in [architecture] if architecture else FAMILIES:
        config = _written(FAMILIES[name], model)
        try:
            different = differences(model, to_model(config))
        except UserError:  # cannot be read back
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
    """The names of differing fields that change the function of the parameters."""
    a, b = _plain(a), _plain(b)
    names = [name for name in DEFAULTS if name not in _EXECUTION_FIELDS]
    return [name for name in names if attrgetter(name)(a) != attrgetter(name)(b)]


def _plain(model: ModelConfig) -> ModelConfig:
    """The canonical form of a model: defaults filled in, fields without effect reset."""
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
    config |= {
        name: values[0] for name, values in family.supported.items() if name not in FULL_ROTARY
    }
    plain = {"num_kv_heads": model.kv_heads, "head_dim": model.head_size}
    for field in family.fields:
        value = plain.get(field.name, attrgetter(field.name)(model))
        if field.biases:
            value = set(field.biases) <= set(model.use_bias)
        elif field.values is not None:
            value = next((hf for hf, own in field.values.items() if own == value), None)
        config[field.hf_name] = value
    config = {name: value for name, value in config.items() if value is not None}
    if scaling := config.get("rope_scaling"):
        config["rope_scaling"] = rope.written(scaling)
    return config | family.write(model)


def _value(field: Field, config: Json) -> Any:
    value = config.get(field.hf_name)
    if value is None:
        value = field.default
    if value is REQUIRED:
        raise UserError(f"the field {field.hf_name} is missing")
    if field.values is None:
        return value
    if value not in field.values:
        known = ", ".join(map(repr, field.values))
        raise UserError(f"{field.hf_name} = {value!r} is not implemented; known are {known}")
    return field.values[value]
