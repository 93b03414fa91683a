"""RoPE and its frequency scaling in config.json, in the formats of Transformers 4 and 5."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jaxllm.errors import UserError
from jaxllm.models.config import RopeScaling

Json = dict[str, Any]

_LENGTHS = {"factor": "factor", "original_max_position_embeddings": "original_length"}
_KEYS: Mapping[str, Mapping[str, str]] = {  # rope_type -> its keys -> RopeScaling's
    "linear": {"factor": "factor"},
    "llama3": _LENGTHS | {name: name for name in ("low_freq_factor", "high_freq_factor")},
    "yarn": _LENGTHS | {name: name for name in ("beta_fast", "beta_slow", "attention_factor")},
}


def flattened(config: Json) -> Json:
    """Convert the RoPE fields of Transformers 4 and 5 to one flat form.

    Its `rope_scaling` is a RopeScaling or None.
    """
    config = dict(config)
    parts = [config.pop(name, None) or {} for name in ("rope_parameters", "rope_scaling")]
    if not all(isinstance(part, Mapping) for part in parts):
        raise UserError(f"rope_scaling = {parts[1]!r}: must be an object")
    rope = {**parts[0], **parts[1]}
    kind = rope.pop("rope_type", None) or rope.get("type") or "default"
    rope.pop("type", None)
    for name in ("rope_theta", "partial_rotary_factor"):
        if name in rope:
            config[name] = rope.pop(name)
    for old, new in (("rotary_emb_base", "rope_theta"), ("rotary_pct", "partial_rotary_factor")):
        if new in config:
            config.setdefault(old, config[new])
    config["rope_scaling"] = None
    if kind != "default":
        config["rope_scaling"] = _rope_scaling(kind, rope, config)
    return config


def _rope_scaling(kind: str, rope: Json, config: Json) -> RopeScaling:
    keys = _KEYS.get(kind)
    unknown = sorted(set(rope) - set(keys)) if keys else []
    if keys is None or unknown:
        raise UserError(f"rope_scaling: {unknown or f'rope_type = {kind!r}'} is not implemented")
    if "original_length" in keys.values():  # Transformers' default: the context length
        length = config.get("max_position_embeddings")
        rope = {"original_max_position_embeddings": length} | rope
    given = {keys[key]: value for key, value in rope.items() if value is not None}
    if "factor" not in given:
        raise UserError("rope_scaling: the field factor is missing")
    return RopeScaling(kind=kind, **given)


def written(scaling: RopeScaling) -> Json:
    """The `rope_scaling` object of config.json."""
    keys = {key: getattr(scaling, name) for key, name in _KEYS[scaling.kind].items()}
    set_keys = {key: value for key, value in keys.items() if value is not None}
    return {"rope_type": scaling.kind, **set_keys}
