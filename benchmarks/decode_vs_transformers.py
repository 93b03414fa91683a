"""Decoding speed on the CPU against Hugging Face Transformers' `generate`, side by side.

The same LLaMA shape of 100M parameters (d 640, 12 layers, 10 heads, ffn 1728, vocabulary 32000),
float32, greedy, both with a KV cache, on the same prompts, in turn in one process, so that a busy
machine slows both. Prints tokens/s of each pair and, per batch size, the ratio of the medians; the
goal is a ratio of at least 1 at batch 1 and at batch 16.

    python benchmarks/decode_vs_transformers.py [--new_tokens 64] [--pairs 5] [--threads 2]
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable

from jaxllm.runtime import tune_malloc

tune_malloc()  # as the commands do, before importing JAX

import jax
import jax.numpy as jnp
import numpy as np

from jaxllm.interop import huggingface
from jaxllm.models.config import ModelConfig
from jaxllm.models.decoder import Params, unstack_layers
from jaxllm.models.generation import decode_n, start_decoding
from jaxllm.sharding.mesh import MeshConfig, make_mesh

MODEL = ModelConfig(
    vocab_size=32_000, num_layers=12, embed_dim=640, mlp_dim=1728, num_heads=10, max_length=1024
)  # fmt: skip


def jaxllm_side(params: Params, prompts: np.ndarray, new_tokens: int) -> Callable[[], np.ndarray]:
    """Build a function that continues the prompts and returns the new tokens [B, new_tokens]."""
    lengths = jnp.full(len(prompts), prompts.shape[1], jnp.int32)

    @jax.jit
    def run(params: Params, prompts: jax.Array) -> jax.Array:
        state = start_decoding(MODEL, params, prompts, lengths, new_tokens)
        return decode_n(MODEL, params, state, new_tokens)[1]

    return lambda: np.asarray(run(params, jnp.asarray(prompts)))


def transformers_model(directory: str) -> object:
    """Transformers' LLaMA with random weights, saved into `directory` for jaxllm to load."""
    import torch
    import transformers

    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=MODEL.vocab_size,
            hidden_size=MODEL.embed_dim,
            intermediate_size=MODEL.mlp_dim,
            num_hidden_layers=MODEL.num_layers,
            num_attention_heads=MODEL.num_heads,
            rms_norm_eps=MODEL.norm_eps,
            max_position_embeddings=MODEL.max_length,
            tie_word_embeddings=False,
        )
    ).float()
    model.save_pretrained(directory)
    return model.eval()


def transformers_side(model: object, prompts: np.ndarray, new_tokens: int) -> Callable:
    """The same with Transformers' `generate`, its default attention and its default cache."""
    import torch

    inputs = torch.tensor(prompts, dtype=torch.long)

    def run() -> np.ndarray:
        with torch.inference_mode():
            output = model.generate(  # type: ignore[attr-defined]
                inputs,
                attention_mask=torch.ones_like(inputs),
                max_new_tokens=new_tokens,
                min_new_tokens=new_tokens,
                do_sample=False,
                use_cache=True,
                pad_token_id=0,
            )
        return output[:, prompts.shape[1] :].numpy()

    return run


def main() -> None:
    flags = argparse.ArgumentParser(description=__doc__)
    flags.add_argument("--batches", type=int, nargs="+", default=[1, 16])
    flags.add_argument("--prompt_tokens", type=int, default=64)
    flags.add_argument("--new_tokens", type=int, default=64)
    flags.add_argument("--pairs", type=int, default=5)
    flags.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    args = flags.parse_args()

    import torch

    torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory() as directory:
        model = transformers_model(directory)
        found, params = huggingface.load(directory, make_mesh(MeshConfig(), jax.devices()[:1]))
    assert found.num_params == MODEL.num_params
    params = unstack_layers(params)
    print(f"{MODEL.num_params / 1e6:.1f}M parameters, {args.threads} threads")
    for batch in args.batches:
        random = np.random.default_rng(batch)
        prompts = random.integers(0, MODEL.vocab_size, (batch, args.prompt_tokens)).astype(np.int32)
        sides = {
            "jaxllm": jaxllm_side(params, prompts, args.new_tokens),
            "transformers": transformers_side(model, prompts, args.new_tokens),
        }
        texts = {name: run() for name, run in sides.items()}  # the first call compiles
        same = float(np.mean(texts["jaxllm"] == texts["transformers"]))
        seconds: dict[str, list[float]] = {name: [] for name in sides}
        for pair in range(args.pairs):
            for name in list(sides)[:: 1 if pair % 2 == 0 else -1]:
                start = time.perf_counter()
                sides[name]()
                seconds[name].append(time.perf_counter() - start)
        speed = {
            name: [batch * args.new_tokens / s for s in times] for name, times in seconds.items()
        }
        for ours, theirs in zip(*speed.values(), strict=True):
            print(f"batch {batch:3} jaxllm {ours:7.1f}  transformers {theirs:7.1f} tokens/s")
        medians = [statistics.median(values) for values in speed.values()]
        print(
            f"batch {batch:3}: {same:.1%} of the tokens equal, "
            f"ratio jaxllm / transformers: {medians[0] / medians[1]:.2f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
