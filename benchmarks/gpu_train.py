"""Train-step speed on one GPU in bf16, against Hugging Face Transformers on PyTorch, in one run.

    python benchmarks/gpu_train.py [--sizes=125m,1.3b,7b] [--steps=20] [--set remat=full]
    python benchmarks/gpu_train.py --tiny          on a CPU, in a minute: does it still run?

Random tokens in sequences of 2048; forward, backward and AdamW on both sides, PyTorch with SDPA and
torch.compile. 125M and 1.3B have float32 parameters, 7B bfloat16 ones. Each side runs alone on the
GPU, in its own process; the median of its steps after two warm-up steps counts.

MFU counts model FLOPs (6 per matmul parameter and token, plus attention over all keys; in brackets
over the half that causal attention needs) against the dense bf16 peak of the data sheet.

Goals on an H200: at least 50 % MFU at 1.3B and 7B, and a ratio of speeds (jaxllm / PyTorch) above
1. Results: none yet, for lack of a GPU. Put yours into docs/performance.md.
"""

from __future__ import annotations

import argparse
import ast
import dataclasses
import json
import statistics
import subprocess
import sys
import time
from typing import NamedTuple

from jaxllm.runtime import silence_libtpu

silence_libtpu()

from train_steps import jaxllm_step, random_tokens, transformers_step

from jaxllm.models.config import ModelConfig

WARM_UP = 2


class Size(NamedTuple):
    """A model and the number of sequences per step."""

    config: ModelConfig
    rows: int


_LLAMA = ModelConfig(dtype="bfloat16")


def _size(rows: int, **shape: int | str) -> Size:
    return Size(dataclasses.replace(_LLAMA, **shape), rows)


SIZES = {
    "125m": _size(32, num_layers=12, embed_dim=768, mlp_dim=2048, num_heads=12),
    "1.3b": _size(8, num_layers=24, embed_dim=2048, mlp_dim=5504, num_heads=16),
    "7b": _size(4, param_dtype="bfloat16"),
    "tiny": _size(
        2, vocab_size=256, num_layers=2, embed_dim=64, mlp_dim=128, num_heads=4, max_length=64
    ),
}


class Timing(NamedTuple):
    """Measurements of one side: median seconds per step, losses and device."""

    seconds: float
    first_loss: float
    last_loss: float
    device: str
    peak_flops: float | None


def measure(side: str, size: Size, steps: int, backend: str) -> Timing:
    """Time one side in this process."""
    import jax

    from jaxllm.sharding.chips import peak_flops

    device = jax.devices()[0]
    tokens = random_tokens(size.config, size.rows, size.config.max_length)
    if side == "jaxllm":
        step = jaxllm_step(size.config, tokens)
    else:
        place = "cuda" if device.platform == "gpu" else "cpu"
        step = transformers_step(size.config, tokens, place, backend)
    seconds, losses = [], []
    for _ in range(WARM_UP + steps):
        start = time.perf_counter()
        losses.append(step())
        seconds.append(time.perf_counter() - start)
    median = statistics.median(seconds[WARM_UP:])
    return Timing(median, losses[0], losses[-1], device.device_kind, peak_flops(device))


def in_a_process(side: str, name: str, args: argparse.Namespace) -> Timing:
    """Time one side in its own process, with the other's memory freed."""
    command = [sys.executable, __file__, f"--side={side}", f"--sizes={name}"]
    command += [f"--steps={args.steps}", f"--torch_backend={args.torch_backend}"]
    command += [word for change in args.set for word in ("--set", change)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        sys.exit(f"{side} failed at {name}; see above")
    return Timing(*json.loads(done.stdout.splitlines()[-1]))


def report(side: str, size: Size, timing: Timing) -> str:
    """One line of the table."""
    tokens = size.rows * size.config.max_length / timing.seconds
    flops = [tokens * size.config.flops_per_token(size.config.max_length, c) for c in (False, True)]
    peak = timing.peak_flops
    mfu = f"{flops[0] / peak:.1%} ({flops[1] / peak:.1%})" if peak else "unknown peak"
    return (
        f"  {side:13}{timing.seconds:9.4f} s/step {tokens:10.0f} tokens/s "
        f"{flops[0] / 1e12:8.2f} TFLOP/s  MFU {mfu}  "
        f"loss {timing.first_loss:.3f} -> {timing.last_loss:.3f}"
    )


def main() -> None:
    flags = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    flags.add_argument("--sizes", default="125m,1.3b,7b", help=f"of {', '.join(SIZES)}")
    flags.add_argument("--steps", type=int, default=20, help="timed steps (default: 20)")
    flags.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE",
        help="a field of ModelConfig on both sides, such as remat=full; repeatable",
    )  # fmt: skip
    flags.add_argument("--torch_backend", default="inductor", help="of torch.compile")
    flags.add_argument("--tiny", action="store_true", help="a toy on any device")
    flags.add_argument("--side", choices=("jaxllm", "transformers"), help=argparse.SUPPRESS)
    args = flags.parse_args()
    if args.tiny:  # inductor would need a C++ compiler, and a minute
        args.sizes, args.steps, args.torch_backend = "tiny", 3, "aot_eager"
    changes = dict(change.split("=", 1) for change in args.set)
    for name in args.sizes.split(","):
        size = SIZES[name]
        size = size._replace(config=dataclasses.replace(size.config, **_values(changes)))
        if args.side:
            print(json.dumps(measure(args.side, size, args.steps, args.torch_backend)))
            continue
        timings = {side: in_a_process(side, name, args) for side in ("jaxllm", "transformers")}
        shape = f"{size.config.num_params / 1e6:,.1f}M parameters, {size.rows} x "
        shape += f"{size.config.max_length} tokens"
        print(f"{name}: {shape}, on {timings['jaxllm'].device}")
        for side, timing in timings.items():
            print(report(side, size, timing))
        ratio = timings["transformers"].seconds / timings["jaxllm"].seconds
        print(f"  ratio of speeds (jaxllm / transformers): {ratio:.2f}", flush=True)


def _values(changes: dict[str, str]) -> dict[str, object]:
    def value(text: str) -> object:
        try:
            return ast.literal_eval(text)
        except (ValueError, SyntaxError):
            return text

    return {name: value(text) for name, text in changes.items()}


if __name__ == "__main__":
    main()
