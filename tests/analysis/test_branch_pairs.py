"""Branches with planted effects: what changed, what was beyond the parent, what is noise."""

import numpy as np
import pandas as pd
import pytest

from jaxllm.analysis.branches import branches
from jaxllm.analysis.registry import Study
from tests.analysis.planted import table

TOKENS = np.array([100, 200, 400, 800]) * 1e6


def study(after: float) -> Study:
    """A parent that rises from 0.3 by 0.02 per doubling; a branch from 200M on ends at 400M."""
    parent = {name: np.array([0.30, 0.32, 0.34, 0.36]) for name in ("a", "b")}
    child = {"a": np.array([0.30, 0.32, after]), "b": np.array([0.30, 0.32, 0.32])}
    records = pd.concat(
        [
            table(parent, tokens=TOKENS, run="base"),
            table(child, tokens=TOKENS[:3], run="cooldown"),
        ],
        ignore_index=True,
    )
    return Study(records, parents={"cooldown": ("base", 2e8)})


def test_the_change_and_what_is_beyond_the_parent_are_as_planted() -> None:
    rows = branches(study(0.50)).table.set_index("task")
    assert rows.change["a"] == pytest.approx(0.18) and rows.gain["a"] == pytest.approx(0.16)
    assert rows.change["b"] == pytest.approx(0.0) and rows.gain["b"] == pytest.approx(-0.02)
    assert rows.stderr["a"] == pytest.approx(np.hypot(0.01, 0.01))
    assert rows.stands_out["a"] and not rows.stands_out["b"]


def test_the_sentence_counts_what_rose() -> None:
    finding = branches(study(0.50))
    assert finding.sentence.startswith("1 branch: 1 of 2 scores rose beyond noise")
    assert "cooldown left base at 200M tokens and ends at 400M: 2 tasks" in finding.lines[0]
    assert "+0.070 beyond its parent" in finding.lines[0]


def test_a_branch_beyond_its_parent_s_end_has_no_gain_over_it() -> None:
    longer = study(0.5)
    records = longer.records[(longer.records.run == "cooldown") | (longer.records.tokens <= 2e8)]
    rows = branches(Study(records, parents=longer.parents)).table
    assert rows.gain.isna().all() and rows.change.notna().all()


def test_without_a_score_where_it_begins_there_is_no_pair() -> None:
    one = study(0.5)
    assert branches(Study(one.records, parents={"cooldown": ("base", 3e8)})).refused


def test_noise_stands_out_as_rarely_as_it_says() -> None:
    """Without any effect, in 5 % of families at the most something stands out."""
    rng, found = np.random.default_rng(0), 0
    for _ in range(200):
        values = {f"t{k}": rng.binomial(500, 0.4, 2) / 500 for k in range(10)}
        records = table(values, tokens=TOKENS[:2], run="child", stderr=0.0219)
        found += branches(Study(records, parents={"child": ("base", 1e8)})).table.stands_out.any()
    assert found <= 200 * 0.05 + 3 * np.sqrt(200 * 0.05 * 0.95)
