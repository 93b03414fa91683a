"""The figures of docs/study.md follow from the records beside it."""

from collections.abc import Iterator

import numpy as np
import pandas as pd
import pytest

from jaxllm.analysis.scaling.chinchilla import compute_optimal
from jaxllm.analysis.scaling.fit import family_losses
from jaxllm.report import tables
from jaxllm.run.suite_layout import runs_in
from tests.conftest import REPOSITORY

STUDY = REPOSITORY / "docs" / "study"
PAGE = (REPOSITORY / "docs" / "study.md").read_text()
SIZES = {"100k": 810, "200k": 810, "400k": 810, "800k": 1620}  # a checkpoint of the plateau


@pytest.fixture(scope="module")
def bits() -> Iterator[pd.DataFrame]:
    """Bits per byte of the held-out sets, and their mean: (run, step) -> a column per set."""
    runs = [*runs_in(STUDY), *runs_in(STUDY / "averages")]
    records = pd.concat([run.records().assign(run=run.path.name) for run in runs])
    held_out = records[records.task.str.startswith("heldout_")]
    table = held_out[held_out.metric == "bits_per_byte"].pivot_table(
        index=["run", "step"], columns="task", values="value"
    )
    yield table.assign(mean=table.mean(axis=1))


def final(bits: pd.DataFrame, run: str) -> pd.Series:
    return bits.loc[run].iloc[-1]


def test_seeds_are_one_family_whose_law_is_refused() -> None:
    study = tables.gather(runs_in(STUDY)).study
    assert set(study.families.values()) == {
        "seed1–seed2", "seed1_cooldown0.5–seed2_cooldown0.5"
    }  # fmt: skip
    assert len(family_losses(study).points) == 8
    refused = [one.refused for one in compute_optimal(study)]
    assert refused[0].startswith("0 budgets have a minimum inside")
    assert refused[1].startswith("tokens grow in step with size")
    assert "the tokens of the eight runs without a cooldown grow in step" in " ".join(PAGE.split())


def test_what_was_measured_of_the_forecast(bits: pd.DataFrame) -> None:
    for task in bits.columns:
        row = f"| {task.removeprefix('heldout_')} |"
        (line,) = (line for line in PAGE.splitlines() if line.startswith(row))
        for branch in ("", "_cooldown0.5"):
            one, two = (final(bits, f"800k_seed{seed}{branch}")[task] for seed in (1, 2))
            assert f"**{one:.3f}, {two:.3f}**" in line


@pytest.mark.parametrize(
    ("row", "run", "last"),
    [("plateau", "", False), ("average of two", "_average2", False),
     ("average of four", "_average4", False), ("decayed", "", True)],
)  # fmt: skip
def test_averages_and_decays(bits: pd.DataFrame, row: str, run: str, last: bool) -> None:
    (line,) = (line for line in PAGE.splitlines() if line.startswith(f"| {row}"))
    cells = [float(cell) for cell in line.split("|")[2:-1]]
    for (size, step), cell in zip(SIZES.items(), cells, strict=True):
        names = [f"{size}_seed{seed}{run}" for seed in (1, 2)]
        found = [final(bits, n)["mean"] if last else bits.loc[(n, step), "mean"] for n in names]
        assert np.mean(found) == pytest.approx(cell, abs=5.1e-4)
