"""Transformers' model of each family at our configuration, and our parameters under its names."""

from typing import Any

import jax
import numpy as np
import torch
import transformers

from jaxllm.models.config import ModelConfig

Names = dict[str, np.ndarray]
_ACTIVATIONS = {"silu": "silu", "gelu": "gelu", "gelu_tanh": "gelu_new", "relu": "relu"}


def reference(kind: str, config: ModelConfig, params: Any) -> Any:
    """The model in float32, with our parameters."""
    model = empty(kind, config).float().eval()
    model.load_state_dict(to_transformers(kind, config, params), strict=True)
    return model


def empty(kind: str, config: ModelConfig) -> Any:
    """The model of our shapes with parameters of its own, on torch's current device."""
    name = "GPT2LMHeadModel" if kind == "GPT2" else f"{kind}ForCausalLM"
    return getattr(transformers, name)(transformers_config(kind, config))


def transformers_config(kind: str, config: ModelConfig) -> Any:
    """Our configuration in the words of each class."""
    shared = {
        "vocab_size": config.vocab_size,
        "tie_word_embeddings": config.tie_embeddings,
        "attn_implementation": "eager",
        "bos_token_id": None,
        "eos_token_id": None,
        "pad_token_id": None,
    }
    rope = {
        "rope_type": "default",
        "rope_theta": config.rope_theta,
        "partial_rotary_factor": config.quirks.rotary_fraction,
    }
    shape = {
        "hidden_size": config.embed_dim,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "max_position_embeddings": config.max_length,
    }
    act = _ACTIVATIONS[config.activation]
    llama = {
        **shape,
        "intermediate_size": config.mlp_dim,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_size,
        "rope_parameters": rope,
        "hidden_act": act,
    }
    own: dict[str, Any] = {
        "Llama": {**llama, "rms_norm_eps": config.norm_eps},
        "Olmo": {**llama, "clip_qkv": config.quirks.clip_qkv},
        "Olmo2": {**llama, "rms_norm_eps": config.norm_eps},
        "Qwen3": {
            **llama,
            "rms_norm_eps": config.norm_eps,
            "attention_bias": "qkv" in config.use_bias,
        },
        "OPT": {
            **shape,
            "ffn_dim": config.mlp_dim,
            "word_embed_proj_dim": config.embedding_dim,
            "do_layer_norm_before": config.block_type != "post_norm",
            "_remove_final_layer_norm": not config.quirks.final_norm,
            "activation_function": act,
            "dropout": 0.0,
        },
        "GPTNeoX": {
            **shape,
            "intermediate_size": config.mlp_dim,
            "rope_parameters": rope,
            "use_parallel_residual": config.block_type == "parallel",
            "hidden_act": act,
            "layer_norm_eps": config.norm_eps,
        },
        "GPT2": {
            "n_embd": config.embed_dim,
            "n_layer": config.num_layers,
            "n_head": config.num_heads,
            "n_inner": config.mlp_dim,
            "n_positions": config.max_length,
            "activation_function": act,
            "resid_pdrop": 0.0,
            "embd_pdrop": 0.0,
            "attn_pdrop": 0.0,
        },
        "GPTNeo": {
            "hidden_size": config.embed_dim,
            "num_layers": config.num_layers,
            "num_heads": config.num_heads,
            "intermediate_size": config.mlp_dim,
            "max_position_embeddings": config.max_length,
            "attention_types": [
                [["local" if window else "global"], 1] for window in _windows(config)
            ],
            "window_size": max(config.sliding_window_pattern, default=256),
            "activation_function": act,
        },
    }
    return getattr(transformers, f"{kind}Config")(**shared, **own[kind])


def to_transformers(kind: str, config: ModelConfig, tree: Any) -> dict[str, torch.Tensor]:
    """Our tree of parameters (or gradients) under Transformers' names and in its layout."""
    tree = jax.tree.map(np.asarray, tree)
    top, per_layer = _MAPPINGS[kind]
    names: Names = top(tree)
    for i in range(config.num_layers):
        layer = jax.tree.map(lambda x, i=i: x[i], tree["layers"])
        prefix = {"OPT": "model.decoder.layers.", "GPTNeoX": "gpt_neox.layers."}.get(
            kind, "transformer.h." if kind.startswith("GPT") else "model.layers."
        )
        names |= {f"{prefix}{i}.{name}": value for name, value in per_layer(layer).items()}
    names["lm_head.weight"] = tree["embedding"] if config.tie_embeddings else tree["head"].T
    return {name: torch.tensor(np.ascontiguousarray(value)) for name, value in names.items()}


def _windows(config: ModelConfig) -> list[int]:
    cycle = config.sliding_window_pattern or (0,)
    return [cycle[i % len(cycle)] for i in range(config.num_layers)]


def _norm(name: str, norm: dict[str, np.ndarray]) -> Names:
    theirs = {"scale": "weight", "bias": "bias"}
    return {f"{name}.{theirs[part]}": value for part, value in norm.items()}


def _linear(name: str, part: dict[str, np.ndarray], key: str) -> Names:
    """[out, in] of torch, from any of our matrices and its bias, head axes flattened."""
    matrix = part[key]
    inner = matrix.shape[-1] if key == "output" else matrix.shape[0]
    flat = matrix.reshape(-1, inner).T if key == "output" else matrix.reshape(inner, -1).T
    names = {f"{name}.weight": flat}
    if f"{key}_bias" in part:
        names[f"{name}.bias"] = part[f"{key}_bias"].reshape(-1)
    return names


