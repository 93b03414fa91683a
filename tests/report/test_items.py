"""The items of a report, from any mix of sources: each finding has its card, or says why not."""

import dataclasses
import inspect
import math
import re
from collections.abc import Callable

import altair as alt
import numpy as np
import pandas as pd
import pytest
import vl_convert

from jaxllm.analysis import registry
from jaxllm.analysis.finding import Finding
from jaxllm.analysis.registry import Study
from jaxllm.analyze import main as analyze
from jaxllm.report import items as report_items
from jaxllm.report import page, tables
from jaxllm.report.charts import findings, marks, specs, trajectories
from jaxllm.report.items import ReportItem, items
from jaxllm.run.records import COLUMNS, Record, Results
from jaxllm.run.run import Run
from jaxllm.run.trajectory import TrajectoryStore
from tests.analysis import planted
from tests.analysis.simulated_suite import suite
from tests.report.pages import Page, build, charts_of, data_of
from tests.simulated_run import TOKENS_PER_STEP, simulate


def source_of(records: pd.DataFrame) -> Results:
    metrics = pd.DataFrame({"run": pd.Series(dtype=str), "step": pd.Series(dtype="int64")})
    return Results("simulated", records, metrics)


@pytest.fixture(scope="module")
def many() -> tables.Tables:
    return tables.gather([source_of(suite(3, tasks=6))])  # twelve runs of six sizes


@pytest.fixture(scope="module")
def shown(many) -> list[ReportItem]:
    return items(many, backtested=True)


@pytest.fixture(scope="module")
def rendered(many, shown) -> str:
    return page.render(many, shown)


def answers(shown: list[ReportItem]) -> dict[str, ReportItem]:
    return {item.title: item for item in shown if not item.part}


def test_every_item_is_on_the_page_under_its_question(shown, rendered) -> None:
    headings = re.findall(r"<h2>(.*?)</h2>", rendered)
    absent = {registry.TOKENS, registry.DATA}  # no token losses and no swarm are there
    asked = [title for key, title in registry.QUESTIONS.items() if key not in absent]
    assert [text for text in headings if text.endswith("?")] == asked
    text = Page(rendered).text
    assert "This analysis failed" not in text and "could not be drawn" not in text
    cards = {chart["name"]: chart for chart in data_of(rendered)["charts"].values()}
    for item in shown:
        assert " ".join(item.sentence.split()) in text
        assert item.sentence.endswith(".")
        if not item.refused:
            assert (item.chart is not None) == ("spec" in cards[item.title])
            table = {} if item.part else cards[item.title]["table"]
            assert list(table) == (list(item.table) if len(item.table) else list(table))


def test_every_chart_of_a_finding_belongs_to_an_analysis(shown) -> None:
    """Charts are found by the analysis' name: one that no analysis has would never be drawn."""
    charts = {name for name, value in vars(findings).items()
              if inspect.isfunction(value) and value.__module__ == findings.__name__
              and not name.startswith("_")}  # fmt: skip
    assert charts <= {analysis.name for analysis in registry.analyses()}


def test_an_analysis_is_one_function_and_its_chart(many, monkeypatch) -> None:
    monkeypatch.setattr(registry, "_REGISTERED", {})
    monkeypatch.setattr(registry, "walk_packages", lambda *_: [], raising=False)

    @registry.analysis(registry.NOW, "Number of curves", caption="Counted.", method="Peano (1889)")
    def counted(study: registry.Study) -> Finding:
        return Finding("There are some.", pd.DataFrame({"task": ["a"], "count": [1.0]}))

    def chart(finding: Finding, study: registry.Study) -> specs.Chart:
        return marks.dots(finding.table, "task", "count", "count")

    monkeypatch.setattr(findings, "counted", chart, raising=False)
    (analysis,) = registry._REGISTERED.values()
    (item,) = report_items.answers(analysis, many.study)
    assert (item.question, item.title, item.caption) == ("now", "Number of curves", "Counted.")
    text = page.render(many, [item])
    assert "Number of curves" in charts_of(text)
    assert "How to read this: Counted." in Page(text).text
    assert "Method: Peano (1889)" in Page(text).text


