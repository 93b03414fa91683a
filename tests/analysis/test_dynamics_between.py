"""Correlations, leads and predictions between tasks against planted truth and noise."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from jaxllm.analysis import resampling
from jaxllm.analysis.dynamics_leads import lead_lag
from jaxllm.analysis.dynamics_relations import correlations
from jaxllm.analysis.dynamics_unseen import unseen_tasks
from tests.analysis.planted import sigmoid, table


def related(rng: np.random.Generator, n: int, r: float) -> np.ndarray:
    """[n, 2] sums of steps that correlate at r."""
    steps = rng.multivariate_normal([0, 0], [[1, r], [r, 1]], n)
    return 0.01 * np.cumsum(steps, axis=0)


def two_domains(first: np.ndarray, second: np.ndarray) -> pd.DataFrame:
    """Domains x and y of two tasks each, which do the same."""
    values = {"a": first, "a_too": first, "b": second, "b_too": second}
    return table(values, domains={"a": "x", "a_too": "x", "b": "y", "b_too": "y"})


class TestCorrelations:
    def test_equal_spearman_of_scipy(self) -> None:
        rng = np.random.default_rng(0)
        values = {"a": rng.normal(size=20), "b": rng.normal(size=20)}
        row = correlations(table(values), draws=20).table.iloc[0]
        a, b = values["a"], values["b"]
        assert row.gain == pytest.approx(stats.spearmanr(np.diff(a), np.diff(b)).statistic)
        assert row.level == pytest.approx(stats.spearmanr(a[1:], b[1:]).statistic)
        assert row.n == 19

    def test_interval_covers_the_true_correlation_of_gains(self) -> None:
        rng = np.random.default_rng(1)
        truth = 6 / np.pi * np.arcsin(0.6 / 2)  # Spearman's of a normal pair (Pearson 1907)
        inside = []
        for seed in range(80):
            pair = related(rng, 60, 0.6)
            found = correlations(table({"a": pair[:, 0], "b": pair[:, 1]}), draws=60, seed=seed)
            inside.append(found.table.gain_low[0] <= truth <= found.table.gain_high[0])
        assert 0.88 <= np.mean(inside) <= 1

    @pytest.mark.parametrize("kind", ["noise", "walks"])
    def test_unrelated_tasks_are_found_at_the_nominal_rate(self, kind) -> None:
        """Noise in levels makes gains alternate: without Bartlett's factor 10 % are found."""
        rng = np.random.default_rng(2)
        pvalues = []
        for seed in range(12):
            values = rng.normal(size=(27, 8))
            values = np.cumsum(values, axis=0) if kind == "walks" else values
            found = correlations(table({f"t{i}": values[:, i] for i in range(8)}), draws=100,
                                 seed=seed)  # fmt: skip
            pvalues += list(found.table.gain_p)
            assert found.table.level_p.between(0, 1).all()
        assert 0.01 <= np.mean(np.array(pvalues) <= 0.05) <= 0.075

    @pytest.mark.parametrize("kind", ["lines", "walks"])
    def test_rising_together_is_not_growing_together(self, kind) -> None:
        rng = np.random.default_rng(3)
        rise = np.linspace(0, 0.5, 40)[:, None]
        pvalues = []
        for seed in range(4):
            noise = rng.normal(0, 0.02, (40, 8))
            levels = rise + (np.cumsum(noise, axis=0) if kind == "walks" else noise)
            found = correlations(table({f"t{i}": levels[:, i] for i in range(8)}), draws=100,
                                 seed=seed).table  # fmt: skip
            assert (found.level > 0.3).all() and found.level_null.mean() > 0.5
            assert abs(found.gain.mean()) < 0.1
            pvalues += list(found.level_p)
        assert np.mean(np.array(pvalues) <= 0.05) <= 0.08

    def test_common_steps_are_found_and_domains_told_apart(self) -> None:
        rng = np.random.default_rng(4)
        common = rng.normal(size=(60, 2))
        values, domains = {}, {}
        for i in range(6):
            steps = common[:, i % 2] + 0.5 * rng.normal(size=60)
            values[f"t{i}"], domains[f"t{i}"] = np.cumsum(steps), "xy"[i % 2]
        found = correlations(table(values, domains=domains), draws=200)
        same = found.table.same_domain
        assert (found.table.gain_q[same] < 0.05).all() and (found.table.gain_q[~same] > 0.05).all()
        assert found.within > 0.6 > 0.3 > found.across and found.domain_p < 0.12

    def test_runs_of_a_suite_are_not_independent_witnesses(self) -> None:
        """Four copies of one run say what the run says."""
        rng = np.random.default_rng(5)
        wrong = []
        for seed in range(25):
            values = {"a": np.cumsum(rng.normal(size=25)), "b": np.cumsum(rng.normal(size=25))}
            copies = [table(values, run=f"r{i}", params=i) for i in range(4)]
            found = correlations(pd.concat(copies), draws=40, seed=seed)
            wrong.append(found.table.gain_p[0] <= 0.05)
        assert np.mean(wrong) <= 0.16

    def test_one_task_at_other_shots_is_no_pair(self) -> None:
        rng = np.random.default_rng(6)
        values = {
            "a": rng.normal(size=20),
            "a 5-shot": rng.normal(size=20),
            "b": rng.normal(size=20),
        }
        found = correlations(table(values), draws=20).table
        assert set(map(frozenset, zip(found.task_a, found.task_b, strict=True))) == {
            frozenset({"a", "b"}), frozenset({"a 5-shot", "b"})
        }  # fmt: skip


