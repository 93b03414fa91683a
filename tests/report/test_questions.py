"""The report answers a reader's questions from any mix of sources, and says what it cannot."""

import dataclasses
import json
import math
import re

import pandas as pd
import pytest

from jaxllm.analysis import health
from jaxllm.analyze import main as analyze
from jaxllm.report import page, questions, tables
from jaxllm.trajectory.importers import Source, open_source
from jaxllm.trajectory.records import Record
from jaxllm.trajectory.run import Run
from jaxllm.trajectory.store import TrajectoryStore
from tests.analysis.simulated_suite import suite
from tests.report.test_page import Page, charts_of, data_of
from tests.simulated_run import TOKENS_PER_STEP, simulate


def source_of(records: pd.DataFrame) -> Source:
    metrics = pd.DataFrame({"run": pd.Series(dtype=str), "step": pd.Series(dtype="int64")})
    return Source("simulated", records, metrics)


@pytest.fixture(scope="module")
def many() -> tables.Tables:
    return tables.gather([source_of(suite(3, tasks=6))])  # twelve runs of six sizes


@pytest.fixture(scope="module")
def found(many) -> list[questions.Answer]:
    return questions.answers(many, backtested=True)


@pytest.fixture(scope="module")
def rendered(many, found) -> str:
    return page.render(many, found)


def test_the_questions_stand_in_their_order(rendered) -> None:
    headings = re.findall(r"<h2>(.*?)</h2>", rendered)
    asked = [text for text in headings if text.endswith("?")]
    assert asked == list(questions.QUESTIONS.values())


def test_no_analysis_fails_and_each_has_its_sentence_and_its_table(found, rendered) -> None:
    text = Page(rendered).text
    assert "This analysis failed" not in text
    for answer in found:
        assert " ".join(answer.sentence.split()) in text
        assert answer.sentence.endswith(".")
    kept = {chart["name"]: chart for chart in data_of(rendered)["charts"].values()}
    for answer in found:
        if not answer.refused:
            assert (answer.chart is not None) == ("spec" in kept[answer.title])
            columns = list(kept[answer.title]["table"])
            assert columns == (list(answer.table) if len(answer.table) else columns)


def test_the_backtest_stands_there_only_when_asked(many, found) -> None:
    title = "Backtest of the forecasts"
    assert title in [answer.title for answer in found if not answer.refused]
    assert title not in [answer.title for answer in questions.answers(many)]


def test_many_runs_are_told_apart_by_size(many, rendered) -> None:
    assert many.series == ("70M", "160M", "410M", "1B", "2.8B", "6.9B")
    assert many.colour_of["410m-1"] == "410M"
    spec = charts_of(rendered)["task0"]
    rows = next(iter(spec["datasets"].values()))
    assert {row["series"] for row in rows} == set(many.series)
    assert {row["run"] for row in rows} == {o.run for o in many.overviews}
    assert "<h1>12 runs of simulated</h1>" in rendered


def test_nearby_sizes_share_a_colour() -> None:
    sizes = [1e8, 1.1e8, *(4.0**k * 1e9 for k in range(8))]
    parts = [suite(1, sizes=(size,), twins=1, tasks=2) for size in sizes]
    report = tables.gather([source_of(pd.concat(parts, ignore_index=True))])
    assert len(report.series) == 8
    assert report.series[0] == "100M–110M"