def test_signed_colours_have_their_middle_at_zero_and_every_heat_map_a_legend(shown) -> None:
    coloured = {}
    for item in shown:
        for layer in item.spec[0].get("layer", []) if item.chart else []:
            colour = layer["encoding"].get("color", {})
            if colour.get("type") == "quantitative":
                assert colour["title"] and colour["legend"]
                coloured[item.title] = colour
    assert any(title.startswith("Growth of") for title in coloured)
    signed = coloured["Correlated gains"]
    low, middle, high = signed["scale"]["domain"]
    assert low == -high and middle == 0 and signed["legend"]["values"] == [low, 0, high]


def test_no_label_of_a_matrix_is_left_out() -> None:
    names = [f"a_task_with_a_long_name_{n}" for n in range(30)]
    cells = pd.DataFrame({"x": names, "y": names[::-1], "value": np.linspace(-1, 1, 30)})
    chart = marks.matrix(cells, "x", "y", "value", "a value")
    assert chart is not None
    svg = vl_convert.vegalite_to_svg(chart.properties(width=600).to_dict())
    labels = re.findall(r">(a_task[^<]*)<", svg)
    assert sorted(labels) == sorted([*names, *names])
    assert chart.usermeta["least_width"] > 30 * 11  # a page lets its reader scroll


def test_axes_count_in_the_units_of_the_field() -> None:
    table = pd.DataFrame({"flops": [1e5, 1e9], "params": [0.8, 2e6], "fitted": [0.8, 2e6]})
    chart = marks.law(table, "flops", "params", ("training FLOPs", "parameters"))
    svg = vl_convert.vegalite_to_svg(chart.properties(width=500).to_dict())
    labels = set(re.findall(r">([^<>]+)</text>", svg))
    assert "1e9" in labels and "1M" in labels  # neither 1B FLOPs nor 800m parameters
    assert not [label for label in labels if re.fullmatch(r"[\d.]+m", label)]


def test_the_backtest_is_made_only_when_asked(many, shown) -> None:
    title = "Backtest of the forecasts"
    assert not answers(shown)[title].refused
    assert title not in answers(items(many))


def test_the_backtest_names_the_distances_of_its_own_sizes(shown) -> None:
    item = answers(shown)["Backtest of the forecasts"]
    rows = {row.rpartition(", ")[2] for table in item.spec[1].values() for row in table.after}
    told = {line.split(" in size")[0] for line in item.lines}
    assert told and rows == told


def test_a_ladder_is_drawn_where_the_accuracy_is_zero() -> None:
    table = pd.DataFrame({"soft": [2.0, 1.5, 1.0], "accuracy": [0.0, 0.2, 0.6], "fitted": 0.3})
    spec = findings.task_ladders(Finding("", table), Study(table)).to_dict()
    scales = [layer["encoding"]["y"]["scale"] for layer in spec["layer"]]
    assert len(scales) > 1 and all(scale.get("type") != "log" for scale in scales)


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


def failing(message: str) -> Callable[..., None]:
    def fail(*_: object, **__: object) -> None:
        raise ZeroDivisionError(message)

    return fail


def test_a_failing_analysis_costs_its_card_only(many, monkeypatch) -> None:
    broken = dataclasses.replace(
        next(one for one in registry.analyses() if one.name == "early_tasks"),
        function=failing("<b>nothing</b>"),
    )
    monkeypatch.setitem(registry._REGISTERED, broken.name, broken)
    found = items(many)
    text = Page(page.render(many, found)).text
    assert "This analysis failed: ZeroDivisionError: <b>nothing</b>." in text
    assert [item.title for item in found if "failed" in item.sentence] == [broken.title]


@pytest.fixture
def noise(tmp_path):
    """Twelve checkpoints of one task that never leave chance."""
    values = np.random.default_rng(0).normal(0.5, 0.012, 12)
    rows = [f"a,{n}000000,{n},4e8,{v:.4f}" for n, v in enumerate(values, 1)]
    path = tmp_path / "noise.csv"
    path.write_text("\n".join(["run,tokens,step,params,piqa", *rows]))
    return f"csv:{path}?values=piqa&metric='accuracy'&stderr='0.012'"


@pytest.mark.parametrize("kind", ["html", "png", "tensorboard"])
def test_a_run_that_shows_nothing_but_noise_has_a_report(tmp_path, noise, kind, caplog) -> None:
    assert analyze([noise, "--output", str(tmp_path / "out"), "--format", kind]) == 0
    assert "failed" not in caplog.text and "could not be drawn" not in caplog.text
    if kind == "html":
        text = (tmp_path / "out" / "index.html").read_text()
        assert "What moves beyond a guess and its noise: piqa not yet." in text
        assert "Tasks that tell early" not in charts_of(text)


