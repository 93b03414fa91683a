"""Alarms of real runs: a learning rate gone wrong rings once, in the terminal and in the file."""

import io
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from jaxllm.report.alarms import RUN, HealthWriter, active
from jaxllm.run.records import Record
from jaxllm.run.run import Run
from jaxllm.run.trajectory import TrajectoryStore
from jaxllm.training.progress import Progress
from tests.analysis.planted_health import logged, table
from tests.training.processes import finish, make_home, start


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return make_home(tmp_path)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def alarms(model_dir: Path) -> list[dict[str, object]]:
    path = model_dir / "alarms.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


@pytest.mark.slow
def test_a_wrong_learning_rate_rings_once(home: Path) -> None:
    """Healthy for 150 steps, then on with a hundred times the rate, then on from there."""
    flags = ("--gin.TrainConfig.log_every=1", "--gin.ScheduleConfig.kind=constant",
             "--gin.EVAL_TASKS=()", "--gin.CheckpointConfig.every_steps=50")  # fmt: skip
    healthy = finish(start(home, "rings", *flags, "--gin.TRAIN_STEPS=150"))
    assert "ALARM" not in healthy and alarms(home / "rings") == []
    wrong = finish(
        start(home, "rings", *flags, "--gin.TRAIN_STEPS=200", "--gin.ScheduleConfig.peak_lr=1.0")
    )
    (row,) = [row for row in alarms(home / "rings") if row["check"] == "loss spikes"]
    assert 151 < row["step"] <= 165 and row["subjects"] == [f"since {row['at']:.0f}"]
    lines = [line for line in wrong.splitlines() if "ALARM" in line]
    assert len(lines) == len(alarms(home / "rings"))
    assert lines[0].startswith(f"ALARM at step {row['step']}: loss spikes. ")
    assert row["reason"] in lines[0] and "Go back to the checkpoint before it" in lines[0]
    assert "step 200" in wrong  # it went on to the end
    before = (home / "rings" / "alarms.jsonl").read_text()
    same = finish(
        start(home, "rings", *flags, "--gin.TRAIN_STEPS=205", "--gin.ScheduleConfig.peak_lr=1.0")
    )
    assert "ALARM" not in same and (home / "rings" / "alarms.jsonl").read_text() == before


def written(model_dir: Path, steps: int) -> pd.DataFrame:
    metrics = logged(0, steps=600)
    metrics.loc[299:, "loss"] += 2.0
    seen = metrics[metrics.step <= steps]
    model_dir.mkdir(exist_ok=True)
    (model_dir / "metrics.jsonl").write_text(seen.to_json(orient="records", lines=True))
    return metrics


def test_the_line_does_not_break_the_progress_display(tmp_path: Path) -> None:
    out = Terminal()
    progress = Progress(600, 0.0, out)
    writer = HealthWriter(tmp_path, say=progress.log)
    writer.begin(0)
    for row in written(tmp_path, 0).to_dict("records"):
        writer.write_metrics(int(row["step"]), row)
        progress._shown = 0.0  # the line is due again
        progress.update(int(row["step"]), row["loss"], 1000.0)
    writer.close()
    text = out.getvalue()
    assert text.count("ALARM at step 304") == 1
    at = text.index("ALARM at step 304")
    assert text[at - 1] == "\r" and text[at:].index("\n") < text[at:].index("\r")


def test_resume_forgets_what_a_kill_undid_and_nothing_else(tmp_path: Path) -> None:
    def go(first: int, last: int) -> list[str]:
        said: list[str] = []
        metrics = written(tmp_path, first - 1)
        writer = HealthWriter(tmp_path, say=said.append)
        writer.begin(first - 1)
        for row in metrics[metrics.step.between(first, last)].to_dict("records"):
            writer.write_metrics(int(row["step"]), row)
        return [line for line in said if "spikes" in line and "ALARM" in line]

    assert len(go(1, 310)) == 1
    assert go(311, 350) == []
    assert len(go(300, 330)) == 1  # from a checkpoint before it
    expected = ["raised 304", "resumed 299", "cleared 299", "raised 304"]
    rows = [row for row in alarms(tmp_path) if row["check"] in (RUN, "loss spikes")]
    assert [f"{row['state']} {row['step']}" for row in rows] == expected


@pytest.mark.parametrize(
    ("told", "begun", "expected"),
    [
        (["raised 304", "cleared 320"], [300, 310], []),
        (["raised 500", "cleared 900", "raised 920"], [800, 905], [500]),
        (["raised 500", "cleared 900"], [800], [500]),
        (["raised 500", "cleared 900"], [900, 905], []),
    ],
)
def test_what_was_told_at_steps_that_were_abandoned_counts_no_more(
    tmp_path: Path, told: list[str], begun: list[int], expected: list[int]
) -> None:
    lines, about = Run(tmp_path).alarm_lines, {"reason": "", "tokens": 1.0, "at": 950}
    for state, step in map(str.split, told):
        row = {"check": "loss spikes", "subjects": ["since 9"], "state": state, "step": int(step)}
        lines.append(row | about)
    stopped = {"check": RUN, "subjects": ["stopped"], "state": "raised", "step": 950}
    lines.append(stopped | about)
    for at in begun:
        HealthWriter(tmp_path).begin(at)
    rows = active(lines.read()[0])
    assert rows.pop((RUN, "stopped"))["step"] == 950, "until the run has passed it"
    assert [row["step"] for row in rows.values()] == expected


def test_the_watchdog_may_report_at_any_time(tmp_path: Path) -> None:
    """While the main thread looks which alarms are over."""
    writer = HealthWriter(tmp_path)
    hang = threading.Thread(target=writer.tell_of_run, args=("hangs", "no step"), daemon=True)

    class Watched(dict[str, Any]):
        def items(self) -> Iterator[Any]:  # type: ignore[override]
            for item in super().items():
                if hang.ident is None:
                    hang.start()
                    hang.join(0.2)
                yield item

    writer.begin(1)
    writer._of_run = Watched(stopped=("no space", 1.0))
    writer.write_metrics(2, {"tokens": 2.0, "loss": 3.0})
    hang.join()
    assert [row["subjects"] for row in alarms(tmp_path)] == [["stopped"], ["hangs"]]


def test_scores_of_before_a_resume_count(tmp_path: Path) -> None:
    rows = table(0, {f"task{k}": 0.05 for k in range(8)}, {"r": 1e8}, points=30)
    rows.loc[(rows.task == "task1") & (rows.step > 16), "value"] -= 0.3
    store, said = TrajectoryStore(tmp_path), []
    records = [Record(**row) for row in rows.astype({"params": int}).to_dict("records")]
    for record in records:
        if record.step <= 20:
            store.write(record.step, record.task, [record])
    writer = HealthWriter(tmp_path, say=said.append)
    writer.begin(20)
    for step in range(21, 31):
        writer.write_records(step, [record for record in records if record.step == step])
    assert [row["subjects"] for row in alarms(tmp_path)] == [["task1"]]
    assert len(said) == 1 and "task1" in said[0]


def test_no_check_is_worth_a_run(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "alarms.jsonl").write_text('{"step": 1}\n')  # not of this program
    writer = HealthWriter(tmp_path)
    writer.begin(1)
    writer.write_metrics(2, {"tokens": 2, "loss": 1.0})
    writer.write_metrics(3, {"tokens": 3, "loss": 1.0})
    assert caplog.text.count("no longer watched") == 1
