"""Tiny models of Transformers, with weights large enough that a wrong layout shows."""

from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from jaxllm.models.decoder import logits
from jaxllm.sharding.mesh import MeshConfig, make_mesh
from tests.models.helpers import random_batch

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

_COMMON = {
    "vocab_size": 97, "hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 6,
    "max_position_embeddings": 64, "bos_token_id": 3, "eos_token_id": 1, "pad_token_id": 0,
}  # fmt: skip
_IDS = {key: value for key, value in _COMMON.items() if key.endswith("_id")}
_LLAMA = {**_COMMON, "intermediate_size": 80, "num_key_value_heads": 2}
_ROPE = {
    "linear": {"factor": 3.0},
    "llama3": {
        "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 16,
    },
    "yarn": {
        "factor": 4.0, "original_max_position_embeddings": 16, "beta_fast": 2.0, "beta_slow": 0.5
    },
}  # fmt: skip
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {**_LLAMA, "head_dim": 10, "rms_norm_eps": 1e-5}),
    "llama_biased_tied": (
        "Llama",
        {**_LLAMA, "attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True},
    ),
    "opt": ("OPT", {**_COMMON, "ffn_dim": 80}),
    "opt_350m": (
        "OPT",
        {**_COMMON, "ffn_dim": 80, "word_embed_proj_dim": 24, "do_layer_norm_before": False},
    ),
    "neox": ("GPTNeoX", {**_COMMON, "intermediate_size": 80}),
    "neox_serial": (
        "GPTNeoX",
        {
            **_COMMON, "intermediate_size": 80, "use_parallel_residual": False,
            "attention_bias": False,
            "rope_parameters": {
                "rope_type": "default", "rope_theta": 500.0, "partial_rotary_factor": 0.5
            },
        },
    ),
    "gpt2": ("GPT2", {**_IDS, "vocab_size": 97, "n_embd": 48, "n_layer": 3, "n_head": 6,
                      "n_positions": 64}),
    "gpt_neo": ("GPTNeo", {**_IDS, "vocab_size": 97, "hidden_size": 48, "num_layers": 4,
                           "num_heads": 6, "max_position_embeddings": 64, "window_size": 7,
                           "attention_types": [[["global", "local"], 2]]}),
    "olmo": ("Olmo", {**_LLAMA, "clip_qkv": 0.7}),
    "olmo2": ("Olmo2", _LLAMA),
    "mistral": ("Mistral", {**_LLAMA, "sliding_window": 7}),
    **{
        f"llama_{kind}": (
            "Llama", {**_LLAMA, "rope_parameters": {"rope_type": kind, "rope_theta": 500.0, **keys}}
        )
        for kind, keys in _ROPE.items()
    },
    "qwen3": ("Qwen3", {**_LLAMA, "head_dim": 10, "rms_norm_eps": 1e-5}),
}  # fmt: skip


def make(name: str, seed: int = 0) -> Any:
    """A random float32 model of Transformers."""
    kind, fields = MODELS[name]
    config = getattr(transformers, f"{kind}Config")(**fields)
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.15 * torch.randn(parameter.shape, generator=generator)
    return model.eval()


def save(name: str, directory: Path, dtype: str = "float32", seed: int = 0) -> Any:
    """Saves a random model in several shards; returns it."""
    model = make(name, seed).to(getattr(torch, dtype))
    model.save_pretrained(directory, max_shard_size="40KB")
    assert len(list(directory.glob("*.safetensors"))) > 1
    return model


def mesh() -> jax.sharding.Mesh:
    return make_mesh(MeshConfig(fsdp=2, tensor=2), jax.devices()[:4])


def their_logits(model: Any, tokens: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return model.float()(torch.tensor(tokens, dtype=torch.long)).logits.numpy()


def check_logits(config: Any, params: Any, model: Any) -> None:
    """Ours are those of Transformers to 1e-4 of 1 plus their size."""
    batch = random_batch(config, rows=2, length=29)
    ours = jax.jit(lambda p: logits(config, p, batch))(params)
    theirs = their_logits(model, np.asarray(batch.inputs))
    assert theirs.std() > 0.1
    np.testing.assert_allclose(ours, theirs, atol=1e-4, rtol=1e-4)


def tensors(directory: Path) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    """Every tensor of a directory's safetensors files: type, shape and bytes, read by torch."""
    from safetensors.torch import load_file

    found = {}
    for file in sorted(directory.glob("*.safetensors")):
        for name, tensor in load_file(file).items():
            raw = tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes()
            found[name] = (str(tensor.dtype), tuple(tensor.shape), raw)
    return found
