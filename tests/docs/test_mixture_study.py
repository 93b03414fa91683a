"""The figures of the study in docs/mixtures.md follow from the tables beside it."""

import json

import pandas as pd
import pytest

from jaxllm.analysis.mixtures.choice import fit
from jaxllm.interop.mixture_tables import Columns, read_swarm
from tests.conftest import REPOSITORY

STUDY = REPOSITORY / "docs" / "mixture_study"
PAGE = (REPOSITORY / "docs" / "mixtures.md").read_text()
CODE_AND_MATH = ["heldout_code", "heldout_math"]


def line(start: str) -> str:
    (one,) = (one for one in PAGE.splitlines() if one.startswith(f"| {start}"))
    return one


@pytest.fixture(scope="module")
def differences() -> pd.DataFrame:
    """Differences to the natural mixture: (parameters, mixture) -> a column per held-out set."""
    runs = pd.read_csv(STUDY / "checks.csv")
    mean = runs.groupby(["parameters", "mixture"]).mean().drop(columns="seed")
    natural = mean.xs("natural", level="mixture")
    return mean - natural.reindex(mean.index, level="parameters")


@pytest.mark.parametrize(
    ("row", "mixture", "tasks"),
    [("proposal for the mean", "proposed", None), ("proposal for code", "code_math", CODE_AND_MATH),
     ("the same: mean", "code_math", None), ("DoReMi", "doremi", None), ("online", "online", None)],
)  # fmt: skip
def test_what_was_measured(
    differences: pd.DataFrame, row: str, mixture: str, tasks: list[str] | None
) -> None:
    cells = [cell.strip(" *") for cell in line(row).split("|")[3:5]]
    for size, cell in zip(("100k", "400k"), cells, strict=True):
        found = differences.loc[(size, mixture), tasks or differences.columns] if cell else None
        assert cell == ("" if found is None else f"{found.mean():+.3f}")


@pytest.mark.parametrize("proposal", ["proposal", "code_math"])
def test_what_was_predicted(differences: pd.DataFrame, proposal: str) -> None:
    """As committed before; each set's difference lies within its interval at 400k."""
    known = json.loads((STUDY / f"{proposal}.json").read_text())
    (whole,) = (row for row in known["predicted"] if row["mixture"] == "difference")
    row = {"proposal": "proposal for the mean", "code_math": "proposal for code"}[proposal]
    shown = "{value:.3f} ({low:+.3f} to {high:+.3f})".format(**whole)
    assert f"| {shown} |" in line(row)
    mixture = {"proposal": "proposed"}.get(proposal, proposal)
    sets = [row for row in known["targets"] if row["mixture"] == "difference"]
    assert len(sets) == 6
    for one in sets:
        measured = differences.loc[("400k", mixture), one["target"].partition("/")[0]]
        assert one["low"] < measured < one["high"]


def test_the_laws_rank_mixtures_that_they_have_not_seen() -> None:
    domains = ["wiki", "books", "code", "math", "qa", "web"]
    columns = Columns(domains, ["heldout_code", "answers_arc_easy"], name="run")
    scores = fit(read_swarm(str(STUDY / "swarm.csv"), columns), draws=10).scores
    found = scores[scores.chosen].set_index("target").spearman
    assert found["heldout_code"] == pytest.approx(0.99, abs=0.01)
    assert found["answers_arc_easy"] == pytest.approx(0.80, abs=0.05)
