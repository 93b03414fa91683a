"""The report is one page that stands alone, draws in a browser, and hides nothing that is wrong."""

import csv
import dataclasses
import json
import math
import re
import shutil
import subprocess

import altair as alt
import pandas as pd
import pytest
from etils import epath

from jaxllm.analyze import main as analyze
from jaxllm.errors import UserError, one_line
from jaxllm.report import files, page, tables, terminal
from jaxllm.report.items import items
from jaxllm.run.records import Record, Results
from jaxllm.run.run import Run
from jaxllm.run.trajectory import TrajectoryStore
from tests.analysis.simulated_suite import suite
from tests.report.pages import Page, build, charts_of, data_of
from tests.simulated_run import DOMAINS, TASKS, simulate

NODE = shutil.which("node")
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    return simulate(tmp_path_factory.mktemp("runs") / "simulated")


@pytest.fixture(scope="module")
def rendered(run_dir) -> str:
    return build([run_dir]).read_text()


def test_the_page_needs_nothing_from_elsewhere(rendered) -> None:
    parsed = Page(rendered)
    assert all(address.startswith("#") for address in parsed.addresses), parsed.addresses
    assert "default-src 'none'" in rendered
    assert "@import" not in rendered.split("</style>")[0]
    assert "url(" not in rendered.split("</style>")[0]


def test_every_task_and_loss_has_its_chart(rendered) -> None:
    names = [chart["name"] for chart in data_of(rendered)["charts"].values()]
    assert {task.name for task in TASKS} <= set(names)
    assert {"Training loss", "Training loss by domain", "Gradient norm"} <= set(names)
    assert rendered.count("<figure") == len(names)


def test_charts_are_valid_vega_lite(rendered) -> None:
    """Against the JSON schema of Vega-Lite, and through its compiler."""
    import vl_convert

    for spec in charts_of(rendered).values():
        alt.LayerChart.from_dict(spec)  # validates
        compiled = vl_convert.vegalite_to_vega(spec | {"width": 200})
        assert compiled["marks"]


def test_a_capability_chart_holds_the_stored_records(run_dir, rendered) -> None:
    stored = Run.open(run_dir).records()
    charts = charts_of(rendered)
    for task in ("copying", "docs_text"):
        spec = charts[task]
        rows = spec["datasets"][spec["data"]["name"]]
        expected = stored[(stored.task == task) & stored.primary]
        assert [row["step"] for row in rows] == list(expected.step)
        for row, value, stderr in zip(rows, expected.value, expected.stderr, strict=True):
            assert row["value"] == pytest.approx(value, abs=1e-9)
            low, high = value - 1.96 * stderr, value + 1.96 * stderr
            if task == "copying":  # a share stays one
                low, high = max(low, 0), min(high, 1)
            assert (row["low"], row["high"]) == pytest.approx((low, high), abs=1e-9)


def test_the_text_states_sizes_onsets_and_final_values(run_dir, rendered) -> None:
    text = Page(rendered).text
    stored = Run.open(run_dir).records()
    final = stored[(stored.step == stored.step.max()) & (stored.metric == "accuracy")]
    for row in final.itertuples():
        assert f"{100 * row.value:.1f}% ± {100 * row.stderr:.1f}" in text
    for fact in ("3.41M", "16.4M", "5 min 30 s", "Not above chance: reference_ending"):
        assert fact in text, fact
    assert re.search(r"\d of 10 capabilities left chance, from copying at", text)


def test_several_runs_differ_in_colour_and_share_the_charts(run_dir, tmp_path) -> None:
    larger = simulate(tmp_path / "larger", run="larger", seed=1, params=12_000_000, skill=1.8)
    text = build([run_dir, larger], tmp_path / "both").read_text()
    charts = charts_of(text)
    rows = next(v for v in charts["copying"]["datasets"].values() if "series" in v[0])
    assert {row["series"] for row in rows} == {"simulated", "larger"}
    assert {f"Loss on {domain}" for domain in DOMAINS} <= set(charts)
    domain = charts["copying"]["layer"][-1]["encoding"]["color"]["scale"]["domain"]
    assert domain == ["simulated", "larger"]


EVIL = (
    "</SCRIPT><SCRIPT>document.title='owned'</SCRIPT>",
    "<!--<script>",
    '"><img src=x onerror=alert(1)>&lt;\u2028\u2029\x1b[2J',
)


@pytest.fixture
def evil() -> tables.Tables:
    """Two runs whose names, families, domains and tasks are each an attack on the page."""
    records = suite(1, sizes=(1e8, 1e9), twins=1, tasks=3)
    records["domain"] = records.task
    for column in ("run", "family", "task", "domain"):
        names = dict(zip(records[column].unique(), EVIL, strict=False))
        records[column] = records[column].map(names)
    none = pd.DataFrame({"run": pd.Series(dtype=str), "step": pd.Series(dtype="int64")})
    return tables.gather([Results("evil", records, none)])


