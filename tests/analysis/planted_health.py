"""Logs and records of runs whose health is known."""

import math

import numpy as np
import pandas as pd

STEPS = 2000


def logged(seed: int, *, fall: float = 0.1, growth: float = 1.0, noise: float = 0.03, steps=STEPS):
    """A log whose loss falls by `fall` in a doubling of tokens, its gradient norm by `growth`."""
    rng = np.random.default_rng(seed)
    step = np.arange(1, steps + 1)
    doublings = np.log2(step / steps)
    return pd.DataFrame(
        {"step": step, "tokens": step * 1000,
         "loss": 3 - fall * doublings + rng.normal(0, noise, steps),
         "grad_norm": growth**doublings * rng.lognormal(0, 0.2, steps)}
    )  # fmt: skip


def log(seed: int, **changes) -> pd.DataFrame:
    """The same of a run called r."""
    return logged(seed, **changes).assign(run="r")


def table(seed: int, gains: dict[str, float], runs: dict[str, float], noise=0.01, points=16):
    """Charted records: value 0.5 at the end, `gains` per doubling, 0.02 per size doubling."""
    rng = np.random.default_rng(seed)
    rows = [
        {"run": run, "family": "f", "params": params, "step": k, "tokens": k * 1000, "flops": 1.0,
         "task": task, "domain": "d", "shots": 0, "metric": "accuracy", "stderr": noise, "n": 1000,
         "value": 0.5 + gain * math.log2(k / points) + 0.02 * math.log2(params / 1e8)
         + rng.normal(0, noise),
         "chance": 0.25, "task_version": "1", "seconds": 1.0, "primary": True, "status": "ok"}
        for run, params in runs.items() for task, gain in gains.items()
        for k in range(1, points + 1)
    ]  # fmt: skip
    return pd.DataFrame(rows)
