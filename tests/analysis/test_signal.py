"""The most informative tasks against planted truth and noise."""

import numpy as np
import pandas as pd

from jaxllm.analysis.registry import Study
from jaxllm.analysis.signal import signal_to_noise
from tests.analysis.planted import noise, table

TOKENS = np.array([0, *np.logspace(6, 10, 40).astype(int)])


def test_names_the_phase_in_which_a_task_moves() -> None:
    rng = np.random.default_rng(0)
    tokens = np.linspace(1, 1000, 60)
    shapes = {
        "early": 0.25 + 0.3 * np.minimum(1, tokens / 300),
        "late": 0.25 + 0.3 * np.maximum(0, (tokens - 700) / 300),
        "never": np.full(60, 0.25),
    }
    true, wrong = {("0% to 30%", "early"), ("70% to 100%", "late")}, 0
    for _ in range(20):
        values = {name: v + rng.normal(0, 0.01, 60) for name, v in shapes.items()}
        found = signal_to_noise(Study(table(values, tokens=tokens)), phases=(0, 0.3, 0.7, 1)).table
        told = set(zip(found.phase[found.informs], found.task[found.informs], strict=True))
        assert told >= true
        wrong += len(told - true)
    assert wrong <= 0.05 * 20 * 7 + 3


def test_a_task_that_ranks_runs_informs_without_moving() -> None:
    rng = np.random.default_rng(1)
    found = []
    for _ in range(10):
        runs = [
            table({"t": 0.3 + 0.02 * i + rng.normal(0, 0.01, 20)}, run=f"r{i}", params=i + 1)
            for i in range(4)
        ]
        found.append(signal_to_noise(Study(pd.concat(runs)), phases=(0.5, 1)).table)
    every = pd.concat(found)
    assert every.informs.all() and (every.spread_p < 0.05).all()
    assert (every.gain_p >= 0.05).sum() >= 8


def test_noise_informs_no_more_often_than_claimed() -> None:
    rng = np.random.default_rng(2)
    wrong = 0
    for _ in range(40):
        runs = [table(noise(rng, 3, size=20), run=f"r{i}", params=i + 1) for i in range(3)]
        wrong += signal_to_noise(Study(pd.concat(runs)), phases=(0, 0.5, 1)).table.informs.any()
    assert wrong / 40 <= 0.12  # 5% and two standard errors


def test_pythia_tasks_inform_early(pythia) -> None:
    phases = signal_to_noise(Study(pythia)).table.set_index(["phase", "task"])
    assert not phases.informs["1% to 10%", "logiqa"]
    gain = phases.gain.xs("lambada_openai", level="task")
    assert gain["1% to 10%"] > 2 * gain["50% to 100%"]
