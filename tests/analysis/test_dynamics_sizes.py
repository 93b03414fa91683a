"""Which axis collapses planted curves, and who is ahead at equal tokens."""

import numpy as np
import pandas as pd
import pytest

from jaxllm.analysis.dynamics_sizes import collapse, efficiency
from jaxllm.interop.importers import open_source
from tests.analysis.planted import sigmoid, table

SIZES = (1e8, 3e8, 1e9, 3e9, 1e10)
TOKENS = np.logspace(9, 11.5, 24).astype(np.int64)


def loss_of(size: float) -> np.ndarray:
    return 1.7 + 400 / size**0.34 + 400 / TOKENS**0.28


def suite(rng: np.random.Generator, axis: str, noise: float = 0.005) -> pd.DataFrame:
    """Five sizes whose curves are one curve over `axis`, with their losses as bits per byte."""
    parts = []
    for size in SIZES:
        over = {
            "tokens": np.log10(TOKENS) - 10.3,
            "flops": np.log10(6 * size * TOKENS) - 20.5,
            "loss": 6 * (2.8 - loss_of(size)),
        }[axis]
        values = {
            task: 0.25 + top * sigmoid(over, 0, 0.5) + rng.normal(0, noise, len(over))
            for task, top in (("a", 0.6), ("b", 0.4))
        }
        run = {"tokens": TOKENS, "run": f"{size:g}", "params": size}
        parts.append(table(values, stderr=noise, **run))
        parts.append(table({"text": loss_of(size)}, metric="bits_per_byte", chance=np.nan, **run))
    return pd.concat(parts, ignore_index=True)


class TestCollapse:
    @pytest.mark.parametrize("axis", ["tokens", "flops", "loss"])
    def test_finds_the_planted_axis(self, axis) -> None:
        found = collapse(suite(np.random.default_rng(0), axis))
        assert found.best == axis and found.p < 0.05 and f"over {axis}" in found.sentence
        assert set(found.table.task) == {"a", "b"}  # the loss does not predict itself
        best = found.table[found.table.axis == axis]
        assert best.best.all() and (best.error < 2 * best.noise).all()
        assert (found.table[found.table.axis != axis].error > 2 * best.noise.max()).all()

    def test_noise_has_no_best_axis(self) -> None:
        rng = np.random.default_rng(1)
        certain = []
        for _ in range(15):
            records = suite(rng, "tokens")
            noise = 0.25 + rng.normal(0, 0.01, len(records))
            records["value"] = records.value.where(records.metric != "accuracy", noise)
            found = collapse(records)
            certain.append(found.p < 0.05)
            spread = found.table.groupby("task").error.agg(lambda e: e.max() / e.min())
            assert (spread < 1.5).all()
        assert np.mean(certain) <= 0.2

    def test_a_logged_loss_serves_as_well(self) -> None:
        records = suite(np.random.default_rng(2), "loss")
        losses = records[records.task == "text"].rename(columns={"value": "loss"})
        without = records[records.task != "text"]
        found = collapse(without, losses=losses[["run", "tokens", "loss"]])
        assert found.best == "loss"
        assert any("No loss" in note for note in collapse(without).notes)

    def test_needs_three_sizes(self) -> None:
        records = suite(np.random.default_rng(3), "flops")
        assert "three sizes" in collapse(records[records.params > 2e9]).refused


class TestEfficiency:
    def test_says_who_needs_how_many_tokens(self) -> None:
        rng = np.random.default_rng(0)
        parts = []
        for run, speed in (("fast", 1.0), ("slow", 0.5)):
            level = 0.25 + 0.1 * np.log10(TOKENS * speed / 1e9)
            values = {t: level + rng.normal(0, 0.001, len(level)) for t in "abcd"}
            parts.append(table(values, tokens=TOKENS, run=run, params=7e9, stderr=0.002))
        found = efficiency(pd.concat(parts), budgets=(1e10, 1e11, 1e13))
        assert set(found.table.tokens) == {1e10, 1e11}  # no run is extrapolated
        slow = found.table[found.table.run == "slow"]
        np.testing.assert_allclose(slow.efficiency, 0.5, rtol=0.1)
        assert (slow.behind_q < 0.05).all() and (slow["rank"] == 2).all()
        assert "fast leads" in found.sentence and "within the noise" not in found.sentence

    def test_equal_runs_are_told_apart_at_the_nominal_rate(self) -> None:
        rng = np.random.default_rng(1)
        pvalues = []
        for _ in range(100):
            runs = [table({"t": [0.3, 0.4 + rng.normal(0, 0.01)]}, tokens=[1e9, 2e9], run=r,
                          params=7e9) for r in "ab"]  # fmt: skip
            pvalues += list(efficiency(pd.concat(runs)).table.behind_p.dropna())
        assert 0.01 <= np.mean(np.array(pvalues) < 0.05) <= 0.1

    def test_only_shared_tasks_count(self) -> None:
        both = table({"t": [0.3, 0.4], "only": [0.9, 0.9]}, tokens=[1, 2], run="a", params=7e9)
        one = table({"t": [0.3, 0.5]}, tokens=[1, 2], run="b", params=7e9)
        found = efficiency(pd.concat([both, one]), params=(6e9, 8e9)).table
        assert (found.tasks == 1).all() and found.run.iloc[0] == "b"
        assert "no two runs of 1B to 2B" in efficiency(both, params=(1e9, 2e9)).refused


def test_pythia_curves_fall_together_over_loss(pythia_records) -> None:
    found = collapse(pythia_records[pythia_records.metric != "accuracy_per_char"])
    assert found.best == "loss" and found.p < 0.05
    errors = found.table.groupby("axis").error.mean()
    assert errors["loss"] < 0.6 * errors[["tokens", "flops"]].min()
    assert "lambada_openai" not in set(found.table.task)


def test_suites_at_7b_scale(shared_data) -> None:
    """OPT's one published checkpoint is held against Pythia's last; BLOOM's tokens no other has."""
    records = open_source(f"pythia:{shared_data / 'reference' / 'pythia'}").records
    found = efficiency(records[(records.domain != "bias") & (records.shots == 0)])
    assert {"opt-6.7b", "pythia-6.9b", "pythia-6.9b-deduped"} <= set(found.table.run)
    assert (found.table.tasks > 60).all()
    assert any("bloom-7b1" in note for note in found.notes)


def test_pythia_at_7b_scale(pythia) -> None:
    found = efficiency(pythia).table
    assert list(found.run) == ["pythia-6.9b-deduped", "pythia-6.9b"]
    assert found.tokens.unique() == pytest.approx(299_892_736_000)
    assert found.behind_q.iloc[1] > 0.05
