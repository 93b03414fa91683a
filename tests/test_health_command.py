"""The state of a run in ten lines: of one in progress, of an ill one, of one without metrics."""

import json
import os
import shutil
import time
from pathlib import Path
from typing import Any

import pytest

from jaxllm.errors import UserError
from jaxllm.health import main
from jaxllm.run.run import Run
from tests.analysis.planted_health import logged
from tests.simulated_run import simulate


@pytest.fixture(scope="module")
def healthy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(simulate(tmp_path_factory.mktemp("health") / "run"))


def told(capsys: pytest.CaptureFixture[str], run: Path) -> tuple[int, dict[str, str]]:
    code = main([str(run)])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 10
    return code, {line[:12].strip(): line[12:] for line in lines}


def test_a_healthy_run(healthy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, lines = told(capsys, healthy)
    newest = json.loads((healthy / "metrics.jsonl").read_text().splitlines()[-1])
    assert code == 0 and lines["alarms"] == "none"
    assert lines["progress"].startswith(f"step {newest['step']:,} of ")
    assert lines["loss"].startswith(f"{newest['loss']:.4g}, trend: -")
    assert lines["last line"].endswith("ago")


def test_an_alarm_that_was_not_cleared(
    healthy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = shutil.copytree(healthy, tmp_path / "run")
    row = {"step": 3, "tokens": 3.0, "check": "run", "state": "raised", "subjects": ["stopped"],
           "reason": "The run stopped: no space."}  # fmt: skip
    (run / "alarms.jsonl").write_text(json.dumps(row) + "\n")
    assert told(capsys, run)[0] == 1
    cleared = row | {"state": "cleared", "reason": "The run goes on from step 3."}
    (run / "alarms.jsonl").write_text(f"{json.dumps(row)}\n{json.dumps(cleared)}\n")
    assert told(capsys, run)[0] == 0


def test_what_the_checks_find(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    metrics = logged(0, steps=600)
    metrics.loc[299:, "loss"] += 2.0
    (tmp_path / "metrics.jsonl").write_text(metrics.to_json(orient="records", lines=True))
    code, lines = told(capsys, tmp_path)
    assert code == 1 and "since step 300 the loss has not come back" in lines["alarms"]


def test_a_log_that_was_ill_long_ago(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A jump up and down again: an alarm until that is before the last doubling of tokens."""
    metrics = logged(0, steps=1600)
    metrics.loc[449:559, "loss"] += 2.0
    for steps, code in ((800, 1), (1600, 0)):
        text = metrics[metrics.step <= steps].to_json(orient="records", lines=True)
        (tmp_path / "metrics.jsonl").write_text(text)
        assert told(capsys, tmp_path)[0] == code


def test_a_run_that_died(
    healthy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Without a line for an hour: dead if it was to go on, unless its heart beats."""
    run = Run(shutil.copytree(healthy, tmp_path / "run"))
    hour_ago = time.time() - 3600.0
    last = run.metrics_lines.read()[0][-1]["step"]
    os.utime(run.layout.metrics, (hour_ago, hour_ago))
    assert told(capsys, run.path)[0] == 0, "nothing says how long it was to be"
    run.write_config(f"TrainConfig.steps = {last}\n")
    assert told(capsys, run.path)[0] == 0, "it has ended"
    run.write_config(f"TrainConfig.steps = {last + 1}\n")
    code, lines = told(capsys, run.path)
    assert code == 1
    assert lines["alarms"] == f"run ended: no step and no heartbeat for 1 h 0 min, at step {last:,}"
    run.layout.writer.write_text("{}")
    assert told(capsys, run.path)[0] == 0, "a long evaluation"
    os.utime(run.layout.writer, (hour_ago, hour_ago))
    assert told(capsys, run.path)[0] == 1
    stat = type(run.path).stat

    def ends(path: Any) -> Any:  # and deletes the file of its lease
        if path == run.layout.writer:
            path.unlink()
        return stat(path)

    monkeypatch.setattr(type(run.path), "stat", ends)
    assert told(capsys, run.path)[0] == 1


def test_skips_and_rollbacks(
    healthy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Run(shutil.copytree(healthy, tmp_path / "run"))
    assert told(capsys, run.path)[1]["skipped"].endswith("rolled back past steps: none")
    for step, effect in ((3, "skipped"), (5, "clipped"), (6, "skipped")):
        run.skipped_lines.append({"step": step, "effect": effect})
    run.rollback_lines.append({"step": 4, "first": 8, "last": 12, "by": "hand", "reason": ""})
    expected = "2 updates, 1 clipped; rolled back past steps: 8:12"
    assert told(capsys, run.path)[1]["skipped"] == expected


def test_a_run_without_metrics(
    healthy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = shutil.copytree(healthy, tmp_path / "run")
    (run / "metrics.jsonl").unlink()
    code, lines = told(capsys, run)
    assert code == 0 and lines["loss"] == "unknown: metrics.jsonl is missing or empty"


def test_bad_input(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such directory"):
        main([str(tmp_path / "none")])
