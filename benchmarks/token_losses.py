"""What the losses of 100,000 tokens cost: their bytes, and the time to write and to read them.

    python benchmarks/token_losses.py [--checkpoints=360] [--directory=DIR | gs://bucket/path]

Scores 50 documents of 2,048 tokens with a small model (on two cores: half a minute), and writes
their losses as the evaluator does. The ratio is the time of writing over that of scoring; 0.01 is
the limit, and a larger model only lowers it. Then writes that many checkpoints, and reads all of
them and those of 1,000 tokens: limits are 80 MB and 2 s.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable

import flax.linen as nn
import jax
import numpy as np

from jaxllm.evaluation.config import EvalConfig
from jaxllm.evaluation.evaluator import Evaluator
from jaxllm.evaluation.scoring import Scorer
from jaxllm.evaluation.tasks import Document, perplexity
from jaxllm.models.config import ModelConfig
from jaxllm.models.decoder import init_params
from jaxllm.run.records import RunInfo
from jaxllm.run.run import Run
from jaxllm.run.token_losses import TokenLosses
from jaxllm.run.trajectory import TrajectoryStore
from jaxllm.sharding.mesh import MeshConfig, make_mesh

MODEL = ModelConfig(
    vocab_size=259, num_layers=2, embed_dim=128, mlp_dim=512, num_heads=4, max_length=2048
)
NAME = "random:50x2048"


class Bytes:
    """UTF-8 bytes, shifted by three."""

    bos_id, eos_id = 1, 2

    def encode(self, s: str) -> list[int]:
        """Token ids."""
        return [byte + 3 for byte in s.encode()]

    def decode(self, ids: list[int]) -> str:
        """Text."""
        return bytes(i - 3 for i in ids).decode(errors="replace")


def seconds_in(of: type, method: str) -> Callable[[], float]:
    """The seconds spent in a method from now on."""
    spent, original = [0.0], getattr(of, method)

    def timed(*args, **options):
        began = time.perf_counter()
        try:
            return original(*args, **options)
        finally:
            spent[0] += time.perf_counter() - began

    setattr(of, method, timed)
    return lambda: spent[0]


def main() -> None:
    flags = argparse.ArgumentParser(description=__doc__)
    flags.add_argument("--checkpoints", type=int, default=360)
    flags.add_argument("--directory", default=None)
    args = flags.parse_args()
    directory = args.directory or tempfile.mkdtemp()
    letters = np.random.default_rng(0).integers(97, 123, (50, 4096), np.uint8)
    perplexity(
        "random", lambda: (Document(row.tobytes().decode()) for row in letters), domain="own"
    )
    mesh = make_mesh(MeshConfig())
    config = EvalConfig(token_sets=(NAME,))
    evaluator = Evaluator(
        config, MODEL, Bytes(), mesh, TrajectoryStore(directory), RunInfo("r", "r", 1)
    )
    params = nn.unbox(init_params(MODEL, jax.random.key(0)))
    evaluator.evaluate(params, 0, 0, 0.0)  # compiles, and writes the tokens
    scoring, writing = seconds_in(Scorer, "run"), seconds_in(TokenLosses, "write")
    evaluator.evaluate(params, 1, 0, 0.0)
    print(f"scoring {scoring():.2f} s, writing {writing():.4f} s: {writing() / scoring():.4f}")

    ledger = Run(directory).token_losses(NAME)
    losses, took = ledger.read([1])[0], []
    for step in range(args.checkpoints):
        began = time.perf_counter()
        ledger.write(step, losses + step, float(step))
        took.append(time.perf_counter() - began)
    print(f"{args.checkpoints} checkpoints: {1000 * statistics.median(took):.1f} ms to write each")
    for name, tokens in (("all tokens", slice(None)), ("1,000 tokens", slice(50_000, 51_000))):
        began = time.perf_counter()
        found = Run(directory).token_losses(NAME).read(tokens=tokens)
        print(f"{name}: {found.shape} read in {time.perf_counter() - began:.2f} s")
    size = sum((ledger.path / f"{step}.f16").stat().length for step in ledger.steps())
    print(f"{size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
