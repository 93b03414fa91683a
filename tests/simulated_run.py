"""A run directory from a seeded simulation: each capability a logistic curve in log tokens.

What is simulated is known, so the tests know when each task truly left chance.
"""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import numpy as np

from jaxllm.run.records import Record
from jaxllm.run.trajectory import TrajectoryStore

STEPS = (0, 10, 20, 40, 80, 120, 200, 300, 450, 600, 800, 1000)
TOKENS_PER_STEP = 16384


@dataclasses.dataclass(frozen=True)
class SimulatedTask:
    """A capability: from `chance` toward `ceiling`, half way at `onset` (share of the run)."""

    name: str
    domain: str
    chance: float
    ceiling: float
    onset: float
    n: int = 500
    metric: str = "accuracy"


TASKS = (
    SimulatedTask("copying", "reasoning", 0.25, 0.97, 0.05),
    SimulatedTask("key_value_recall", "reasoning", 0.10, 0.72, 0.28),
    SimulatedTask("label_mapping", "reasoning", 0.50, 0.81, 0.40),
    SimulatedTask("addition", "math", 0.25, 0.58, 0.62),
    SimulatedTask("comparison", "math", 0.50, 0.90, 0.22),
    SimulatedTask("addition_exact", "math", 0.0, 0.21, 0.85, metric="exact_match"),
    SimulatedTask("syntax_pairs", "code", 0.50, 0.93, 0.09),
    SimulatedTask("module_function", "code", 0.25, 0.49, 0.50),
    SimulatedTask("docstring_ending", "reading", 0.25, 0.61, 0.16),
    SimulatedTask("reference_ending", "reading", 0.25, 0.26, 0.90),
    SimulatedTask("code_text", "language", math.nan, 1.42, 0.10, 60, "bits_per_byte"),
    SimulatedTask("docs_text", "language", math.nan, 1.81, 0.14, 60, "bits_per_byte"),
)
DOMAINS = {"code": 1.25, "docstrings": 1.9, "reference": 1.7, "arithmetic": 0.7}


def true_value(task: SimulatedTask, progress: float, skill: float = 1.0) -> float:
    """The expectation of the metric after the share `progress` of the run."""
    rise = 1 / (1 + (task.onset / max(progress * skill, 1e-9)) ** 3)
    if math.isnan(task.chance):
        return 8.0 - (8.0 - task.ceiling) * (1 - math.exp(-8 * (progress * skill) ** 0.6))
    return task.chance + (task.ceiling - task.chance) * rise


def simulate(
    model_dir: Path,
    *,
    run: str = "simulated",
    seed: int = 0,
    params: int = 3_412_480,
    skill: float = 1.0,
    steps: tuple[int, ...] = STEPS,
) -> Path:
    """Writes trajectory/, metrics.jsonl and checkpoints.jsonl as a run of `steps[-1]` steps."""
    rng = np.random.default_rng(seed)
    store = TrajectoryStore(model_dir)
    for step in steps:
        for task in TASKS:
            store.write(step, task.name, _records(task, step, run, params, skill, rng))
    last = steps[-1]
    lines, manifest = [], []
    for step in range(1, last + 1, 3):
        lines.append(json.dumps(_metrics(step, params, skill, rng)))
    for step in steps:
        tokens = step * TOKENS_PER_STEP
        row = {"step": step, "tokens": tokens, "flops": 6.0 * params * tokens, "kind": "scheduled"}
        manifest.append(json.dumps(row))
    (model_dir / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    (model_dir / "checkpoints.jsonl").write_text("\n".join(manifest) + "\n")
    return model_dir


def _records(
    task: SimulatedTask, step: int, run: str, params: int, skill: float, rng: np.random.Generator
) -> list[Record]:
    tokens = step * TOKENS_PER_STEP
    expected = true_value(task, step / STEPS[-1], skill)
    if task.metric == "bits_per_byte":
        stderr = 0.03 * expected
        value = float(rng.normal(expected, stderr))
    else:
        value = float(rng.binomial(task.n, expected) / task.n)
        stderr = math.sqrt(value * (1 - value) / task.n)
    common = Record(
        run=run, family="simulated", params=params, step=step, tokens=tokens,
        flops=6.0 * params * tokens, task=task.name, domain=task.domain, shots=0,
        metric=task.metric, value=value, stderr=stderr, n=task.n, chance=task.chance,
        seconds=0.4, primary=True,
    )  # fmt: skip
    brier = dataclasses.replace(
        common, metric="brier", value=1 - value, chance=math.nan, primary=False
    )
    return [common] if task.metric != "accuracy" else [common, brier]


def _metrics(step: int, params: int, skill: float, rng: np.random.Generator) -> dict[str, float]:
    tokens = step * TOKENS_PER_STEP
    decay = (1 + step * skill / 12) ** -0.45
    losses = {
        f"loss/{name}": floor + (6.2 - floor) * decay + float(rng.normal(0, 0.05))
        for name, floor in DOMAINS.items()
    }
    warmup, last = 50, STEPS[-1]
    rate = 3e-3 * min(step / warmup, 0.55 + 0.45 * math.cos(math.pi * step / last))
    return {
        "step": step, "tokens": tokens, "flops": 6.0 * params * tokens,
        "loss": float(np.mean(list(losses.values()))), **losses,
        "grad_norm": float(0.4 + 3 * decay * rng.lognormal(0, 0.2)), "param_norm": 40 + step / 50,
        "learning_rate": rate, "tokens_per_second": float(rng.normal(61_000, 1_500)),
        "mfu": 0.31, "step_seconds": 0.27, "data_wait_seconds": 0.001, "checkpoint_seconds": 0.2,
        "time/evaluation": 0.15, "wall_seconds": 0.33 * step, "restarts": 0,
    }  # fmt: skip