class TestLeadLag:
    def test_finds_who_comes_first(self) -> None:
        rng = np.random.default_rng(0)
        steps = rng.normal(size=62)
        late = np.cumsum(steps[:-2] + 0.3 * rng.normal(size=60))
        early = np.cumsum(steps[2:] + 0.3 * rng.normal(size=60))
        records = two_domains(early, late)
        found = lead_lag(records)
        row = found.table.iloc[0]
        assert row.leads and (row["first"], row.second, row.lag) == ("x", "y", 2)
        assert found.sentence.startswith("X gains before y")
        one = lead_lag(records[records.task != "a"])
        assert one.table.lead_q[0] <= 0.05 and not one.table.leads[0]
        assert "x holds one task, a_too:" in " ".join(one.notes)

    def test_growing_together_leads_nowhere(self) -> None:
        rng = np.random.default_rng(1)
        leads, related_ = [], []
        for seed in range(40):
            pair = related(rng, 40, 0.8)
            records = two_domains(*pair.T)
            row = lead_lag(records, draws=60, seed=seed).table.iloc[0]
            leads.append(row.leads)
            related_.append((row.related_p <= 0.05) and row.lag == 0)
        assert np.mean(related_) > 0.9 and np.mean(leads) <= 0.12

    def test_noise_leads_nowhere(self) -> None:
        rng = np.random.default_rng(2)
        leads, related_ = [], []
        for seed in range(50):
            records = two_domains(rng.normal(size=27), rng.normal(size=27))
            row = lead_lag(records, draws=60, seed=seed).table.iloc[0]
            leads.append(row.leads)
            related_.append(row.related_p <= 0.05)
        assert np.mean(leads) <= 0.05 and np.mean(related_) <= 0.12

    def test_says_when_half_of_the_gain_was_made(self) -> None:
        x = np.linspace(0, 10, 41)
        values = {"a": sigmoid(x, 3, 0.3), "b": sigmoid(x, 7, 0.3)}
        tokens = (x * 1e6).astype(int)
        found = lead_lag(table(values, tokens=tokens, domains={"a": "x", "b": "y"}), draws=20)
        row = found.table.iloc[0]
        assert row["first"] == "x" and row.runs_first_earlier == 1
        assert row.first_half_tokens == pytest.approx(3e6, rel=0.1)
        assert row.second_half_tokens == pytest.approx(7e6, rel=0.1)


def test_block_bootstrap_keeps_neighbours_and_lengths() -> None:
    index = next(resampling.blocks([27, 27, 9], 1, np.random.default_rng(0)))
    assert [len(i) for i in index] == [27, 27, 9]
    np.testing.assert_array_equal(index[0], index[1])
    steps = np.diff(index[0]) % 27
    assert np.mean(steps == 1) > 0.5


class TestUnseenTasks:
    @staticmethod
    def suite(rng: np.random.Generator, hidden) -> pd.DataFrame:
        """Sizes that differ in speed; `hidden(ability, rng)` is the unseen task's score."""
        parts = []
        for i in range(6):
            ability = sigmoid(np.linspace(0, 10, 30), 7 - 0.7 * i)
            values = {"k1": ability, "k2": 0.5 * ability, "unseen": hidden(ability, rng)}
            values = {k: 0.25 + 0.5 * v + rng.normal(0, 0.01, 30) for k, v in values.items()}
            parts.append(
                table(values, run=f"r{i}", params=10**i, domains=dict.fromkeys(values, "x"))
            )
        return pd.concat(parts)

    def test_a_shared_ability_is_predicted(self) -> None:
        found = unseen_tasks(self.suite(np.random.default_rng(0), lambda a, _: 0.8 * a))
        row = found.table.set_index("task").loc["unseen"]
        assert row.predicts and row.gain_low > 0.4
        assert row.error < 1.5 * row.noise and row.same_tokens > 5 * row.error

    def test_noise_is_not_predicted(self) -> None:
        rng = np.random.default_rng(1)
        wrong = []
        for _ in range(25):
            records = self.suite(rng, lambda a, rng: 0 * a)
            table_ = unseen_tasks(records).table.set_index("task")
            wrong.append(table_.predicts["unseen"])
            assert table_.predicts["k1"]
        assert np.mean(wrong) <= 0.12

    def test_the_same_benchmark_at_other_shots_does_not_help(self) -> None:
        records = self.suite(np.random.default_rng(2), lambda a, _: a)
        renamed = records.replace({"task": {"k1": "unseen 5-shot", "k2": "k"}})
        assert unseen_tasks(renamed).table.set_index("task").known["unseen"] == 1

    def test_needs_three_sizes_to_learn_and_test(self) -> None:
        records = self.suite(np.random.default_rng(3), lambda a, _: a)
        assert "three sizes" in unseen_tasks(records[records.params < 100]).refused


def test_pythia_tasks_grow_together_and_predict_each_other(pythia) -> None:
    found = correlations(pythia)
    pairs = found.table.set_index(["task_a", "task_b"])
    rising = pairs.loc[[("arc_easy", "sciq"), ("lambada_openai", "piqa"), ("piqa", "sciq")]]
    assert (rising.gain_q < 0.01).all() and (rising.gain > 0.4).all()
    flat = pairs[[("logiqa" in pair and "wsc" not in pair) for pair in pairs.index]]
    assert flat.gain.abs().max() < 0.25
    assert not lead_lag(pythia).table.leads.any()
    predicted = unseen_tasks(pythia)
    saved, low, _, p = predicted.others
    assert saved > 0.3 and low > 0 and p < 0.05
    assert (
        predicted.table.why[predicted.table.task == "lambada_openai"].item().startswith("no other")
    )
