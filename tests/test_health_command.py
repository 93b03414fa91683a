"""The state of a run in ten lines: of one in progress, of an ill one, of one without metrics."""

import json
import shutil
from pathlib import Path

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
