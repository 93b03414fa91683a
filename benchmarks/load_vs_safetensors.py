"""Loading a safetensors checkpoint into sharded JAX arrays, against safetensors' own reader.

    python benchmarks/load_vs_safetensors.py [--gigabytes=1] [--dtype=float32] [--repeats=5]

Writes a random LLaMA of about that size into a temporary directory (four shards), reads it once so
that it is in the page cache, and then in turn with `safetensors.numpy.load_file` (every shard) and
with `jaxllm.interop.huggingface.load` onto a mesh of all devices (on CPUs: 4 virtual ones).
jaxllm reads the same bytes, checks names and shapes, transposes matrices, stacks them over layers
and puts each device's shard on it. The ratio of median speeds is jaxllm's over safetensors': 1 is
as fast, and 0.5 is the target.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=4")

import jax
import numpy as np
from safetensors.numpy import load_file, save_file

from jaxllm.interop.huggingface import load
from jaxllm.interop.huggingface.architectures import FAMILIES
from jaxllm.interop.huggingface.checkpoint import DTYPES, tensor_shapes
from jaxllm.interop.huggingface.fields import to_config
from jaxllm.models.config import ModelConfig
from jaxllm.sharding.mesh import MeshConfig, make_mesh

SHARDS = 4
LAYER = ModelConfig(vocab_size=32_000, num_layers=1, embed_dim=2048, mlp_dim=5632, num_heads=16)


def make(directory: Path, gigabytes: float, dtype: np.dtype) -> int:
    """Write the checkpoint; return its size in bytes."""
    layer = LAYER.num_params - 2 * LAYER.vocab_size * LAYER.embed_dim
    rest = LAYER.num_params - layer
    layers = max(1, round((gigabytes * 1e9 / dtype.itemsize - rest) / layer))
    model = ModelConfig(**{**vars(LAYER), "num_layers": layers})
    shapes = tensor_shapes(model, FAMILIES["LlamaForCausalLM"].tensors, "")
    names = list(shapes)
    random = np.random.default_rng(0)
    where = {}
    for shard in range(SHARDS):
        file = f"model-{shard + 1:05}-of-{SHARDS:05}.safetensors"
        part = names[shard::SHARDS]
        block = random.standard_normal(max(np.prod(shapes[n]) for n in part), np.float32)
        tensors = {n: block[: np.prod(shapes[n])].reshape(shapes[n]).astype(dtype) for n in part}
        save_file(tensors, directory / file)
        where |= dict.fromkeys(part, file)
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))
    (directory / "config.json").write_text(json.dumps(to_config(model)))
    return sum(file.stat().st_size for file in directory.glob("*.safetensors"))


def seconds(function: Callable[[], object]) -> float:
    start = time.perf_counter()
    kept = function()
    elapsed = time.perf_counter() - start
    del kept
    return elapsed


def main() -> None:
    flags = argparse.ArgumentParser(description=__doc__)
    flags.add_argument("--gigabytes", type=float, default=1.0)
    flags.add_argument("--dtype", choices=tuple(DTYPES), default="float32")
    flags.add_argument("--repeats", type=int, default=5)
    args = flags.parse_args()
    mesh = make_mesh(MeshConfig())
    with tempfile.TemporaryDirectory() as folder:
        directory = Path(folder)
        size = make(directory, args.gigabytes, DTYPES[args.dtype])
        files = sorted(directory.glob("*.safetensors"))

        def theirs() -> object:
            return [load_file(file) for file in files]

        def ours() -> object:
            return jax.block_until_ready(load(directory, mesh))

        theirs(), ours()
        pairs = [(seconds(theirs), seconds(ours)) for _ in range(args.repeats)]
    reading, loading = (statistics.median(column) for column in zip(*pairs, strict=True))
    print(f"{size / 1e9:.2f} GB in {args.dtype} onto {jax.device_count()} {jax.default_backend()}s")
    print(f"safetensors.numpy.load_file  {reading:.2f} s  {size / reading / 1e9:.2f} GB/s")
    print(f"jaxllm, into sharded arrays  {loading:.2f} s  {size / loading / 1e9:.2f} GB/s")
    print(f"ratio of speeds (jaxllm / safetensors): {reading / loading:.2f}")


if __name__ == "__main__":
    main()
