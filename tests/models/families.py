"""A tiny model of every architecture family, with all of the family's options on."""

import dataclasses

from jaxllm.models.config import BIASES, ModelConfig, Quirks
from tests.models.helpers import TINY

_ODD = {"embed_dim": 60, "num_heads": 3, "num_kv_heads": None}
_ODD_GROUPS = {"embed_dim": 54, "num_heads": 9, "num_kv_heads": 3, "tie_embeddings": True}
_GPT = {
    **_ODD, "position_embedding": "learned", "norm": "layer", "norm_eps": 1e-5,
    "mlp_type": "plain", "activation": "gelu_tanh", "use_bias": BIASES, "tie_embeddings": True,
    "num_layers": 3,
}  # fmt: skip
_OPT = {**_GPT, "quirks": Quirks(position_offset=2), "activation": "relu"}
_NEOX = {
    **_GPT, "position_embedding": "rotary", "quirks": Quirks(rotary_fraction=0.3),
    "activation": "gelu", "block_type": "parallel", "tie_embeddings": False,
}  # fmt: skip
_NEO = {
    **_GPT, "use_bias": ("attention_output", "mlp"), "quirks": Quirks(attention_scale=1.0),
    "sliding_window_pattern": (0, 5), "init_stddev": 0.08,
}  # fmt: skip
_QKVO = ("qkv", "attention_output")
_OLMO = {"norm": "layer_plain", "norm_eps": 1e-5}
_OLMO2 = {"block_type": "reordered_norm", "qk_norm": "all_heads", "rope_theta": 500_000.0}

# name -> (class in Transformers, config)
FAMILIES: dict[str, tuple[str, ModelConfig]] = {
    name: (kind, dataclasses.replace(TINY, **options))
    for name, (kind, options) in {
        "llama": ("Llama", {}),
        "llama_tied_odd_heads": ("Llama", {**_ODD_GROUPS, "head_dim": 10, "rope_theta": 500.0}),
        "opt": ("OPT", _OPT),
        "opt_350m": (
            "OPT",
            {
                **_OPT,
                "block_type": "post_norm",
                "quirks": Quirks(position_offset=2, embedding_dim=28, final_norm=False),
            },
        ),
        "neox_parallel": ("GPTNeoX", _NEOX),
        "neox_serial_tied": (
            "GPTNeoX",
            {**_NEOX, "block_type": "pre_norm", "tie_embeddings": True, "quirks": Quirks()},
        ),
        "gpt2": ("GPT2", _GPT),
        "gpt_neo": ("GPTNeo", _NEO),
        "olmo_tied": ("Olmo", {**_OLMO, "tie_embeddings": True}),
        "olmo_1_7": ("Olmo", {**_OLMO, "quirks": Quirks(clip_qkv=0.5)}),
        "qwen3": ("Qwen3", {"qk_norm": "per_head", "head_dim": 10, "use_bias": _QKVO}),
        "olmo2": ("Olmo2", {**_OLMO2, **_ODD_GROUPS, "head_dim": 6, "tie_embeddings": False}),
    }.items()
}

BAICHUAN = {
    "baichuan_7b": dataclasses.replace(TINY, num_kv_heads=None),
    "baichuan_13b": dataclasses.replace(
        TINY, embed_dim=60, num_heads=10, num_kv_heads=None, position_embedding="alibi"
    ),
    "baichuan2_7b": dataclasses.replace(
        TINY, num_kv_heads=None, quirks=Quirks(normalize_lm_head=True)
    ),
    "baichuan2_13b": dataclasses.replace(
        TINY,
        embed_dim=63,
        num_heads=7,
        num_kv_heads=None,
        position_embedding="alibi",
        quirks=Quirks(normalize_lm_head=True),
    ),
}

EVERY_CONFIG = {**{name: config for name, (_, config) in FAMILIES.items()}, **BAICHUAN}
