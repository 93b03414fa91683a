"""Decoding speed of a small and a large model combined, against the large one alone.

Two LLaMA shapes (by default 25M and 100M parameters), float32, greedy, on the same prompts, in turn
in one process, so that a busy machine slows both. Prints tokens/s of each pair and, per batch size,
the ratio of the medians; the goal is a ratio of at least 0.45, of which equal models would have
0.5.

    python benchmarks/combined_decoding.py [--new_tokens 64] [--pairs 5] [--batches 1 16]
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import time
from typing import Any

from jaxllm.runtime import tune_malloc

tune_malloc()  # as the commands do, before importing JAX

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxllm.models.combination import Combination, CombinedModel
from jaxllm.models.config import ModelConfig
from jaxllm.models.decoder import init_params, unstack_layers
from jaxllm.models.generation import Model, decode_n, start_decoding

LARGE = ModelConfig(
    vocab_size=32_000, num_layers=12, embed_dim=640, mlp_dim=1728, num_heads=10, max_length=1024
)  # fmt: skip
SMALL = dataclasses.replace(LARGE, num_layers=6, embed_dim=320, mlp_dim=864, num_heads=5)


def generate(model: Model, params: Any, prompts: jax.Array, lengths: jax.Array, count: int) -> Any:
    """The `count` tokens that greedy decoding adds to each prompt, int32 [B, count]."""
    state = start_decoding(model, params, prompts, lengths, count)
    return decode_n(model, params, state, count)[1]


def main() -> None:
    flags = argparse.ArgumentParser(description=__doc__)
    flags.add_argument("--batches", type=int, nargs="+", default=[1, 16])
    flags.add_argument("--prompt_tokens", type=int, default=64)
    flags.add_argument("--new_tokens", type=int, default=64)
    flags.add_argument("--pairs", type=int, default=5)
    flags.add_argument("--rule", default="probabilities:1,-1")
    args = flags.parse_args()

    small, large = (
        unstack_layers(nn.unbox(init_params(model, jax.random.key(0)))) for model in (SMALL, LARGE)
    )
    combined = CombinedModel((SMALL, LARGE), Combination.parse(args.rule, 2))
    print(f"{SMALL.num_params / 1e6:.1f}M and {LARGE.num_params / 1e6:.1f}M parameters")
    for batch in args.batches:
        shape = (batch, args.prompt_tokens)
        prompts = jnp.asarray(np.random.default_rng(batch).integers(0, 32_000, shape), jnp.int32)
        lengths = jnp.full(batch, args.prompt_tokens, jnp.int32)
        sides = {
            name: (jax.jit(lambda p, x, n, m=model: generate(m, p, x, n, args.new_tokens)), own)
            for name, model, own in (("both", combined, (small, large)), ("large", LARGE, large))
        }
        seconds: dict[str, list[float]] = {name: [] for name in sides}
        for pair in range(-1, args.pairs):  # the first compiles
            for name in list(sides)[:: 1 if pair % 2 == 0 else -1]:
                run, params = sides[name]
                start = time.perf_counter()
                run(params, prompts, lengths).block_until_ready()
                if pair >= 0:
                    seconds[name].append(time.perf_counter() - start)
        speed = {n: [batch * args.new_tokens / s for s in times] for n, times in seconds.items()}
        for both, alone in zip(*speed.values(), strict=True):
            print(f"batch {batch:3} both {both:7.1f}  large {alone:7.1f} tokens/s")
        medians = [statistics.median(values) for values in speed.values()]
        print(f"batch {batch:3}: ratio both / large: {medians[0] / medians[1]:.2f}", flush=True)


if __name__ == "__main__":
    main()
