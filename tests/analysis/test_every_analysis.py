"""No analysis of trajectories fails on bad tables or is silent about them."""

import numpy as np
import pandas as pd
import pytest

from jaxllm.analysis.correlations import correlations
from jaxllm.analysis.early import early_tasks
from jaxllm.analysis.emergence import emergence
from jaxllm.analysis.registry import Study
from jaxllm.run.records import COLUMNS
from tests.analysis.planted import LOG_STEPS, broken, sigmoid, table

ANALYSES = (early_tasks, correlations, emergence)


def suite(seed: int = 0) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    tokens = np.array(LOG_STEPS) * 1000
    parts = []
    for size in (6e9, 7e9, 8e9):
        rise = sigmoid(np.log2(tokens + 1), 20 - np.log2(size / 6e9), 1.5)
        values = {
            name: 0.25 + top * rise + rng.normal(0, 0.01, len(tokens))
            for name, top in (("a", 0.5), ("b", 0.4), ("c", 0.3), ("d", 0.0))
        }
        domains = {"a": "x", "b": "x", "c": "y", "d": "y"}
        parts.append(table(values, tokens=tokens, run=f"r{size:g}", params=size, domains=domains))
    return pd.concat(parts, ignore_index=True)


@pytest.mark.parametrize("analysis", ANALYSES)
class TestEveryAnalysis:
    def test_answers_a_whole_suite(self, analysis) -> None:
        found = analysis(Study(suite()))
        assert found.refused == "" and len(found.table)
        assert found.sentence.endswith(".") and "nan" not in found.sentence

    def test_survives_bad_records_and_says_so(self, analysis) -> None:
        found = analysis(Study(broken(suite())))
        assert "nan" not in found.sentence
        said = " ".join(found.notes)
        assert "have no value" in said and "repeated" in said

    def test_is_deterministic(self, analysis) -> None:
        first, second = analysis(Study(suite())), analysis(Study(suite()))
        pd.testing.assert_frame_equal(first.table, second.table)
        assert first.sentence == second.sentence

    @pytest.mark.parametrize(
        "records",
        [
            pd.DataFrame(columns=COLUMNS),
            table({"a": [0.5]}),
            table({"a": [np.nan] * 9}),
            suite().drop_duplicates(["run", "task"]),
        ],
        ids=["nothing", "one checkpoint", "no value", "one checkpoint of each"],
    )
    def test_refuses_what_cannot_be_told(self, analysis, records) -> None:
        found = analysis(Study(records))
        assert found.refused and found.refused.lower() in found.sentence.lower()


def test_short_runs_and_constant_tasks_are_reported() -> None:
    x = np.arange(10.0)
    long = table({"a": x**2, "b": np.ones(10), "c": x**2 % 7}, run="long")
    short = table({"a": [1.0, 2.0], "b": [1.0, 2.0]}, run="short", params=2)
    found = correlations(Study(pd.concat([long, short])), draws=10)
    assert any("1 of 2 runs" in note for note in found.notes)
    assert any("2 pairs of tasks vary too little" in note for note in found.notes)
