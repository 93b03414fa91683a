"""The cards on tokens, on runs with planted trends."""

import numpy as np
import pandas as pd
import pytest

from jaxllm.analysis.registry import Study
from jaxllm.analysis.tokens.findings import (
    layer_similarity,
    token_kinds_of_trends,
    token_shares,
    token_subsets,
)
from jaxllm.analysis.tokens.runs import TokenRun, TokenStudy
from jaxllm.analysis.tokens.trends import TRENDS, classify
from jaxllm.report.charts import findings as charts
from jaxllm.run.run import SIMILARITY
from jaxllm.run.token_losses import TokenSet

DOCUMENTS, LENGTH, CHECKPOINTS = 20, 100, 24
DIGITS = np.arange(DOCUMENTS * LENGTH) % 5 == 0  # a fifth: forgotten


def token_set() -> TokenSet:
    text = "".join("7 " if k % 5 == 0 else "a " for k in range(LENGTH))
    ids = [np.arange(LENGTH) % 5 == 0 for _ in range(DOCUMENTS)]
    return TokenSet.of("books", [text] * DOCUMENTS, ids, [range(2, 2 * LENGTH + 1, 2)] * DOCUMENTS)


def run(name: str, params: float, seed: int) -> TokenRun:
    rng = np.random.default_rng(seed)
    steps = np.arange(1, CHECKPOINTS + 1) * 100
    rise = np.linspace(0, 1, CHECKPOINTS)[:, None] * np.where(DIGITS, 1.0, 0.0)
    losses = 2 + rise + rng.normal(0, 0.02, (CHECKPOINTS, len(DIGITS)))
    clock = steps * 1000.0
    flops = 6 * params * clock
    return TokenRun(name, params, steps, clock, flops, np.float32(losses), name)


@pytest.fixture(scope="module")
def study() -> Study:
    runs = (run("small", 1e6, 1), run("large", 4e6, 2))
    return Study(pd.DataFrame(), token_studies=(TokenStudy(token_set(), runs),))


def test_planted_shares_come_out(study: Study) -> None:
    (finding,) = token_shares(study)
    shares = finding.table.set_index(["run", "after", "trend"]).share
    assert shares["large", 20, "upward"] == pytest.approx(0.2, abs=0.005)
    assert shares["large", 20, "downward"] == pytest.approx(0, abs=0.005)
    assert "20.3% forgotten" in finding.sentence


def test_the_subset_of_one_run_is_followed_in_the_other(study: Study) -> None:
    *found, overlaps = token_subsets(study)
    cards = {one.title: one for one in found}
    assert "No double descent in 2 tests" in cards["Upward tokens in every size"].lines[0]
    tables = {title: card.table[card.table.after == 20] for title, card in cards.items()}
    forgotten = tables["Upward tokens in every size"]
    last = forgotten[forgotten.by == "small"].groupby("run").perplexity.last()
    assert last["large"] == pytest.approx(np.exp(3), rel=0.1)
    chosen = forgotten[forgotten.by != "each run"].groupby(["by", "run"]).selection
    own = {key: key[0] == key[1] for key in chosen.groups}
    assert len(own) == 4 and dict(chosen.unique().map(lambda s: [*s] == ["its own choice"])) == own
    # All tokens are of one trend, so the means over the four subsets make that over all.
    (one,) = study.token_studies
    parts = [table[table.by == "small"].assign(trend=name) for name, table in tables.items()]
    sizes = {
        name: (
            classify(one.runs[0].losses, one.runs[0].steps, 0.2)
            == TRENDS.index(name.split()[0].lower())
        ).sum()
        for name in cards
    }
    every = pd.concat(parts).assign(total=lambda t: np.log(t.perplexity) * t.trend.map(sizes))
    sums = every.groupby(["run", "step"]).total.sum() / len(DIGITS)
    whole = every.groupby(["run", "step"]).of_all_tokens.first()
    np.testing.assert_allclose(np.exp(sums), whole, rtol=1e-5)
    pair = overlaps.table.set_index(["trend", "first", "second"]).loc[("upward", "small", "large")]
    assert pair.share > 0.9 and f"{pair.share:.0%} of upward ones" in overlaps.sentence


