"""Conversion config.json <-> ModelConfig for the supported architectures.

Reading is strict about fields that change the logits: an unsupported value is an error that names
it. Writing reads the new config.json back, which finds and names any field that the architecture
cannot express.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from operator import attrgetter
from typing import Any

from jaxllm.errors import UserError
from jaxllm.interop.huggingface.architectures import (
    FAMILIES,
    REQUIRED,
    ROPE_SCALING,
    Family,
    Field,
    Json,
)
from jaxllm.models.config import BIASES, ModelConfig, Quirks, RopeScaling

# Supported values of fields of any architecture, Transformers' default first.
_SUPPORTED: dict[str, tuple[Any, ...]] = {
    "quantization_config": (None,), "sliding_window": (None,), "use_sliding_window": (False,),
    "is_encoder_decoder": (False,), "add_cross_attention": (False,), "logit_scale": (None, 1.0),
    "attn_logit_softcapping": (None,), "final_logit_softcapping": (None,), "num_experts": (None,),
    "num_local_experts": (None,), "qk_layernorm": (False,), "partial_rotary_factor": (1.0,),
}  # fmt: skip
_DEFAULTS: Json = {
    field.name: field.default for field in dataclasses.fields(ModelConfig) if field.name != "quirks"
} | {f"quirks.{field.name}": field.default for field in dataclasses.fields(Quirks)}

# These do not change the function that a model computes.
_EXECUTION_FIELDS = {"dtype", "param_dtype", "init_stddev", "remat", "scan_layers"}

_LENGTHS = {"factor": "factor", "original_max_position_embeddings": "original_length"}
_ROPE_KEYS: Mapping[str, Mapping[str, str]] = {  # rope_type -> its keys -> RopeScaling's
    "linear": {"factor": "factor"},
    "llama3": _LENGTHS | {name: name for name in ("low_freq_factor", "high_freq_factor")},
    "yarn": _LENGTHS | {name: name for name in ("beta_fast", "beta_slow", "attention_factor")},
}


def family_of(config: Mapping[str, Any]) -> Family:
    """The family of an architecture, or else of a model type; UserError if it is unknown."""
    known: Mapping[str, Family] = FAMILIES
    if names := config.get("architectures"):
        field, name = f"architectures = {names}", names[0]
    else:
        name = config.get("model_type")
        field = f"model_type = {name!r}"
        known = {family.model_type: family for family in reversed(FAMILIES.values())}
    if name not in known:
        listed = known if names else sorted(known)
        raise UserError(f"{field} is not implemented; known are {', '.join(listed)}")
    return known[name]


def to_model(config: Json) -> ModelConfig:
    """The ModelConfig of a config.json; UserError names a field that is not supported."""
    family = family_of(config)
    config = _flat_rope(config)
    if config["rope_scaling"] and ROPE_SCALING not in family.fields:
        raise UserError(f"rope_scaling of {family.architecture} is not implemented")
    for name, values in {**_SUPPORTED, **family.supported}.items():
        if name not in family.implements:
            _check(name, config.get(name), (*values, None))
    # All fields are set explicitly, because gin bindings apply to the others.
    fields: Json = {**_DEFAULTS, **family.fixed}
    for field in family.fields:
        value = _value(field, config)
        if field.biases:
            fields["use_bias"] += field.biases if value else ()
        else:
            fields[field.name] = value
    fields |= family.read(config)
    quirks = {
        name.split(".")[1]: fields.pop(name) for name in _DEFAULTS if name.startswith("quirks.")
    }
    return ModelConfig(**fields, quirks=Quirks(**quirks))


def to_config(model: ModelConfig, architecture: str | None = None) -> Json:
    """The config.json of a model, for `architecture` or the first that can express it.

    UserError names a field of ModelConfig that it cannot express.
    """
    if architecture is not None and architecture not in FAMILIES:
        raise UserError(f"no architecture {architecture}; known are {', '.join(FAMILIES)}")
    misfits: list[tuple[int, str, str]] = []
    for name in [architecture] if architecture else FAMILIES:
        config = _written(FAMILIES[name], model)
        try:
            different = differences(model, to_model(config))
        except UserError:  # cannot be read back
            continue
        if not different:
            return config
        misfits.append((len(different), name, different[0]))
    if not misfits:
        raise UserError(f"{architecture or 'every architecture'} lacks what this model has")
    _, name, field = min(misfits, key=lambda misfit: misfit[0])
    value = attrgetter(field)(model)
    raise UserError(f"{name}, the nearest architecture, has no ModelConfig.{field} = {value!r}")


def differences(a: ModelConfig, b: ModelConfig) -> list[str]:
    """The names of differing fields that change the function of the parameters."""
    a, b = _canonical(a), _canonical(b)
    names = [name for name in _DEFAULTS if name not in _EXECUTION_FIELDS]
    return [name for name in names if attrgetter(name)(a) != attrgetter(name)(b)]


def _canonical(model: ModelConfig) -> ModelConfig:
    """The model with defaults filled in and fields without effect reset."""
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
    config |= {name: values[0] for name, values in family.supported.items()}
    explicit = {"num_kv_heads": model.kv_heads, "head_dim": model.head_size}
    for field in family.fields:
        value = explicit.get(field.name, attrgetter(field.name)(model))
        if field.biases:
            value = set(field.biases) <= set(model.use_bias)
        elif field.values is not None:
            value = next((hf for hf, own in field.values.items() if own == value), None)
        config[field.hf_name] = value
    if scaling := config.get("rope_scaling"):
        keys = {key: getattr(scaling, name) for key, name in _ROPE_KEYS[scaling.kind].items()}
        config["rope_scaling"] = {"rope_type": scaling.kind, **_without_none(keys)}
    return _without_none(config) | family.write(model)


def _value(field: Field, config: Json) -> Any:
    value = config.get(field.hf_name)
    if value is None:
        value = field.default
    if value is REQUIRED:
        raise UserError(f"the field {field.hf_name} is missing")
    if field.values is None:
        return value
    _check(field.hf_name, value, field.values)
    return field.values[value]


def _check(name: str, value: Any, supported: Iterable[Any]) -> None:
    if value not in (values := list(supported)):
        known = ", ".join(repr(known) for known in values if known is not None)
        hint = f"; known are {known}" if known else ""
        raise UserError(f"{name} = {value!r} is not implemented{hint}")


def _flat_rope(config: Json) -> Json:
    """Convert the RoPE fields of Transformers 4 and 5 to one form; `rope_scaling` is a RopeScaling.

    Transformers 5 has `rope_theta` and `partial_rotary_factor` in `rope_parameters`.
    """
    config = dict(config)
    parts = [config.pop(name, None) or {} for name in ("rope_parameters", "rope_scaling")]
    if not all(isinstance(part, Mapping) for part in parts):
        raise UserError(f"rope_scaling = {parts[1]!r}: must be an object")
    rope = {**parts[0], **parts[1]}
    old = rope.pop("type", None)
    kind = rope.pop("rope_type", None) or old or "default"
    for name in ("rope_theta", "partial_rotary_factor"):
        if name in rope:
            config[name] = rope.pop(name)
    for neox, name in (("rotary_emb_base", "rope_theta"), ("rotary_pct", "partial_rotary_factor")):
        if name in config:
            config.setdefault(neox, config[name])
    config["rope_scaling"] = None if kind == "default" else _rope_scaling(kind, rope, config)
    return config


def _rope_scaling(kind: str, rope: Json, config: Json) -> RopeScaling:
    keys = _ROPE_KEYS.get(kind, {})
    unknown = sorted(set(rope) - set(keys))
    if not keys or unknown:
        culprit = unknown if keys else f"rope_type = {kind!r}"
        raise UserError(f"rope_scaling: {culprit} is not implemented")
    if "original_length" in keys.values():  # Transformers' default: the context length
        length = config.get("max_position_embeddings")
        rope = {"original_max_position_embeddings": length} | rope
    if rope.get("factor") is None:
        raise UserError("rope_scaling: the field factor is missing")
    fields: Json = {keys[key]: value for key, value in _without_none(rope).items()}
    return RopeScaling(**fields | {"kind": kind})


def _without_none(values: Json) -> Json:
    return {name: value for name, value in values.items() if value is not None}
