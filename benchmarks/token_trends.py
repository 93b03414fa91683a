"""Time and memory of classifying tokens: 100k tokens × 150 checkpoints × 4 sizes, with nulls.

Losses of four sizes that fall with noise of different φ are classified at seven shares of training
by the rule, tested, and compared with permuted and autoregressive surrogates (`trend_table`); one
size per thread. Prints CPU and wall seconds and the largest memory of the process; the goal is
under 60 s on two cores and under 2 GB. Then the time of the rule alone, per token, beside a loop of
`scipy.stats.linregress` over 2,000 of them.

    python benchmarks/token_trends.py [--tokens 100000] [--checkpoints 150] [--sizes 4]
"""

from __future__ import annotations

import argparse
import resource
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pandas as pd
from scipy import stats

from jaxllm.analysis.tokens.noise import simulate
from jaxllm.analysis.tokens.trends import classify, trend_table


def size_losses(tokens: int, checkpoints: int, seed: int) -> np.ndarray:
    """Losses [S, n]: half of the tokens fall, all have AR(1) noise."""
    rng = np.random.default_rng(seed)
    phi = rng.choice([0.0, 0.3, 0.6, 0.8], tokens)
    losses = simulate(phi, np.full(tokens, 0.05), checkpoints, rng)
    fall = np.linspace(1, 0, checkpoints, dtype=np.float32)[:, None]
    losses += 3 + fall * (rng.random(tokens) < 0.5).astype(np.float32)
    return losses


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    for name, default in {"tokens": 100_000, "checkpoints": 150, "sizes": 4, "threads": 2}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    flags = parser.parse_args()
    steps = range(1000, 1000 * (flags.checkpoints + 1), 1000)
    sizes = [size_losses(flags.tokens, flags.checkpoints, seed) for seed in range(flags.sizes)]
    cpu, wall = time.process_time(), time.perf_counter()
    with ThreadPoolExecutor(flags.threads) as pool:
        tables = list(pool.map(lambda losses: trend_table(losses, steps), sizes))
    print(pd.concat(tables).groupby(["after", "trend"]).mean().round(4).to_string())
    print(f"CPU {time.process_time() - cpu:.1f} s, wall {time.perf_counter() - wall:.1f} s")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"peak memory {peak:.2f} GiB, of which losses {sum(x.nbytes for x in sizes) / 2**30:.2f}")
    start = time.process_time()
    classify(sizes[0], steps, 0.1)
    ours = (time.process_time() - start) / flags.tokens
    start = time.process_time()
    few = min(2000, flags.tokens)
    for loss in np.exp(sizes[0][flags.checkpoints // 10 :, :few]).T:
        stats.linregress(np.arange(len(loss)), loss / loss[0])
    loop = (time.process_time() - start) / few
    print(f"the rule {1e6 * ours:.1f} µs per token, a loop {1e6 * loop:.1f}: {loop / ours:.0f}×")


if __name__ == "__main__":
    main()
