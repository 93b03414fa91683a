"""The section "Which data?" of a simulated swarm, whose true effects are known."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from jaxllm import analyze
from jaxllm.analysis import registry
from jaxllm.report import items, tables
from jaxllm.report.items import ReportItem
from jaxllm.run.suite_layout import runs_in
from tests.report.pages import Page, charts_of
from tests.simulated_swarm import DOMAINS, NATURAL, bits_per_byte, doremi, simulate

CARDS = ("The swarm", "Mixtures left out", "What each domain does", "The proposal", "The check")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("swarm")
    simulate(root)
    doremi(root / "doremi")
    return root


@pytest.fixture(scope="module")
def page(place: Path) -> str:
    """The page of its analyses alone; those of any runs have tests of their own."""
    patch = pytest.MonkeyPatch()
    own = [one for one in registry.analyses() if one.question == registry.DATA]
    patch.setattr(items, "analyses", lambda: own)
    sources = [str(place / name) for name in ("swarm", "doremi")]
    for kind in ("html", "csv"):
        assert analyze.main([*sources, f"--output={place}/{kind}", f"--format={kind}"]) == 0
    patch.undo()
    return (place / "html" / "index.html").read_text()


@pytest.fixture(scope="module")
def all_runs(place: Path) -> tables.Tables:
    return tables.gather([*runs_in(place / "swarm"), *runs_in(place / "swarm" / "check")])


def table(place: Path, name: str) -> pd.DataFrame:
    return pd.read_csv(place / "csv" / f"{name}.csv")


def test_the_section_has_a_card_and_a_chart_for_each_question(page: str) -> None:
    text = Page(page).text
    assert "<h2>Which data?</h2>" in page and set(CARDS) <= set(charts_of(page))
    assert "could not be drawn" not in text and "This analysis failed" not in text
    assert "The prediction held: the proposal measures -0.0" in text
    assert "only the order of the two mixtures is predicted here" in text


def test_the_runs_stand_in_the_order_of_their_mean(place: Path, page: str) -> None:
    rows = table(place, "the-swarm")
    shares = rows.pivot_table(index="run", columns="domain", values="share", sort=False)
    assert shares.shape == (24, 4) and (shares.sum(axis=1) - 1).abs().max() < 1e-6
    truth = [np.mean(list(bits_per_byte(row).values())) for row in shares.to_dict("records")]
    assert np.all(np.diff(truth) > -0.01)
    assert shares.loc["natural"].to_dict() == pytest.approx(NATURAL)


def test_effects_are_the_true_ones_within_their_intervals(place: Path, page: str) -> None:
    rows = table(place, "what-each-domain-does")
    natural = bits_per_byte(NATURAL)
    for row in rows.itertuples():
        moved = {d: 0.9 * share + 0.1 * (d == row.domain) for d, share in NATURAL.items()}
        name = row.target.removeprefix("heldout_").removesuffix("/bits_per_byte")
        assert row.effect == pytest.approx(bits_per_byte(moved)[name] - natural[name], abs=0.015)
        assert row.low < row.effect < row.high
    assert len(rows) == 16


def test_left_out_predictions_and_shares_are_those_of_the_files(place: Path, page: str) -> None:
    rows = table(place, "mixtures-left-out")
    assert len(rows) == 24 * 4 and np.corrcoef(rows.predicted, rows.measured)[0, 1] > 0.99
    assert (rows.predicted - rows.measured).abs().max() > 0.002  # not those of the fit itself
    shares = table(place, "the-proposal").set_index(["mixture", "domain"]).share
    saved = json.loads((place / "swarm" / "proposal.json").read_text())["weights"]
    assert shares["proposed"].to_dict() == pytest.approx(saved | {
        d: pytest.approx(0, abs=1e-4) for d in DOMAINS if d not in saved}, abs=1e-5)  # fmt: skip
    assert shares["DoReMi"]["web"] == pytest.approx(0.3) and shares["natural"]["web"] == 0.6
    checked = table(place, "the-check").set_index(["target", "mixture"])
    assert checked.runs["objective", "difference"] == 6


def shown(study: registry.Study) -> list[ReportItem]:
    return [item for one in registry.analyses() if one.question == registry.DATA
            and one.needs(study) for item in items.answers(one, study)]  # fmt: skip


def test_what_cannot_be_told_is_refused_once(all_runs: tables.Tables) -> None:
    mixtures = list(all_runs.study.mixtures.items())
    (item,) = shown(dataclasses.replace(all_runs.study, mixtures=dict(mixtures[:4])))
    assert item.refused and "4 different mixtures do not determine" in item.sentence
    assert shown(dataclasses.replace(all_runs.study, mixtures=dict(mixtures[:2]))) == []


def test_runs_of_another_size_are_left_out_and_counted(all_runs: tables.Tables) -> None:
    swarm = all_runs.study.mixture_laws.swarm
    assert len(swarm) == 24 and "6 of 30 runs are of another size" in swarm.notes[0]


def test_a_damaged_proposal_is_a_note(all_runs: tables.Tables, tmp_path: Path) -> None:
    (tmp_path / "proposal.gin").touch()
    (tmp_path / "proposal.json").write_text("{}")
    report = analyze._with_proposal(all_runs, str(tmp_path))
    assert report.notes[-1].endswith("is no proposal as `propose --output` writes it.")