def test_a_failing_analysis_costs_no_page(many, monkeypatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise ZeroDivisionError("<b>nothing</b>")

    monkeypatch.setattr(health, "examine", fail)
    found = questions.answers(many)
    text = Page(page.render(many, found)).text
    assert "This analysis failed: ZeroDivisionError: <b>nothing</b>." in text
    assert "Telling tasks" in text


def test_refusals_say_why(tmp_path) -> None:
    text = Page(page.build([simulate(tmp_path / "run", steps=(0, 10))]).read_text()).text
    assert "No law of the token count could be tested: a series needs 6 early" in text
    assert "no advice on stopping" in text


def test_sources_mix_and_equal_names_are_kept_apart(tmp_path, capsys) -> None:
    run_dir = simulate(tmp_path / "run")
    csv = tmp_path / "scores.csv"
    csv.write_text("run,params,tokens,task,value\nsimulated,9e6,1e7,copying,0.5\n"
                   "other,5e6,1e7,copying,0.6\n")  # fmt: skip
    output = tmp_path / "report"
    assert analyze([str(run_dir), f"csv:{csv}", "--output", str(output)]) == 0
    text = Page((output / "index.html").read_text()).text
    assert "simulated (2): another run is called simulated too; they are kept apart." in text
    names = {row["run"] for row in data_of((output / "index.html").read_text())["records"]}
    assert names == {"simulated", "simulated (2)", "other"}
    lines = capsys.readouterr().err
    assert "read 254 records of 3 runs" in lines  # progress goes to stderr


def test_directories_of_one_name_are_kept_apart_and_repeated_records_told(tmp_path) -> None:
    runs = [simulate(tmp_path / "one"), simulate(tmp_path / "two", seed=1)]
    store = TrajectoryStore(runs[1])
    frame = store.read().query("step == 120 and task == 'copying'")
    records = [Record(**row) for row in frame.to_dict("records")]
    halved = [dataclasses.replace(record, value=record.value / 2) for record in records]
    store.write(120, "copying", records + halved)
    report = tables.gather([Run(run) for run in runs])
    assert f"simulated (2) is {runs[1]}: another run is called simulated too" in report.notes[0]
    assert "simulated (2): 2 records are repeated (first: copying at step 120)" in report.notes[1]
    points = report.points.query("run == 'simulated (2)' and task == 'copying' and step == 120")
    assert list(points.value) == [halved[0].value]


def test_a_run_in_progress_is_forecast_to_the_end_of_its_plan(tmp_path) -> None:
    run_dir = simulate(tmp_path / "run")
    assert math.isnan(Run(run_dir).planned_tokens())
    (run_dir / "config.gin").write_text("TRAIN_STEPS = 4000\nTrainConfig.steps = %TRAIN_STEPS\n")
    assert Run(run_dir).planned_tokens() == 4000 * TOKENS_PER_STEP
    report = tables.gather([Run(run_dir)])
    titles = {answer.title: answer for answer in questions.answers(report)}
    assert titles["Forecast"].sentence.startswith("From 25% of its training")
    assert "300% more tokens" in titles["The rest of the budget"].sentence
    again = tables.gather([Run(run_dir)], budget_tokens=1000 * TOKENS_PER_STEP)
    assert "Forecast" not in [answer.title for answer in questions.answers(again)]


def test_the_loss_is_an_axis_where_it_was_logged(many, tmp_path) -> None:
    run_dir = simulate(tmp_path / "run")
    report = tables.gather([Run(run_dir)])
    data = data_of(page.render(report))
    high, low = data["axes"]["loss"]["log"]["scale"]["domain"]
    assert high > low > 0
    logged = report.metrics[report.metrics.name == "loss"].set_index("step").value
    last = report.points[report.points.step == 1000].loss
    assert last.unique() == pytest.approx([logged[1000]])
    assert "loss" not in data_of(page.render(many))["axes"]


@pytest.mark.parametrize(
    ("kind", "magic"), [("png", b"\x89PNG"), ("pdf", b"%PDF"), ("csv", b"run")]
)
def test_figures_and_tables_as_files(tmp_path, kind, magic) -> None:
    run_dir = simulate(tmp_path / "run")
    output = tmp_path / "files"
    analyze([str(run_dir), "--output", str(output), "--format", kind])
    main = "records.csv" if kind == "csv" else f"trajectories.{kind}"
    assert (output / main).read_bytes().startswith(magic)
    assert {main, f"telling-tasks.{kind}", f"bends.{kind}"} <= {p.name for p in output.iterdir()}
    if kind == "csv":
        assert len(pd.read_csv(output / main)) == len(Run(run_dir).records())


def test_metrics_alone_make_a_page(tmp_path) -> None:
    path = tmp_path / "metrics.jsonl"
    rows = [{"step": i, "tokens": 10 * i, "loss": 3 - i / 100} for i in range(1, 100)]
    path.write_text("\n".join(map(json.dumps, rows)))
    report = tables.gather([open_source(f"metrics:{path}?run=mine")])
    text = Page(page.render(report, questions.answers(report))).text
    assert "Training loss fell from 2.99 to 2.01 over 98 steps." in text
    assert "All 99 logged losses are finite." in text