def test_names_are_text_wherever_they_stand(evil) -> None:
    text = page.render(evil, items(evil))
    parsed = Page(text)
    assert parsed.tags.count("script") == 3 and "img" not in parsed.tags
    assert all(name.split("\x1b")[0].split("\u2028")[0] in parsed.text for name in EVIL)
    between = re.search(r'id="report-data">(.*?)</script>\n<script type="module">', text)[1]
    assert not set("<>&\u2028\u2029") & set(between)
    assert {row["task"] for row in data_of(text)["records"]} == set(EVIL)
    assert f"\n{EVIL[1]}" not in text


def test_names_do_not_command_the_terminal(evil, capsys) -> None:
    for run in evil.overviews:
        assert "\x1b" not in terminal.capability_table(evil, run.run)
        assert "\\x1b[2J" in terminal.capability_table(evil, run.run)
    assert one_line(ValueError("a\x1b[2J\n b\u202e")) == r"a\x1b[2J b\u202e"


def test_libraries_cannot_end_their_element(evil, monkeypatch) -> None:
    code = "x = '</SCRIPT>' + '<!--' + '</script>' + (1 < 2)"
    monkeypatch.setattr(page, "javascript_libraries", lambda: code)
    text = page.render(evil, [])
    assert r"x = '<\/SCRIPT>' + '<\!--' + '<\/script>' + (1 < 2)" in text


def test_no_cell_of_a_csv_file_is_a_formula(tmp_path) -> None:
    names = ["=1+1", "+x", "-x", "@x", "\tx", "plain", "a-b"]
    records = suite(1, sizes=(1e8,), twins=1, tasks=len(names))
    records["task"] = records.task.map(dict(zip(records.task.unique(), names, strict=True)))
    records["value"] -= 1.0
    records["tokens"] = records.tokens - 1e-7  # as sums of floating-point numbers are
    none = pd.DataFrame({"run": pd.Series(dtype=str), "step": pd.Series(dtype="int64")})
    report = tables.gather([Results("formulas", records, none)])
    files.write(epath.Path(tmp_path), report, items(report), "csv")
    written = pd.read_csv(tmp_path / "records.csv")
    assert set(written.task) == {"'=1+1", "'+x", "'-x", "'@x", "'\tx", "plain", "a-b"}
    assert (written.tokens % 1 == 0).all()
    # Negative values are numbers, not formulas.
    assert list(written.value) == pytest.approx(list(report.study.records.value))
    for path in tmp_path.glob("*.csv"):
        rows = csv.reader(path.open(newline=""))
        cells = [cell for row in rows for cell in row if cell[:1] in ("=", "+", "-", "@", "\t")]
        assert all(math.isfinite(float(cell)) for cell in cells), path


@pytest.mark.skipif(NODE is None, reason="needs Node.js")
def test_no_cell_of_the_page_s_own_csv_files_is_a_formula() -> None:
    script = page.asset("page.js")
    function = script[script.index("function csv(") : script.index("function downloadCsv(")]
    call = "process.stdout.write(csv([{'=a': '=1+1', b: -1, c: '-x', d: 'a-b', e: '@\\r'}]))"
    done = subprocess.run([NODE, "-e", function + call], capture_output=True, check=True)
    assert done.stdout == b"'=a,b,c,d,e\n'=1+1,-1,'-x,a-b,\"'@\r\"\n"


def spoil(run_dir) -> None:
    """Every kind of wrong or missing data that a run directory can hold."""
    store = TrajectoryStore(run_dir)
    frame = store.read()

    def edit(task: str, step: int, **fields) -> None:
        rows = frame[(frame.step == step) & (frame.task == task)].to_dict("records")
        records = [dataclasses.replace(Record(**row), **fields) for row in rows]
        store.write(step, task, records)

    nothing = {"value": math.nan, "stderr": math.nan, "n": 0}
    edit("copying", 120, **nothing, status="Killed: </script><img src=x onerror=alert(1)>")
    edit("addition", 200, value=math.inf)
    (run_dir / "trajectory" / "300" / "comparison.parquet").unlink()
    (run_dir / "trajectory" / "80" / "addition.parquet").write_bytes(b"PAR1 broken")
    edit("label_mapping", 1000, task_version="2")
    for step in store.steps():
        edit("module_function", step, **nothing, status="KeyError: 'x'")
        edit("docstring_ending", step, chance=math.nan)
        edit("syntax_pairs", step, primary=False)
        edit("code_text", step, stderr=math.nan)
    lines = (run_dir / "metrics.jsonl").read_text().splitlines()
    lines[100] = json.dumps(json.loads(lines[100]) | {"loss": math.nan})
    (run_dir / "metrics.jsonl").write_text("\n".join(lines) + '\n{"step": 1003, "lo')


