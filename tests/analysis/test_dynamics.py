"""Clean tables, and that no analysis of dynamics fails or is silent on bad ones."""

import numpy as np
import pandas as pd
import pytest

from jaxllm.analysis.dynamics import clean, false_discovery, panel
from jaxllm.analysis.dynamics_bends import change_points
from jaxllm.analysis.dynamics_informative import informative_tasks
from jaxllm.analysis.dynamics_leads import lead_lag
from jaxllm.analysis.dynamics_milestones import milestones
from jaxllm.analysis.dynamics_relations import correlations
from jaxllm.analysis.dynamics_sizes import collapse, efficiency
from jaxllm.analysis.dynamics_unseen import unseen_tasks
from jaxllm.analysis.emergence import emergence
from jaxllm.run.records import COLUMNS
from tests.analysis.planted import LOG_STEPS, broken, sigmoid, table

ANALYSES = (
    milestones, change_points, informative_tasks, correlations, lead_lag, unseen_tasks, collapse,
    efficiency, emergence,
)  # fmt: skip


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
        found = analysis(suite())
        assert found.refused == "" and len(found.table)
        assert found.sentence.endswith(".") and "nan" not in found.sentence

    def test_survives_bad_records_and_says_so(self, analysis) -> None:
        found = analysis(broken(suite()))
        assert "nan" not in found.sentence
        said = " ".join(found.notes)
        assert "have no value" in said and "repeated" in said and "are called r6e+09" in said

    def test_is_deterministic(self, analysis) -> None:
        first, second = analysis(suite()), analysis(suite())
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
        found = analysis(records)
        if analysis is milestones and len(records) and records.value.notna().any():
            assert set(found.table.state) == {"too few checkpoints"}
        elif analysis is efficiency and records.run.nunique() > 1:
            # These checkpoints have seen no tokens.
            assert found.refused
        else:
            assert found.refused and found.refused.lower() in found.sentence.lower()


def test_short_runs_and_constant_tasks_are_reported() -> None:
    x = np.arange(9.0)
    long = table({"a": x**2, "b": np.ones(9), "c": x**2 % 7}, run="long")
    short = table({"a": [1.0, 2.0], "b": [1.0, 2.0]}, run="short", params=2)
    found = correlations(pd.concat([long, short]), draws=10)
    assert any("1 of 2 runs" in note for note in found.notes)
    assert any("2 pairs of tasks vary too little" in note for note in found.notes)


def test_scores_grow_with_quality() -> None:
    perplexity = table({"p": [100.0, 10.0]}, metric="perplexity", stderr=1.0, chance=np.nan)
    bits = table({"b": [2.0, 1.0]}, metric="bits_per_byte")
    frame, _ = clean(pd.concat([perplexity, bits]))
    np.testing.assert_allclose(frame[frame.task == "p"].score, [-np.log(100), -np.log(10)])
    np.testing.assert_allclose(frame[frame.task == "p"].doubt, [0.01, 0.1])
    np.testing.assert_allclose(frame[frame.task == "b"].score, [-2.0, -1.0])


def test_of_several_metrics_the_primary_one_is_used() -> None:
    accuracy = table({"t": [0.3, 0.4]})
    frame, _ = clean(pd.concat([table({"t": [0.9, 0.8]}, metric="brier"), accuracy]))
    assert list(frame.score) == [0.3, 0.4]


def test_panel_aligns_runs_on_tokens() -> None:
    first = table({"a": [1.0, 2.0, 3.0]}, tokens=[0, 10, 30], run="one")
    second = table({"a": [5.0, 6.0]}, tokens=[10, 20], run="two")
    data = panel(clean(pd.concat([first, second]))[0])
    np.testing.assert_array_equal(data.tokens, [0, 10, 20, 30])
    np.testing.assert_array_equal(data.score[:, :, 0], [[1, 2, np.nan, 3], [np.nan, 5, 6, np.nan]])
    gains = data.gains()[:, :, 0]
    np.testing.assert_array_equal(gains, [[np.nan, 1, np.nan, 1], [np.nan, np.nan, 1, np.nan]])


def test_false_discovery_is_benjamini_and_hochbergs() -> None:
    adjusted = false_discovery(pd.Series([0.01, np.nan, 0.04, 0.03]))
    np.testing.assert_allclose(adjusted, [0.03, np.nan, 0.04, 0.04])
