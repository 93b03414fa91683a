"""The capability table fits its width, keeps the first and last checkpoint, and marks fairly."""

import dataclasses
import math
import re

import pytest

from jaxllm.analysis.finding import amount
from jaxllm.report import numbers, terminal
from jaxllm.report.tables import gather
from jaxllm.run import times
from jaxllm.run.run import Run
from tests.simulated_run import TASKS, simulate


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    return simulate(tmp_path_factory.mktemp("runs") / "run")


@pytest.mark.parametrize("width", [60, 80, 100, 200])
def test_it_fits(run_dir, width) -> None:
    table = terminal.of_run(run_dir, width)
    assert max(map(len, table.splitlines())) <= width
    assert all(task.name in table for task in TASKS)
    steps = re.findall(r"[\d,]+", table.splitlines()[0])
    assert (steps[0], steps[-1]) == ("0", "1,000")
    assert ("checkpoints shown" in table) == (len(steps) < 12)


def test_values_and_marks_are_those_of_the_records(run_dir) -> None:
    table = terminal.of_run(run_dir, 200)
    stored = Run.open(run_dir).records().query("primary")
    for task in TASKS:
        line = next(row for row in table.splitlines() if row.split()[:1] == [task.name])
        cells = line.split()[1:13]
        rows = stored[stored.task == task.name].sort_values("step")
        for cell, row in zip(cells, rows.itertuples(), strict=True):
            assert cell.rstrip("*") == numbers.value(row.value, row.metric)
            if abs(row.value - row.chance - 4 * row.stderr) > row.stderr:
                assert cell.endswith("*") == (row.value > row.chance + 4 * row.stderr)


@pytest.mark.parametrize("width", [60, 100])
def test_the_name_of_a_metric_is_not_cut(run_dir, width) -> None:
    tables = gather([Run.open(run_dir)])
    points = tables.points.assign(metric="extractible", chance=math.nan)
    text = terminal.capability_table(dataclasses.replace(tables, points=points), "simulated", width)
    rows = [row for row in text.splitlines() if row.split()[0] in {task.name for task in TASKS}]
    assert rows and all(row.endswith(" extractible") and len(row) <= width for row in rows)


def test_a_failed_checkpoint_is_a_dash(run_dir, tmp_path) -> None:
    one = simulate(tmp_path / "run", steps=(0, 10))
    (one / "trajectory" / "10" / "copying.parquet").unlink()
    line = next(row for row in terminal.of_run(one).splitlines() if "copying" in row)
    assert line.split()[2] == numbers.UNKNOWN


def test_an_unscored_run_says_so(tmp_path) -> None:
    (tmp_path / "metrics.jsonl").write_text("")
    assert "no checkpoint has been scored" in terminal.of_run(tmp_path)


def test_several_runs_are_headed_by_their_names(run_dir) -> None:
    both = gather([Run.open(run_dir), Run.open(run_dir)])
    tables = [terminal.capability_table(both, overview.run) for overview in both.overviews]
    assert [table.splitlines()[0] for table in tables] == ["simulated", "simulated (2)"]


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0, "0"), (999, "999"), (0.5, "0.5"), (1000, "1K"), (1234567, "1.23M"),
        (999_999, "1M"), (6_738_415_616, "6.74B"), (1.5e15, "1500T"), (float("nan"), "–"),
    ],
)  # fmt: skip
def test_amounts(number, text) -> None:
    assert amount(number) == text


def test_other_numbers() -> None:
    assert numbers.flops(3.44e18) == "3.4 × 10¹⁸"
    assert [times.duration(s) for s in (45, 272, 11100, 1e6)] == [
        "45 s", "4 min 32 s", "3 h 5 min", "11 d 13 h",
    ]  # fmt: skip
    assert numbers.with_error(0.6213, 0.0141, "accuracy") == "62.1% ± 1.4"
    assert numbers.with_error(1.5, float("nan"), "bits_per_byte") == "1.500"
    assert numbers.with_error(0.0, 0.0, "accuracy") == "0.0%"
    assert numbers.with_error(0.9, 0.0004, "accuracy") == "90.0% ± <0.1"
    assert numbers.join(["a", "b", "c"]) == "a, b and c"
