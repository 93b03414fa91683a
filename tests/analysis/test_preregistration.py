"""A forecast written down before the end of a run is scored after it, and its failures stay."""

import json

import pytest

from jaxllm.analysis.preregistration import (
    HELD,
    MISSED,
    PENDING,
    digest,
    preregistered,
    read,
    registration,
)
from jaxllm.analysis.registry import Study, analyses
from jaxllm.analyze import main as analyze
from jaxllm.errors import UserError
from jaxllm.report import items
from tests.analysis.simulated_suite import TOKENS, suite
from tests.simulated_run import simulate


@pytest.fixture(scope="module")
def whole():
    return suite(0, tasks=12)


@pytest.fixture(scope="module")
def file(whole):
    seen = whole[(whole.run != "1000m-0") | (whole.tokens <= 0.3 * TOKENS)]
    text = registration(Study(seen, planned_tokens={"1000m-0": TOKENS}), "2030-01-01", "1.2.3")
    return read(text, "file")


def test_the_file_says_what_when_by_what_and_from_what(file, whole) -> None:
    assert (file["date"], file["jaxllm"]) == ("2030-01-01", "1.2.3")
    assert len(file["data_sha256"]) == 64 and len(file["forecasts"]) == 12
    assert digest(whole) != file["data_sha256"]
    assert digest(whole.sample(frac=1, random_state=0)) == digest(whole)


def test_a_run_that_cannot_be_forecast_has_no_file(whole) -> None:
    with pytest.raises(UserError, match="too few checkpoints"):
        registration(Study(whole), "", "")


def test_a_finished_run_is_scored_and_its_failures_are_listed(file, whole) -> None:
    task = "task3"
    low = next(row["low"] for row in file["forecasts"] if row["task"] == task)
    failed = whole.copy()
    failed.loc[(failed.run == "1000m-0") & (failed.task == task), "value"] = low - 0.05
    found = preregistered(Study(failed, registered=(file,)))
    assert found.table.verdict[0] == MISSED and found.table.task[0] == task
    by_task = found.table.set_index("task")
    assert by_task.truth[task] == pytest.approx(low - 0.05)
    assert any(line.startswith(f"Missed: {task} of 1000m-0") for line in found.lines)
    held = int((found.table.verdict == HELD).sum())
    assert f"Of 12 forecasts registered before the end, {held} intervals held" in found.sentence
    inside = by_task.truth.between(by_task.low, by_task.high)
    assert ((by_task.verdict == HELD) == inside).all()


def test_before_the_end_nothing_is_scored(file, whole) -> None:
    seen = whole[(whole.run != "1000m-0") | (whole.tokens <= 0.9 * TOKENS)]
    found = preregistered(Study(seen, registered=(file,)))
    assert set(found.table.verdict) == {PENDING} and "wait for the end" in found.sentence


def test_a_task_of_every_other_checkpoint_is_scored_with_its_run(file, whole) -> None:
    early = (whole.run == "1000m-0") & (whole.task == "task3") & (whole.tokens == TOKENS)
    moved = whole.assign(tokens=whole.tokens.where(~early, int(0.98 * TOKENS)))
    found = preregistered(Study(moved, registered=(file,))).table.set_index("task")
    assert PENDING not in set(found.verdict)
    assert found.truth["task3"] == whole.value[early].iloc[0]


def test_a_task_whose_last_score_is_not_written_yet_waits(file, whole) -> None:
    run, task = whole.run == "1000m-0", whole.task == "task3"
    dense = whole.assign(tokens=whole.tokens.mask(run & (whole.step == 90000), int(0.99 * TOKENS)))
    dense.loc[run & (whole.step == 80000), "tokens"] = int(0.98 * TOKENS)
    found = preregistered(Study(dense[~(run & task & (dense.step == 100000))], registered=(file,)))
    by_task = found.table.set_index("task").verdict
    assert by_task["task3"] == PENDING and PENDING not in set(by_task.drop("task3"))
    assert "1 wait for their last score" in found.sentence
    written = preregistered(Study(dense, registered=(file,)))
    assert PENDING not in set(written.table.verdict)


def test_from_the_command_line(tmp_path, monkeypatch) -> None:
    scored = [one for one in analyses() if one.name == "preregistered"]
    monkeypatch.setattr(items, "analyses", lambda: scored)
    run_dir = simulate(tmp_path / "run")
    config = run_dir / "config.gin"
    config.write_text("TRAIN_STEPS = 4000\nTrainConfig.steps = %TRAIN_STEPS\n")
    file = run_dir / "preregistered.json"
    command = [str(run_dir), "--format", "csv", "--output", str(tmp_path / "files")]
    assert analyze([*command, "--preregister", str(file)]) == 0
    written = file.read_text()
    assert json.loads(written)["forecasts"]
    config.write_text("TRAIN_STEPS = 1000\nTrainConfig.steps = %TRAIN_STEPS\n")
    changed = json.loads(written)
    changed["planned_tokens"] = dict.fromkeys(changed["planned_tokens"], 1.0)  # it has ended
    file.write_text(json.dumps(changed))
    assert analyze(command) == 0  # which finds the file in the run's directory
    (table,) = (tmp_path / "files").glob("forecasts-made-before*.csv")
    assert "held" in table.read_text()
    assert file.read_text() == json.dumps(changed)  # never written again
    with pytest.raises(UserError, match="no run is in progress"):
        analyze([*command, "--preregister", str(tmp_path / "new.json")])
    file.write_text("{}")
    with pytest.raises(UserError, match="is no file that --preregister wrote"):
        analyze(command)
