"""Published trajectories, where they lie beside the checkout."""

from pathlib import Path

import pandas as pd
import pytest

from jaxllm.interop.importers import open_source


@pytest.fixture(scope="session")
def pythia_records(shared_data: Path) -> pd.DataFrame:
    """All metrics of the eight tasks that are not exams, of the thirteen zero-shot v1 runs."""
    records = open_source(f"pythia:{shared_data}/reference/pythia/v1").records
    kept = records.shots.eq(0) & ~records.task.str.startswith(("mmlu", "crows"))
    return records[kept & ~records.run.str.contains("BS")].reset_index(drop=True)


@pytest.fixture(scope="session")
def pythia(pythia_records: pd.DataFrame) -> pd.DataFrame:
    """Their accuracies."""
    return pythia_records[pythia_records.metric == "accuracy"].reset_index(drop=True)