def _conv(name: str, *linears: Names) -> Names:
    """GPT-2's Conv1D: the transposed matrices side by side."""
    weights, biases = ([list(linear.values())[i] for linear in linears] for i in (0, 1))
    return {
        f"{name}.weight": np.concatenate(weights).T, f"{name}.bias": np.concatenate(biases)
    }  # fmt: skip


def _llama_top(tree: Any) -> Names:
    return {
        "model.embed_tokens.weight": tree["embedding"],
        **_norm("model.norm", tree.get("final_norm", {})),
    }


def _llama_layer(layer: Any) -> Names:
    return {
        **_projections("self_attn", layer["attention"], "o_proj"),
        **{k: v for part in ("gate", "up", "down") for k, v in _mlp(layer, part).items()},
        **_norm("input_layernorm", layer.get("attention_norm", {})),
        **_norm("post_attention_layernorm", layer.get("mlp_norm", {})),
    }


def _mlp(layer: Any, part: str) -> Names:
    return _linear(f"mlp.{part}_proj", layer["mlp"], part)


def _qwen3_layer(layer: Any) -> Names:
    return {
        **_llama_layer(layer),
        **_norm("self_attn.q_norm", layer["attention"]["query_norm"]),
        **_norm("self_attn.k_norm", layer["attention"]["key_norm"]),
    }


def _olmo2_layer(layer: Any) -> Names:
    names = _llama_layer({"attention": layer["attention"], "mlp": layer["mlp"]})
    return {
        **names,
        **_norm("self_attn.q_norm", layer["attention"]["query_norm"]),
        **_norm("self_attn.k_norm", layer["attention"]["key_norm"]),
        **_norm("post_attention_layernorm", layer["attention_norm"]),
        **_norm("post_feedforward_layernorm", layer["mlp_norm"]),
    }


def _projections(prefix: str, attention: Any, output: str) -> Names:
    return {
        **_linear(f"{prefix}.q_proj", attention, "query"),
        **_linear(f"{prefix}.k_proj", attention, "key"),
        **_linear(f"{prefix}.v_proj", attention, "value"),
        **_linear(f"{prefix}.{output}", attention, "output"),
    }


def _opt_top(tree: Any) -> Names:
    names = {
        "embed_tokens.weight": tree["embedding"],
        "embed_positions.weight": tree["position_embedding"],
        **_norm("final_layer_norm", tree.get("final_norm", {})),
    }
    for name in ("project_in", "project_out"):
        if name in tree:
            names[f"{name}.weight"] = tree[name].T
    return {f"model.decoder.{name}": value for name, value in names.items()}


def _opt_layer(layer: Any) -> Names:
    return {
        **_projections("self_attn", layer["attention"], "out_proj"),
        **_norm("self_attn_layer_norm", layer["attention_norm"]),
        **_linear("fc1", layer["mlp"], "up"),
        **_linear("fc2", layer["mlp"], "down"),
        **_norm("final_layer_norm", layer["mlp_norm"]),
    }


def _neox_top(tree: Any) -> Names:
    return {
        "gpt_neox.embed_in.weight": tree["embedding"],
        **_norm("gpt_neox.final_layer_norm", tree["final_norm"]),
    }


def _neox_layer(layer: Any) -> Names:
    attention = layer["attention"]
    parts = ("query", "key", "value")
    # each head's query, key and value rows follow one another
    weight = np.stack([attention[part] for part in parts], axis=2)  # [D, H, 3, K]
    bias = np.stack([attention[f"{part}_bias"] for part in parts], axis=1)  # [H, 3, K]
    return {
        "attention.query_key_value.weight": weight.reshape(weight.shape[0], -1).T,
        "attention.query_key_value.bias": bias.reshape(-1),
        **_linear("attention.dense", attention, "output"),
        **_norm("input_layernorm", layer["attention_norm"]),
        **_norm("post_attention_layernorm", layer["mlp_norm"]),
        **_linear("mlp.dense_h_to_4h", layer["mlp"], "up"),
        **_linear("mlp.dense_4h_to_h", layer["mlp"], "down"),
    }


def _gpt_top(tree: Any) -> Names:
    return {
        "transformer.wte.weight": tree["embedding"],
        "transformer.wpe.weight": tree["position_embedding"],
        **_norm("transformer.ln_f", tree["final_norm"]),
    }


def _gpt2_layer(layer: Any) -> Names:
    attention, mlp = layer["attention"], layer["mlp"]
    return {
        **_conv("attn.c_attn", *(_linear("", attention, p) for p in ("query", "key", "value"))),
        **_conv("attn.c_proj", _linear("", attention, "output")),
        **_conv("mlp.c_fc", _linear("", mlp, "up")),
        **_conv("mlp.c_proj", _linear("", mlp, "down")),
        **_norm("ln_1", layer["attention_norm"]),
        **_norm("ln_2", layer["mlp_norm"]),
    }


def _neo_layer(layer: Any) -> Names:
    return {
        **_projections("attn.attention", layer["attention"], "out_proj"),
        **_linear("mlp.c_fc", layer["mlp"], "up"),
        **_linear("mlp.c_proj", layer["mlp"], "down"),
        **_norm("ln_1", layer["attention_norm"]),
        **_norm("ln_2", layer["mlp_norm"]),
    }


_MAPPINGS = {
    "Llama": (_llama_top, _llama_layer),
    "Olmo": (_llama_top, _llama_layer),
    "Olmo2": (_llama_top, _olmo2_layer),
    "Qwen3": (_llama_top, _qwen3_layer),
    "OPT": (_opt_top, _opt_layer),
    "GPTNeoX": (_neox_top, _neox_layer),
    "GPT2": (_gpt_top, _gpt2_layer),
    "GPTNeo": (_gpt_top, _neo_layer),
}
