"""A suite of runs whose tasks follow known curves, seen through binomial noise.

A task rises from chance to a ceiling by a logistic curve in log tokens; larger models rise
earlier and higher. Each run has its own small deviation per task, so nothing is forecast exactly.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from jaxllm.run.records import COLUMNS, Record

SIZES = (70e6, 160e6, 410e6, 1.0e9, 2.8e9, 6.9e9)
TOKENS = 300e9
PROGRESS = (0.003, 0.01, 0.03, 0.06, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)


def suite(
    seed: int,
    *,
    sizes: tuple[float, ...] = SIZES,
    twins: int = 2,
    tasks: int = 20,
    growth: float = 0.35,
    deviation: float = 0.01,
    examples: int = 1000,
) -> pd.DataFrame:
    """Records of `twins` runs of every size; `growth` 0 leaves every task at chance."""
    rng = np.random.default_rng(seed)
    middle, chance = rng.uniform(-5.0, 0.5, tasks), rng.choice([0.25, 0.5], tasks)
    reach = growth * rng.uniform(0.2, 1.0, tasks)
    rows = []
    for size in sizes:
        scale = np.log(size / 1e9) / np.log(10)
        for twin in range(twins):
            offset = rng.normal(0, deviation, tasks) * (growth > 0)
            for progress in PROGRESS:
                x = np.log(progress) - middle + 1.0 * scale
                rise = reach * (1 + 0.4 * scale) / (1 + np.exp(-x)) + offset
                for task in range(tasks):
                    p = float(np.clip(chance[task] + rise[task], 0.01, 0.99))
                    value = rng.binomial(examples, p) / examples
                    rows.append(
                        Record(
                            run=f"{size / 1e6:g}m-{twin}", family="simulated", params=int(size),
                            step=round(progress * 1e5), tokens=round(progress * TOKENS),
                            flops=6 * size * progress * TOKENS, task=f"task{task}", domain="d",
                            shots=0, metric="accuracy", value=value,
                            stderr=float(np.sqrt(p * (1 - p) / examples)), n=examples,
                            chance=float(chance[task]), primary=True,
                        )
                    )  # fmt: skip
    return pd.DataFrame(rows, columns=COLUMNS)