def test_a_failing_chart_costs_its_card_only(tmp_path, monkeypatch, caplog) -> None:
    """A chart that cannot be made, one with a number that JSON cannot hold, one not drawn."""
    run_dir = simulate(tmp_path / "run")
    whole = build([run_dir]).read_text()
    sentence = answers(items(tables.gather([Run.open(run_dir)])))["Sudden or gradual"].sentence
    real, drawn = trajectories.trajectory, specs.picture

    def trajectory(points, axis, series):
        if points.task.iloc[0] == "copying":
            raise ZeroDivisionError("<b>nothing</b>")
        return real(points, axis, series)

    def picture(chart, title, *args, **more):
        if title == "Gradient norm":
            raise ValueError("no such font")
        return drawn(chart, title, *args, **more | {"scale": 0.1})

    def dots(*_, **__):
        return alt.Chart(pd.DataFrame({"x": [1]})).mark_point(size=math.nan).properties(height=50)

    monkeypatch.setattr(trajectories, "trajectory", trajectory)
    monkeypatch.setattr(specs, "picture", picture)
    monkeypatch.setattr(marks, "dots", dots)
    text = build([run_dir]).read_text()
    assert "This chart could not be drawn: ZeroDivisionError: <b>nothing</b>." in Page(text).text
    assert "This chart could not be drawn: ValueError: Out of range float" in Page(text).text
    assert "The chart copying could not be drawn: ZeroDivisionError" in caplog.text
    lost = set(charts_of(whole)) - set(charts_of(text))
    assert "copying" in lost and "Correlated gains" in charts_of(text)
    assert "Sudden or gradual" in lost and " ".join(sentence.split()) in Page(text).text
    analyze([str(run_dir), "--output", str(tmp_path / "files"), "--format", "png"])
    files = {path.name for path in (tmp_path / "files").iterdir()}
    assert {"trajectories.png", "training-loss.png"} <= files
    assert not {"gradient-norm.png", "sudden-or-gradual.png"} & files
    assert analyze([str(run_dir), "--format", "tensorboard"]) == 0


def test_a_chance_without_bounds_leaves_its_chart(tmp_path) -> None:
    report = tables.gather([Run.open(simulate(tmp_path / "run"))])
    report.points.loc[report.points.task == "copying", "chance"] = math.inf
    shown = charts_of(page.render(report, items(report)))["copying"]
    scales = [layer["encoding"]["y"].get("scale") for layer in shown["layer"]]
    assert all(math.isfinite(end) for scale in scales if scale for end in scale["domain"])


def test_refusals_say_why(tmp_path) -> None:
    text = Page(build([simulate(tmp_path / "run", steps=(0, 10))]).read_text()).text
    assert "No answer: it takes seven checkpoints with tokens and values" in text


def test_what_is_missing_is_named_where_no_tokens_are_known() -> None:
    records = pd.concat(
        suite(3, tasks=6).assign(metric=metric, primary=metric == "accuracy")
        for metric in ("accuracy", "perplexity")
    )
    shown = items(tables.gather([source_of(records.assign(tokens=math.nan))]))
    says = {item.title: item.sentence for item in shown if item.refused}
    assert "Task ladders" in says and len(says) > 5
    assert set(says.values()) == {"No answer: no record says how many tokens were seen."}


def test_sources_mix_and_equal_names_are_kept_apart(tmp_path, capsys) -> None:
    run_dir = simulate(tmp_path / "run")
    csv = tmp_path / "scores.csv"
    csv.write_text("run,params,tokens,task,value\nsimulated,9e6,1e7,copying,0.5\n"
                   "other,5e6,1e7,copying,0.6\n")  # fmt: skip
    output = tmp_path / "report"
    assert analyze([str(run_dir), f"csv:{csv}", "--output", str(output)]) == 0
    text = Page((output / "index.html").read_text()).text
    assert "simulated (2): another run is called simulated too; they are shown separately." in text
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
    report = tables.gather([Run.open(run) for run in runs])
    assert f"simulated (2) is {runs[1]}: another run is called simulated too" in report.notes[0]
    assert "2 repeated records: the last of each is used." in report.notes
    points = report.points.query("run == 'simulated (2)' and task == 'copying' and step == 120")
    assert list(points.value) == [halved[0].value]


