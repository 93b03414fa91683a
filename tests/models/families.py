"""A tiny model of every architecture family, with all of the family's options on."""

import dataclasses

from jaxllm.models.config import ModelConfig
from tests.models.helpers import TINY

_ODD = {"embed_dim": 60, "num_heads": 3, "num_kv_heads": None}
_ODD_GROUPS = {"embed_dim": 54, "num_heads": 9, "num_kv_heads": 3, "tied_head": True}
_GPT = {
    **_ODD, "position": "learned", "norm": "layer", "norm_eps": 1e-5, "mlp": "plain",
    "activation": "gelu_tanh", "attention_bias": True, "attention_output_bias": True,
    "mlp_bias": True, "tied_head": True, "num_layers": 3,
}  # fmt: skip
_OPT = {**_GPT, "position_offset": 2, "activation": "relu"}
_NEOX = {
    **_GPT, "position": "rotary", "rotary_fraction": 0.3, "activation": "gelu",
    "block": "parallel", "tied_head": False,
}  # fmt: skip
_NEO = {
    **_GPT, "attention_bias": False, "attention_scale": 1.0, "attention_windows": (0, 5),
    "init_stddev": 0.08,
}  # fmt: skip
_OLMO = {"norm": "layer_plain", "norm_eps": 1e-5}
_OLMO2 = {"norm_placement": "sublayer", "qk_norm": True, "rope_theta": 500_000.0}

# name -> (class in Transformers, config)
FAMILIES: dict[str, tuple[str, ModelConfig]] = {
    name: (kind, dataclasses.replace(TINY, **options))
    for name, (kind, options) in {
        "llama": ("Llama", {}),
        "llama_tied_odd_heads": ("Llama", {**_ODD_GROUPS, "head_dim": 10, "rope_theta": 500.0}),
        "opt": ("OPT", _OPT),
        "opt_350m": (
            "OPT",
            {**_OPT, "token_dim": 28, "norm_placement": "post", "final_norm": False},
        ),
        "neox_parallel": ("GPTNeoX", _NEOX),
        "neox_serial_tied": (
            "GPTNeoX",
            {**_NEOX, "block": "serial", "tied_head": True, "rotary_fraction": 1.0},
        ),
        "gpt2": ("GPT2", _GPT),
        "gpt_neo": ("GPTNeo", _NEO),
        "olmo_tied": ("Olmo", {**_OLMO, "tied_head": True}),
        "olmo_1_7": ("Olmo", {**_OLMO, "clip_qkv": 0.5}),
        "olmo2": ("Olmo2", {**_OLMO2, **_ODD_GROUPS, "head_dim": 6, "tied_head": False}),
    }.items()
}

BAICHUAN = {
    "baichuan_7b": dataclasses.replace(TINY, num_kv_heads=None),
    "baichuan_13b": dataclasses.replace(
        TINY, embed_dim=60, num_heads=10, num_kv_heads=None, position="alibi"
    ),
    "baichuan2_7b": dataclasses.replace(TINY, num_kv_heads=None, head_norm=True),
    "baichuan2_13b": dataclasses.replace(
        TINY, embed_dim=63, num_heads=7, num_kv_heads=None, position="alibi", head_norm=True
    ),
}

EVERY_CONFIG = {**{name: config for name, (_, config) in FAMILIES.items()}, **BAICHUAN}
