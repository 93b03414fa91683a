"""Which checkpoints are scored offline, and when following a run ends."""

import dataclasses
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from jaxllm.errors import UserError
from jaxllm.evaluation.offline import OfflineScorer
from jaxllm.run.manifest import ManifestEntry
from jaxllm.run.records import Record
from jaxllm.run.run import Run

TASKS = ("a", "b")


class Evaluator:
    """Writes a record for each task, and tells in `scored` what it was asked for."""

    def __init__(self, run: Run) -> None:
        self.definitions = dict.fromkeys(TASKS)
        self._run, self.scored = run, []

    def missing(self, step: int, checkpoint: float) -> tuple[str, ...]:
        stored = self._run.trajectory.scored(step, checkpoint)
        return tuple(task for task in TASKS if task not in stored)

    def evaluate(
        self, params: Any, step: int, tokens: int, flops: float, *, tasks: Any, checkpoint: float
    ) -> Any:
        (task,) = tasks
        record = Record(
            run="r", family="r", params=1, step=step, tokens=tokens, flops=flops, task=task,
            domain="d", shots=0, metric="accuracy", value=params, primary=True,
        )  # fmt: skip
        self._run.trajectory.write(step, task, [record], checkpoint=checkpoint)
        self.scored.append((step, task))
        return [record]


def save(run: Run, step: int, kind: str = "scheduled", wall_time: float = 0.0) -> None:
    entry = ManifestEntry(
        step=step, tokens=step, flops=0.0, learning_rate=None, loss=None, data_position=0,
        dtype="float32", wall_time=wall_time or time.time(), wall_seconds=0.0, code_version="",
        restarts=0, kind=kind,
    )  # fmt: skip
    run.manifest_lines.append(dataclasses.asdict(entry))
    Path(run.layout.checkpoint(step)).mkdir(parents=True, exist_ok=True)


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    run = Run.create(tmp_path / "run")
    committed = lambda self: [e for e in self.entries() if self.layout.checkpoint(e.step).exists()]
    monkeypatch.setattr(Run, "available", committed)
    return run


def scorer(
    run: Run, restore: Callable[[ManifestEntry], Any] = lambda entry: 0.5
) -> tuple[OfflineScorer, Evaluator]:
    evaluator = Evaluator(run)
    return OfflineScorer(run, lambda step: evaluator, restore), evaluator  # type: ignore


def test_missing_are_tasks_without_readable_records_of_this_very_checkpoint(run: Run) -> None:
    for step in (1, 2, 3, 4):
        save(run, step)
    offline, evaluator = scorer(run)
    offline.score(run.available())
    evaluator.scored.clear()
    files = {step: Path(run.trajectory.path / str(step)) for step in (2, 3)}
    (files[2] / "b.parquet").unlink()
    os.truncate(files[3] / "a.parquet", 100)
    run.manifest_lines.keep_until(3)  # rolled back, and saved again
    save(run, 4)
    offline.score(run.available(), missing_only=True)
    assert evaluator.scored == [(2, "b"), (3, "a"), (4, "a"), (4, "b")]
    evaluator.scored.clear()
    offline.score(run.available(), missing_only=True)
    assert evaluator.scored == []


def test_following_goes_on_beyond_the_last_checkpoint_of_a_shorter_plan(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    run.write_config("TRAIN_STEPS = 20\nTrainConfig.steps = %TRAIN_STEPS\n")
    save(run, 10, "final")  # before the run was extended
    offline, evaluator = scorer(run)
    polls = iter([lambda: None, lambda: save(run, 15), lambda: save(run, 20, "final")])
    monkeypatch.setattr(time, "sleep", lambda seconds: next(polls)())
    assert offline.follow(0.0) == 0
    assert evaluator.scored == [(step, task) for step in (10, 15, 20) for task in TASKS]


def test_a_follower_asks_once_for_what_is_scored_already(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    for step in (1, 2, 3):
        save(run, step)
    scorer(run)[0].score(run.available())
    asked = []
    original = type(run.trajectory).scored

    def scored(self: Any, step: int, checkpoint: float) -> set[str]:
        asked.append(step)
        return original(self, step, checkpoint)

    monkeypatch.setattr(type(run.trajectory), "scored", scored)
    run.write_config("TrainConfig.steps = 4\n")
    polls = iter([lambda: None, lambda: None, lambda: save(run, 4, "final")])
    monkeypatch.setattr(time, "sleep", lambda seconds: next(polls)())
    scorer(run)[0].follow(0.0)
    assert asked == [1, 2, 3, 4, 4]


def test_a_checkpoint_that_goes_while_it_is_read_is_passed_over(run: Run, capsys: Any) -> None:
    run.write_config("TrainConfig.steps = 2\n")
    save(run, 1)
    save(run, 2, "final")

    def restore(entry: ManifestEntry) -> float:
        if entry.step == 1:  # as keep='last' does
            shutil.rmtree(run.layout.checkpoint(1))
            raise UserError("checkpoint 1 is damaged")
        return 0.5

    offline, evaluator = scorer(run, restore)
    assert offline.follow(0.0) == 0
    assert evaluator.scored == [(2, task) for task in TASKS]
    assert "step 1  removed by the run before it was scored" in capsys.readouterr().out


def test_a_damaged_checkpoint_ends_a_follower(run: Run) -> None:
    save(run, 1, "final")

    def restore(entry: ManifestEntry) -> float:
        raise UserError("checkpoint 1 is damaged")

    with pytest.raises(UserError, match="is damaged"):
        scorer(run, restore)[0].follow(0.0)
