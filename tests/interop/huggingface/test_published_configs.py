"""config.json of published models, as Transformers 4 writes it, gives their ModelConfig."""

import pytest

from jaxllm.errors import UserError
from jaxllm.interop.huggingface.fields import to_model
from jaxllm.models.config import RopeScaling


def test_published_configs_are_read_as_they_were_written() -> None:
    """Baichuan 2 7B and Pythia, in the words of Transformers 4."""
    baichuan = to_model(
        {
            "architectures": ["BaichuanForCausalLM"], "hidden_act": "silu", "hidden_size": 4096,
            "initializer_range": 0.02, "intermediate_size": 11008, "max_position_embeddings": 4096,
            "model_max_length": 4096, "model_type": "baichuan", "num_attention_heads": 32,
            "num_hidden_layers": 32, "rms_norm_eps": 1e-6, "tie_word_embeddings": False,
            "vocab_size": 125696, "z_loss_weight": 0,
        }
    )  # fmt: skip
    assert (
        baichuan.quirks.normalize_lm_head,
        baichuan.position_embedding,
        baichuan.max_length,
    ) == (True, "rotary", 4096)
    pythia = to_model(
        {
            "architectures": ["GPTNeoXForCausalLM"], "hidden_act": "gelu", "hidden_size": 512,
            "intermediate_size": 2048, "layer_norm_eps": 1e-5, "max_position_embeddings": 2048,
            "num_attention_heads": 8, "num_hidden_layers": 6, "rotary_emb_base": 10000,
            "rotary_pct": 0.25, "tie_word_embeddings": False, "use_parallel_residual": True,
            "vocab_size": 50304,
        }
    )  # fmt: skip
    assert (pythia.block_type, pythia.quirks.rotary_fraction, pythia.mlp_type) == (
        "parallel",
        0.25,
        "plain",
    )


def test_model_type_names_the_architecture_where_config_json_lists_none() -> None:
    """Llama 3.1 8B as Transformers 4 writes it, and a Mistral, both without `architectures`."""
    shape = {
        "hidden_size": 4096, "intermediate_size": 14336, "num_attention_heads": 32,
        "num_hidden_layers": 32, "num_key_value_heads": 8, "vocab_size": 128256,
        "max_position_embeddings": 131072,
    }  # fmt: skip
    scaling = {
        "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192, "rope_type": "llama3",
    }  # fmt: skip
    llama = to_model(
        {**shape, "model_type": "llama", "rope_scaling": scaling, "rope_theta": 500000.0}
    )
    assert llama.quirks.rope_scaling == RopeScaling("llama3", 8.0, 8192)
    assert llama.rope_theta == 500_000 and llama.num_params == 8_030_261_248
    mistral = to_model({**shape, "model_type": "mistral", "vocab_size": 32000})
    assert mistral.sliding_window_pattern == (4096,) and mistral.num_params == 7_241_732_096
    with pytest.raises(UserError, match=r"model_type = 'mamba' is not implemented; known are bai"):
        to_model({**shape, "model_type": "mamba"})
