"""Who is ahead at equal tokens."""

import numpy as np
import pandas as pd
import pytest

from jaxllm.analysis.efficiency import efficiency
from jaxllm.analysis.registry import Study
from jaxllm.interop.importers import open_source
from tests.analysis.planted import table

TOKENS = np.logspace(9, 11.5, 24).astype(np.int64)


def test_says_who_needs_how_many_tokens() -> None:
    rng = np.random.default_rng(0)
    parts = []
    for run, speed in (("fast", 1.0), ("slow", 0.5)):
        level = 0.25 + 0.1 * np.log10(TOKENS * speed / 1e9)
        values = {t: level + rng.normal(0, 0.001, len(level)) for t in "abcd"}
        parts.append(table(values, tokens=TOKENS, run=run, params=7e9, stderr=0.002))
    found = efficiency(Study(pd.concat(parts)), budgets=(1e10, 1e11, 1e13))
    assert set(found.table.tokens) == {1e10, 1e11}  # no run is extrapolated
    slow = found.table[found.table.run == "slow"]
    np.testing.assert_allclose(slow.efficiency, 0.5, rtol=0.1)
    assert (slow.behind_q < 0.05).all() and (slow["rank"] == 2).all()
    assert "fast leads" in found.sentence and "within the noise" not in found.sentence


def test_equal_runs_are_told_apart_at_the_nominal_rate() -> None:
    rng = np.random.default_rng(1)
    pvalues = []
    for _ in range(100):
        runs = [table({"t": [0.3, 0.4 + rng.normal(0, 0.01)]}, tokens=[1e9, 2e9], run=r,
                      params=7e9) for r in "ab"]  # fmt: skip
        pvalues += list(efficiency(Study(pd.concat(runs))).table.behind_p.dropna())
    assert 0.01 <= np.mean(np.array(pvalues) < 0.05) <= 0.1


def test_only_shared_tasks_count() -> None:
    both = table({"t": [0.3, 0.4], "only": [0.9, 0.9]}, tokens=[1, 2], run="a", params=7e9)
    one = table({"t": [0.3, 0.5]}, tokens=[1, 2], run="b", params=7e9)
    found = efficiency(Study(pd.concat([both, one])), params=(6e9, 8e9)).table
    assert (found.tasks == 1).all() and found.run.iloc[0] == "b"
    assert "no two runs of 1B to 2B" in efficiency(Study(both), params=(1e9, 2e9)).refused


def test_suites_at_7b_scale(shared_data) -> None:
    """OPT's one published checkpoint is held against Pythia's last; BLOOM's tokens no other has."""
    records = open_source(f"pythia:{shared_data / 'reference' / 'pythia'}").records
    found = efficiency(Study(records[(records.domain != "bias") & (records.shots == 0)]))
    assert {"opt-6.7b", "pythia-6.9b", "pythia-6.9b-deduped"} <= set(found.table.run)
    assert (found.table.tasks > 60).all()
    assert any("bloom-7b1" in note for note in found.notes)


def test_pythia_at_7b_scale(pythia) -> None:
    found = efficiency(Study(pythia)).table
    assert list(found.run) == ["pythia-6.9b-deduped", "pythia-6.9b"]
    assert found.tokens.unique() == pytest.approx(299_892_736_000)
    assert found.behind_q.iloc[1] > 0.05