def test_names_with_numbers_of_their_own_are_kept_apart() -> None:
    """Runs may be called as a numbered one would be, and have brackets in their names."""
    names = ("llama (a)", "llama (2)", "llama", "llama (a)", "llama")
    records = suite(1, sizes=(1e8,), twins=1, tasks=1)
    report = tables.gather([source_of(records.assign(run=name)) for name in names])
    labels = [overview.run for overview in report.overviews]
    assert labels == ["llama (a)", "llama (2)", "llama", "llama (a) (2)", "llama (3)"]


def test_scoring_after_the_run_takes_none_of_its_time(tmp_path) -> None:
    """The share is the run's own account of its time, whatever was scored by other processes."""
    run_dir = simulate(tmp_path / "run")
    store = TrajectoryStore(run_dir)
    frame = store.read().query("step == 1000 and task == 'copying'")
    offline = [
        Record(**row | {"task": "later", "seconds": 1e6}) for row in frame.to_dict("records")
    ]
    store.write(1000, "later", offline)
    (overview,) = tables.gather([Run.open(run_dir)]).overviews
    assert overview.evaluation_share == 0.15


def test_a_run_in_progress_is_forecast_to_the_end_of_its_plan(tmp_path) -> None:
    run_dir = simulate(tmp_path / "run")
    assert math.isnan(Run.open(run_dir).planned_tokens())
    (run_dir / "config.gin").write_text("TRAIN_STEPS = 4000\nTrainConfig.steps = %TRAIN_STEPS\n")
    assert Run.open(run_dir).planned_tokens() == 4000 * TOKENS_PER_STEP
    report = tables.gather([Run.open(run_dir)])
    titles = answers(items(report))
    assert titles["Forecast"].sentence.startswith("From 25% of its training")


def test_the_loss_is_an_axis_where_it_was_logged(rendered, tmp_path) -> None:
    run_dir = simulate(tmp_path / "run")
    report = tables.gather([Run.open(run_dir)])
    data = data_of(page.render(report, items(report)))
    high, low = data["axes"]["loss"]["log"]["scale"]["domain"]
    assert high > low > 0
    logged = report.metrics[report.metrics.name == "loss"].set_index("step").value
    last = report.points[report.points.step == 1000].loss
    assert last.unique() == pytest.approx([logged[1000]])
    assert "loss" not in data_of(rendered)["axes"]


@pytest.mark.parametrize(
    ("kind", "magic"), [("png", b"\x89PNG"), ("pdf", b"%PDF"), ("csv", b"run")]
)
def test_figures_and_tables_as_files(tmp_path, kind, magic) -> None:
    run_dir = simulate(tmp_path / "run")
    output = tmp_path / "files"
    analyze([str(run_dir), "--output", str(output), "--format", kind])
    main = "records.csv" if kind == "csv" else f"trajectories.{kind}"
    assert (output / main).read_bytes().startswith(magic)
    assert {main, f"tasks-that-tell-early.{kind}", f"sudden-or-gradual.{kind}"} <= {
        p.name for p in output.iterdir()
    }
    if kind == "csv":
        assert len(pd.read_csv(output / main)) == len(Run.open(run_dir).records())


def test_metrics_alone_make_a_page() -> None:
    rows = [{"run": "m", "step": i, "tokens": 10 * i, "loss": 3 - i / 100} for i in range(1, 100)]
    source = Results("m", pd.DataFrame(columns=COLUMNS), pd.DataFrame(rows), ())
    report = tables.gather([source])
    text = Page(page.render(report, items(report))).text
    assert "Training loss fell from 2.99 to 2.01 over 98 steps." in text
    assert "All 99 logged losses are finite." in text


def test_nothing_is_painted_of_a_run_before_its_first_checkpoints() -> None:
    """An intervention begins at 281B tokens: what it was at 1B is not shown as if it were known."""
    late = planted.table({"t": [0.4, 0.5, 0.6]}, tokens=[281, 283, 285], run="late")
    once = planted.table({"t": [0.6]}, tokens=[300], run="once")
    cells = tables.gather([source_of(pd.concat([late, once]))]).shares
    assert cells[cells.run == "late"].tokens_from.tolist() == [279, 281, 283]
    assert cells[cells.run == "once"].tokens_from.tolist() == [0]