def test_no_overlap_is_stated_of_a_trend_that_no_token_has() -> None:
    steps, rise = np.arange(1, 25) * 100, np.linspace(0, 1, 24)[:, None] * np.ones(len(DIGITS))
    both = [TokenRun(f"{n:g}", n, steps, steps * 1.0, n * steps, np.float32(rise)) for n in (1, 2)]
    study = Study(pd.DataFrame(), token_studies=(TokenStudy(token_set(), tuple(both)),))
    sentence = token_subsets(study)[-1].sentence
    assert "100% of upward ones (1 times chance); medians" in sentence and "nan" not in sentence


def test_subsets_are_drawn_by_three_clocks_and_overlaps_as_a_matrix(study: Study) -> None:
    *found, overlaps = token_subsets(study)
    assert len(found) == 4
    for finding in found:
        panels = charts.token_subsets(finding, study).to_dict()["concat"]
        x = [panel["layer"][0]["encoding"]["x"] for panel in panels]
        clocks = 3 * ["flops", "of_all_tokens", "step"] + 6 * ["flops"]
        assert [axis["field"] for axis in x] == clocks
        assert [axis["scale"]["reverse"] for axis in x] == 3 * [False, True, False] + 6 * [False]
    encoding = charts.token_subsets(overlaps, study).to_dict()["layer"][0]["encoding"]
    assert encoding["x"]["sort"] == ["small", "large"] and len(encoding["y"]["sort"]) == 8


def test_a_selection_is_marked_where_it_begins_in_the_runs_that_made_it(study: Study) -> None:
    """The first of the checkpoints 100, 200, … 2400 at or after 10, 20 and 40 % of 2400."""
    upward = token_subsets(study)[1]
    begun = upward.table[upward.table.begins]
    first = {10: 300, 20: 500, 40: 1000}
    assert set(zip(begun.after, begun.by, begun.run, begun.step, strict=True)) == {
        (after, by, run, step)
        for after, step in first.items()
        for run in ("small", "large")
        for by in ("each run", run)
    }
    for panel in charts.token_subsets(upward, study).to_dict()["concat"]:
        rule, *_ = panel["layer"]
        assert rule["mark"] == {"type": "rule", "style": "chance"}
        assert rule["transform"] == [{"filter": "datum.begins"}] and "y" not in rule["encoding"]


def test_late_choices_are_left_out_where_a_run_has_too_few_checkpoints(study: Study) -> None:
    (one,) = study.token_studies
    early = [run.at(np.array([4, 5, 6, 11, 23])) for run in one.runs]  # two after 40 % of 2400
    few = Study(pd.DataFrame(), token_studies=(TokenStudy(one.token_set, tuple(early)),))
    *found, _ = token_subsets(few)
    drawn = [set(finding.table.after) for finding in found if not finding.refused]
    assert drawn and all(afters == {10, 20} for afters in drawn)


def test_the_kind_of_the_forgotten_tokens_is_named(study: Study) -> None:
    (finding,) = token_kinds_of_trends(study)
    assert "upward 100.0%" in finding.sentence
    shares = finding.table.set_index(["group", "trend"]).share
    assert shares["part: number", "upward"] == 1 and shares["part: whole", "upward"] < 0.02


def test_few_checkpoints_are_refused(study: Study) -> None:
    (one,) = study.token_studies
    short = [run.at(np.arange(3)) for run in one.runs]
    few = Study(pd.DataFrame(), token_studies=(TokenStudy(one.token_set, tuple(short)),))
    for analysis in (token_shares, token_subsets, token_kinds_of_trends):
        (finding,) = analysis(few)
        assert "four" in finding.refused


