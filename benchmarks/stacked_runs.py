"""A swarm of proxies of about 0.1M parameters: stacked in one program, against one after another.

    python benchmarks/stacked_runs.py [--runs=16] [--steps=100]

Both sides are `python -m jaxllm.suite` on the quickstart's text, which differ in `--stack` alone:
starting, compiling, training, saving and scoring count. Each side has a cache of compiled programs
of its own, empty at first; the corpus is prepared before. Prints the seconds of each and their
ratio, and how far the runs' losses are apart: at first by rounding, which the dial's learning rate,
high for such sizes, amplifies from step to step. Results: docs/performance.md.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pandas as pd

from jaxllm.run.run import Run

SUITE = """
include 'runs/quickstart.gin'
include 'suites/base.gin'
SuiteConfig.axes = {{'params': (1e5,), 'tokens': ({tokens},), 'SEED': {seeds}}}
SuiteConfig.name = '{{SEED}}'
SuiteConfig.checkpoints = 1
CheckpointConfig.early = None
EVAL_TASKS = ('keyword', 'induction', 'counting', 'held_out_code')
EvalConfig.max_examples = 100
DataConfig.cache_dir = '{home}/cache'
"""
BATCH_TOKENS = 1024  # of the dial at this size


def main() -> None:
    """Time both sides."""
    flags = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    flags.add_argument("--runs", type=int, default=16)
    flags.add_argument("--steps", type=int, default=100)
    args = flags.parse_args()
    with tempfile.TemporaryDirectory() as home:
        tokens, seeds = args.steps * BATCH_TOKENS, tuple(range(args.runs))
        file = Path(home) / "swarm.gin"
        file.write_text(SUITE.format(tokens=tokens, seeds=seeds, home=home))
        subprocess.run(
            [sys.executable, "-m", "jaxllm.prepare", f"--gin_file={file}"],
            check=True, capture_output=True,
        )  # fmt: skip
        seconds = {size: timed(file, Path(home) / f"stack{size}", size) for size in (1, args.runs)}
        logs = {size: losses(Path(home) / f"stack{size}", args.runs) for size in seconds}
    alone, stacked = seconds.values()
    apart = (logs[1] / logs[args.runs] - 1).abs().max(axis=1)
    print(f"{args.runs} runs of {apart.index[-1]} steps, one after another: {alone:.0f} s")
    print(f"stacked in one program: {stacked:.0f} s")
    print(f"ratio: {alone / stacked:.2f}")
    ends = (f"{apart.iloc[at]:.0e} at step {apart.index[at]}" for at in (0, -1))
    print(f"losses apart, at most: {', '.join(ends)}")


def timed(file: Path, directory: Path, stack: int) -> float:
    """Seconds of the suite with this `--stack`."""
    own = {"JAX_COMPILATION_CACHE_DIR": f"{directory}-xla"}
    began = time.perf_counter()
    subprocess.run(
        [
            sys.executable, "-m", "jaxllm.suite", f"--gin_file={file}",
            f"--gin.SUITE_DIR={directory}", f"--stack={stack}",
        ],
        check=True, capture_output=True, env=os.environ | own,
    )  # fmt: skip
    return time.perf_counter() - began


def losses(directory: Path, runs: int) -> pd.DataFrame:
    """The logged losses, a row for each step and a column for each run."""
    logs = {seed: Run.open(directory / f"seed{seed}").metrics() for seed in range(runs)}
    return pd.DataFrame({seed: log.set_index("step")["loss"] for seed, log in logs.items()})


if __name__ == "__main__":
    main()
