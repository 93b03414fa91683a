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

from jaxllm.runtime import tune_malloc

tune_malloc()  # as the commands do, before importing JAX

import torch
from train_steps import jaxllm_step, random_tokens, transformers_step

from jaxllm.models.config import ModelConfig


def main() -> None:
    flags = argparse.ArgumentParser(description=__doc__)
    flags.add_argument("--steps", type=int, default=5)
    flags.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    flags.add_argument("--scan_layers", type=int, default=0)
    args = flags.parse_args()

    config = ModelConfig(
        vocab_size=32_000, num_layers=8, embed_dim=512, mlp_dim=1408, num_heads=8,
        scan_layers=bool(args.scan_layers),
    )  # fmt: skip
    torch.set_num_threads(args.threads)
    tokens = random_tokens(config, 8, 512)
    sides = {
        "jaxllm": jaxllm_step(config, tokens),
        "transformers": transformers_step(config, tokens),
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