def comparison(checkpoints: dict[str, list[float]], other: str, other_layers=None) -> pd.DataFrame:
    """The CKA of layers 1, 2, … of each checkpoint with the same, or with `other_layers`."""
    rows = [
        ("books", name, other, layer, (other_layers or range(1, len(values) + 1))[layer - 1], cka)
        for name, values in checkpoints.items()
        for layer, cka in enumerate(values, 1)
    ]
    return pd.DataFrame(rows, columns=SIMILARITY[:-1]).assign(svcca=1.0)


def test_a_layer_settles_after_it_was_last_unlike_its_end() -> None:
    """Layer 1 was alike always, 2 from step 300 (at 0 not for good), 3 not before the end."""
    table = comparison(
        {
            "runs/small@0": [0.95, 0.93, 0.1],
            "runs/small@200": [0.96, 0.90, np.nan],
            "runs/small@300": [0.97, 0.91, 0.89],
        },
        "runs/small@400",
    )
    between = table.assign(other_layer=4 - table.layer, cka=0.0)
    whole = pd.concat([table, between[between.layer != 2]], ignore_index=True)
    study = Study(pd.DataFrame(), layers=(whole,))
    (finding,) = layer_similarity(study)
    assert dict(zip(finding.table.layer, finding.table.settled, strict=True)) == {
        1: 0, 2: 300, 3: 400,
    }  # fmt: skip
    assert finding.title == "When each layer settles, small, books"
    assert finding.sentence == (
        "On books, CKA with step 400 > 0.9 in layer 1 from step 0, in layer 2 from step 300, "
        "in layer 3 from step 400."
    )
    spec = charts.layer_similarity(finding, study).to_dict()
    assert spec["layer"][0]["encoding"]["x"]["sort"] == ["0", "200", "300"]


def test_many_checkpoints_are_thinned_in_the_chart_alone() -> None:
    study = Study(pd.DataFrame(), layers=(
        comparison({f"small@{step}": [0.5, 0.9] for step in range(1, 361)}, "small@361"),
    ))  # fmt: skip
    (finding,) = layer_similarity(study)
    spec = charts.layer_similarity(finding, study).to_dict()
    assert len(finding.table) == 720 and len(spec["layer"][0]["encoding"]["x"]["sort"]) <= 40


def test_layers_of_two_models_are_paired_with_the_most_alike() -> None:
    grid = [comparison({"small@9": [cka / 4, cka]}, "large@9", [2, 3]) for cka in (0.8, 0.3)]
    table = pd.concat([grid[0], grid[1].assign(other_layer=1)], ignore_index=True)
    study = Study(pd.DataFrame(), layers=(table,))
    (finding,) = layer_similarity(study)
    assert finding.title == "Which layers correspond, small@9 and large@9, books"
    assert finding.sentence == (
        "On books, most alike are layers 1 and 2 (CKA 0.20), layers 2 and 3 (CKA 0.80)."
    )
    spec = charts.layer_similarity(finding, study).to_dict()
    assert spec["layer"][0]["encoding"]["x"]["field"] == "other_layer"


def test_a_kind_without_a_trend_of_its_own_is_not_named() -> None:
    rng = np.random.default_rng(3)
    named = 0
    for seed in range(20):
        forgotten = rng.random(len(DIGITS)) < 0.02
        steps = np.arange(1, CHECKPOINTS + 1) * 100
        rise = np.linspace(0, 1, CHECKPOINTS)[:, None] * forgotten
        losses = 2 + rise + np.random.default_rng(seed).normal(0, 0.02, rise.shape)
        one = TokenRun("one", 1e6, steps, steps * 1.0, steps * 1.0, np.float32(losses))
        study = Study(pd.DataFrame(), token_studies=(TokenStudy(token_set(), (one,)),))
        (finding,) = token_kinds_of_trends(study)
        named += "No kind" not in finding.sentence
    assert named <= 1  # 0.1 % false discoveries


def test_the_charts_are_drawn(study: Study) -> None:
    for analysis in (token_shares, token_subsets, token_kinds_of_trends):
        for finding in analysis(study):
            chart = getattr(charts, analysis.__name__)(finding, study)
            assert chart is not None and chart.to_dict()
