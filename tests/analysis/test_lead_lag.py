"""Leads between domains against planted truth and noise."""

import numpy as np
import pandas as pd

from jaxllm.analysis.lead_lag import lead_lag
from jaxllm.analysis.registry import Study
from tests.analysis.planted import related, table


def two_domains(first: np.ndarray, second: np.ndarray) -> pd.DataFrame:
    """Domains x and y of two tasks each, which do the same."""
    values = {"a": first, "a_too": first, "b": second, "b_too": second}
    return table(values, domains={"a": "x", "a_too": "x", "b": "y", "b_too": "y"})


def test_finds_who_comes_first() -> None:
    rng = np.random.default_rng(0)
    steps = rng.normal(size=62)
    late = np.cumsum(steps[:-2] + 0.3 * rng.normal(size=60))
    early = np.cumsum(steps[2:] + 0.3 * rng.normal(size=60))
    records = two_domains(early, late)
    found = lead_lag(Study(records))
    row = found.table.iloc[0]
    assert row.leads and (row["first"], row.second, row.lag) == ("x", "y", 2)
    assert found.sentence.startswith("X gains before y")
    one = lead_lag(Study(records[records.task != "a"]))
    assert one.table.lead_q[0] <= 0.05 and not one.table.leads[0]
    assert "x holds one task, a_too:" in " ".join(one.notes)


def test_growing_together_leads_nowhere() -> None:
    rng = np.random.default_rng(1)
    leads, related_ = [], []
    for seed in range(40):
        pair = related(rng, 40, 0.8)
        records = two_domains(*pair.T)
        row = lead_lag(Study(records), draws=60, seed=seed).table.iloc[0]
        leads.append(row.leads)
        related_.append((row.related_p <= 0.05) and row.lag == 0)
    assert np.mean(related_) > 0.9 and np.mean(leads) <= 0.12


def test_noise_leads_nowhere() -> None:
    rng = np.random.default_rng(2)
    leads, related_ = [], []
    for seed in range(50):
        records = two_domains(rng.normal(size=27), rng.normal(size=27))
        row = lead_lag(Study(records), draws=60, seed=seed).table.iloc[0]
        leads.append(row.leads)
        related_.append(row.related_p <= 0.05)
    assert np.mean(leads) <= 0.05 and np.mean(related_) <= 0.12


def test_no_domain_of_pythia_leads(pythia) -> None:
    assert not lead_lag(Study(pythia)).table.leads.any()
