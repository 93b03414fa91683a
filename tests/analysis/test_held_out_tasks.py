"""Predictions of held-out tasks against planted truth and noise."""

import re

import numpy as np
import pandas as pd

from jaxllm.analysis.held_out_tasks import held_out_tasks
from jaxllm.analysis.registry import Study
from tests.analysis.planted import sigmoid, table


def suite(rng: np.random.Generator, hidden) -> pd.DataFrame:
    """Sizes that differ in speed; `hidden(ability, rng)` is the unseen task's score."""
    parts = []
    for i in range(6):
        ability = sigmoid(np.linspace(0, 10, 30), 7 - 0.7 * i)
        values = {"k1": ability, "k2": 0.5 * ability, "unseen": hidden(ability, rng)}
        values = {k: 0.25 + 0.5 * v + rng.normal(0, 0.01, 30) for k, v in values.items()}
        parts.append(table(values, run=f"r{i}", params=10**i, domains=dict.fromkeys(values, "x")))
    return pd.concat(parts)


def test_a_shared_ability_is_predicted() -> None:
    found = held_out_tasks(Study(suite(np.random.default_rng(0), lambda a, _: 0.8 * a)))
    row = found.table.set_index("task").loc["unseen"]
    assert row.predicts and row.gain_low > 0.4
    assert row.error < 1.5 * row.noise and row.same_tokens > 5 * row.error


def test_noise_is_not_predicted() -> None:
    rng = np.random.default_rng(1)
    wrong = []
    for _ in range(25):
        records = suite(rng, lambda a, rng: 0 * a)
        table_ = held_out_tasks(Study(records)).table.set_index("task")
        wrong.append(table_.predicts["unseen"])
        assert table_.predicts["k1"]
    assert np.mean(wrong) <= 0.12


def test_the_same_benchmark_at_other_shots_does_not_help() -> None:
    records = suite(np.random.default_rng(2), lambda a, _: a)
    renamed = records.replace({"task": {"k1": "unseen 5-shot", "k2": "k"}})
    assert held_out_tasks(Study(renamed)).table.set_index("task").known["unseen"] == 1


def test_needs_three_sizes_to_learn_and_test() -> None:
    records = suite(np.random.default_rng(3), lambda a, _: a)
    assert "three sizes" in held_out_tasks(Study(records[records.params < 100])).refused


def test_pythia_tasks_predict_each_other(pythia) -> None:
    predicted = held_out_tasks(Study(pythia))
    percents = re.search(r"with (\d+)% \(95% interval (\d+)% to", predicted.sentence)
    assert percents is not None and int(percents[1]) > 30 and int(percents[2]) > 0
    assert (
        predicted.table.why[predicted.table.task == "lambada_openai"].item().startswith("no other")
    )
