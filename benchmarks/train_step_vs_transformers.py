"""Train-step speed on the CPU against Hugging Face Transformers on PyTorch, side by side.

The same model (d 512, 8 layers, 8 heads, ffn 1408, vocabulary 32000), 8 x 512 tokens, float32,
forward, backward and AdamW on both sides, in turn in one process, so that a busy machine slows
both. Prints tokens/s of each pair and the ratio of the medians; the goal is a ratio of at least 1.

    python benchmarks/train_step_vs_transformers.py [--steps 5] [--threads 2]
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable
from functools import partial

from jaxllm.sharding.host import keep_freed_memory

keep_freed_memory()  # as the commands do; it has to come before JAX

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxllm.models.batch import Batch
from jaxllm.models.config import ModelConfig
from jaxllm.models.decoder import init_params
from jaxllm.models.scoring import token_loss


def jaxllm_step(config: ModelConfig, tokens: np.ndarray) -> Callable[[], float]:
    """A function that makes one training step and returns its loss."""
    rows, length = tokens.shape[0], tokens.shape[1] - 1
    batch = Batch(
        inputs=jnp.asarray(tokens[:, :-1]),
        targets=jnp.asarray(tokens[:, 1:]),
        weights=jnp.ones((rows, length), jnp.float32),
        positions=jnp.broadcast_to(jnp.arange(length), (rows, length)),
        segment_ids=jnp.ones((rows, length), jnp.int32),
        domains=jnp.zeros(rows, jnp.int32),
    )
    optimizer = optax.adamw(3e-4, weight_decay=0.1)

    @partial(jax.jit, donate_argnums=0)
    def step(state: tuple, batch: Batch) -> tuple[tuple, jax.Array]:
        params, moments = state

        def mean_loss(params: dict) -> jax.Array:
            return token_loss(config, params, batch)[0] / jnp.sum(batch.weights)

        loss, gradients = jax.value_and_grad(mean_loss)(params)
        updates, moments = optimizer.update(gradients, moments, params)
        return (optax.apply_updates(params, updates), moments), loss

    params = nn.unbox(jax.jit(partial(init_params, config))(jax.random.key(0)))
    state = (params, optimizer.init(params))

    def run() -> float:
        nonlocal state
        state, loss = step(state, batch)
        jax.block_until_ready(state)
        return float(loss)

    return run


def transformers_step(config: ModelConfig, tokens: np.ndarray, threads: int) -> Callable[[], float]:
    """The same with Transformers' LLaMA, its default attention, and PyTorch's fused AdamW."""
    import torch
    import transformers

    torch.set_num_threads(threads)
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=config.vocab_size,
            hidden_size=config.embed_dim,
            intermediate_size=config.mlp_dim,
            num_hidden_layers=config.num_layers,
            num_attention_heads=config.num_heads,
            use_cache=False,
        )
    ).float()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4, weight_decay=0.1, fused=True)
    inputs = torch.tensor(tokens[:, :-1], dtype=torch.long)
    targets = torch.tensor(tokens[:, 1:], dtype=torch.long)

    def run() -> float:
        optimizer.zero_grad(set_to_none=True)
        logits = model(inputs).logits
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())
        loss.backward()
        optimizer.step()
        return loss.item()

    return run


def main() -> None:
    flags = argparse.ArgumentParser(description=__doc__)
    flags.add_argument("--steps", type=int, default=5)
    flags.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    flags.add_argument("--scan_layers", type=int, default=0)
    flags.add_argument("--loss_chunk_tokens", type=int, default=1024)
    flags.add_argument("--attention_block", type=int, default=256)
    args = flags.parse_args()

    config = ModelConfig(
        vocab_size=32_000, num_layers=8, embed_dim=512, mlp_dim=1408, num_heads=8,
        scan_layers=bool(args.scan_layers), loss_chunk_tokens=args.loss_chunk_tokens,
        attention_block=args.attention_block,
    )  # fmt: skip
    tokens = np.random.default_rng(0).integers(0, config.vocab_size, (8, 513)).astype(np.int32)
    sides = {
        "jaxllm": jaxllm_step(config, tokens),
        "transformers": transformers_step(config, tokens, args.threads),
    }
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for step in range(args.steps + 1):
        for name, run in sides.items():
            start = time.perf_counter()
            loss = run()
            elapsed = time.perf_counter() - start
            if step:  # the first step compiles
                seconds[name].append(elapsed)
            label = step if step else "warm-up"
            print(f"{label:>7} {name:13} {elapsed:6.2f} s  loss {loss:.4f}", flush=True)
    speed = {name: 8 * 512 / statistics.median(times) for name, times in seconds.items()}
    for name, value in speed.items():
        print(f"{name:13} {value:8.0f} tokens/s")
    print(f"ratio jaxllm / transformers: {speed['jaxllm'] / speed['transformers']:.2f}")


if __name__ == "__main__":
    main()
