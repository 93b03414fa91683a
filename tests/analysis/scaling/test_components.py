"""Observational scaling: planted factors, gaps, refusals, and the published table."""

import math

import numpy as np
import pandas as pd
import pytest

from jaxllm.analysis.scaling.components import components


def planted(seed=0, models=60, noise=0.005):
    """One capability, linear in log compute within five families, seen by six benchmarks."""
    rng = np.random.default_rng(seed)
    family = np.arange(models) % 5
    log_c = rng.uniform(20, 25, models)
    skill = 0.2 * (log_c - 22) + 0.1 * family
    loading = np.array([0.1, 0.2, 0.15, 0.05, 0.2, 0.1])
    table = 0.5 + np.outer(skill, loading) + rng.normal(0, noise, (models, 6))
    names = [f"model {i}" for i in range(models)]
    frame = pd.DataFrame(table, names, [f"b{i}" for i in range(6)])
    flops, families = pd.Series(10**log_c, names), pd.Series(family, names).astype(str)
    return frame, flops, families, pd.Series(skill, names), loading


def test_the_planted_capability_is_the_first_component() -> None:
    table, flops, family, skill, loading = planted()
    found = components(table, flops=flops, family=family)
    assert np.corrcoef(found.table.PC1, skill)[0, 1] > 0.999
    cosine = loading @ found.loadings.PC1 / np.linalg.norm(loading)
    assert cosine > 0.999
    assert found.explained[0] > 0.95
    slopes = found.families
    truth = 0.2 * np.linalg.norm(loading)  # per tenfold compute
    assert len(slopes) == 5
    assert ((slopes.low < truth) & (truth < slopes.high)).sum() >= 4
    assert "5 families" in found.sentence


def test_components_are_those_of_a_singular_value_decomposition() -> None:
    table, *_ = planted()
    found = components(table)
    covariance = np.cov(table.to_numpy().T)
    values = np.linalg.eigvalsh(covariance)[::-1]
    np.testing.assert_allclose(found.explained, values[:3] / values.sum(), rtol=1e-9)
    np.testing.assert_allclose(found.table.to_numpy().T @ found.table.to_numpy(),
                               np.diag(values[:3] * (len(table) - 1)), atol=1e-9)  # fmt: skip


def test_gaps_are_filled_in_from_the_other_benchmarks() -> None:
    table, *_ = planted(noise=0.001)
    holes = table.mask(np.random.default_rng(1).random(table.shape) < 0.1)
    found = components(holes)
    full = components(table)
    kept = found.table.index
    assert len(kept) >= 55
    assert np.corrcoef(found.table.PC1, full.table.PC1[kept])[0, 1] > 0.999
    assert any("missing values" in note for note in found.notes)


def test_noise_has_no_common_capability() -> None:
    table, *_ = planted()
    noise = pd.DataFrame(np.random.default_rng(0).random(table.shape), table.index, table.columns)
    found = components(noise)
    assert found.explained[0] < 0.35  # one sixth, and what 60 models make of it by chance


def test_refusals() -> None:
    table, *_ = planted()
    few = components(table.head(5))
    assert "too few" in few.refused and few.refused in few.sentence
    assert components(table * math.nan).refused


def test_published_components(shared_data) -> None:
    """Ruan et al. (arXiv 2405.10938): one component explains about 80 % of the variance, three
    about 97 %; it is linear in log compute within families (R² above 0.9 in most)."""
    path = shared_data / "reference" / "obs_scaling"
    base = pd.read_csv(path / "base_llm_benchmark_eval.csv.gz").set_index("Model")
    names = ["MMLU", "ARC-C", "HellaSwag", "Winograd", "TruthfulQA", "GSM8K", "XWinograd",
             "HumanEval"]  # fmt: skip
    flops = base["FLOPs (1E21)"] * 1e21
    found = components(base[names], flops=flops, family=base["Model Family"])
    assert 0.75 <= found.explained[0] <= 0.88
    assert found.explained.sum() == pytest.approx(0.97, abs=0.015)
    assert len(found.families) >= 20 and (found.families.r2 > 0.9).mean() > 0.75