def test_wrong_and_missing_data_is_stated(tmp_path) -> None:
    run_dir = simulate(tmp_path / "run", run='<b>"run"</b> & more')
    spoil(run_dir)
    text = build([run_dir]).read_text()
    parsed = Page(text)
    for statement in (
        "copying failed at step 120: Killed: </script><img",
        "addition is not a finite number at step 200",
        "addition has no record at step 80",
        "addition.parquet: unreadable",
        "comparison has no record at step 300",
        "label_mapping was scored as versions 1 and 2",
        "module_function failed at 12 checkpoints",
        "Without any value: module_function",
        "syntax_pairs has no primary metric",
        "code_text has no standard error at 12 checkpoints",
        "loss is not a finite number at 1 logged step (first: 301)",
        "metrics.jsonl: 1 line not readable",
        "chance unknown",
    ):
        assert statement in parsed.text, statement
    assert "This analysis failed" not in parsed.text
    assert "img" not in parsed.tags  # what the data says is text, never markup
    assert "b" in parsed.tags and '<b>"run"</b> & more' in parsed.text
    rows = data_of(text)["records"]
    assert [row["value"] for row in rows if row["task"] == "addition" and row["step"] == 200] == [
        None
    ]


@pytest.mark.parametrize("steps", [(0,), (7,), (0, 10)])
def test_one_or_two_checkpoints_are_enough(tmp_path, steps) -> None:
    text = build([simulate(tmp_path / "run", steps=steps)]).read_text()
    noted = "one checkpoint has been scored" in Page(text).text
    assert noted == (len(steps) == 1)
    assert len(data_of(text)["charts"]) >= 13


def test_a_run_without_scores_or_metrics_has_a_page(tmp_path) -> None:
    (tmp_path / "metrics.jsonl").write_text("")
    text = Page(build([tmp_path]).read_text()).text
    assert "No checkpoint has been scored yet." in text
    assert "metrics.jsonl is missing or empty" in text


def test_long_runs_are_thinned_and_say_so(tmp_path) -> None:
    rows = [{"step": i, "tokens": 10 * i, "flops": i, "loss": 1 / i} for i in range(1, 20001)]
    (tmp_path / "metrics.jsonl").write_text("\n".join(map(json.dumps, rows)))
    report = tables.gather([Run.open(tmp_path)])
    assert 500 < len(report.metrics) <= 1200
    assert report.metrics.step.iloc[0] == 1  # the early steps stay apart
    assert any("20,000 steps were logged" in note for note in report.notes)


def test_analyze_writes_where_it_says(run_dir, tmp_path, capsys) -> None:
    assert analyze([str(run_dir), "--output", str(tmp_path / "out")]) == 0
    assert (tmp_path / "out" / "index.html").exists()
    assert f"Report: {tmp_path / 'out' / 'index.html'}" in capsys.readouterr().out
    with pytest.raises(UserError, match="no such directory"):
        analyze([str(tmp_path / "nowhere")])


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium")
def test_a_browser_draws_every_chart(run_dir, tmp_path) -> None:
    index = build([run_dir], tmp_path)
    command = [
        CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run",
        "--disable-background-networking", "--disable-component-update", "--disable-sync",
        f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=60000",
        "--window-size=360,740", "--enable-logging=stderr", "--dump-dom", f"file://{index}",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    charts = len(charts_of(index.read_text()))
    assert len(re.findall(r'<svg[^>]*class="marks"', done.stdout)) == charts
    assert "could not be drawn" not in Page(done.stdout).text
    assert "CONSOLE" not in done.stderr, done.stderr


@pytest.mark.parametrize(
    ("broken", "lost", "kept"),
    [
        ("items.items", "the report could not be made (`python -m jaxllm.analyze ", ()),
        ("tensorboard.write_report", "no images of the report", ("copying", "report   ")),
        ("terminal.capability_table", "no table of the capabilities", ("report   ",)),
        ("page.render", "the report could not be made", ("copying",)),
    ],
)
def test_a_finished_run_never_ends_in_a_traceback(
    tmp_path, monkeypatch, capsys, broken, lost, kept
):
    def fail(*_, **__):
        raise ZeroDivisionError("no\nsuch number")

    monkeypatch.setattr("jaxllm.report.files.pictures", lambda *_, **__: [])
    monkeypatch.setattr(f"jaxllm.report.{broken}", fail)
    terminal.show_run(str(simulate(tmp_path / "run")), scored=True)
    out, err = capsys.readouterr()
    assert lost in out and "ZeroDivisionError: no such number" in out
    assert all(text in out for text in (*kept, "tensorboard --logdir"))
    assert "Traceback" not in out + err
